"""The pipeline's steps as Kubeflow components: a few typed lines each around `metalearn_core`."""
