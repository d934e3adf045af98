"""The team's servers on one machine, without Kubernetes: PostgreSQL, an S3 store, and MLflow behind a password."""
