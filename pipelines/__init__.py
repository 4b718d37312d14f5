"""The commands: Ray, MLflow and the command line around stop_core."""

import os

# Set here because MLflow reads the first one when it is imported, by any module.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# If a store is away, the outbox retries later; the defaults would block for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
