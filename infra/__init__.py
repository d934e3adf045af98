"""What the package runs on: images, Kubernetes manifests, and the same servers on one machine."""
