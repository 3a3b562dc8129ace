"""MLflow: runs, metrics that survive outages, lineage, and the model registry."""
