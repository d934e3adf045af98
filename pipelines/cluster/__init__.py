"""The pipeline on a Kubeflow cluster: submitted, scheduled and watched over KFP's API."""
