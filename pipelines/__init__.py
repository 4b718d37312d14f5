"""The entry points: Ray, MLflow and the command line around stop_core."""
