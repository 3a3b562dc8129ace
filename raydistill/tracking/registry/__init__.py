"""The model registry, which is MLflow's: students, their versions, aliases and verdicts."""
