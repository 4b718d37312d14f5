"""The entry points: Ray, MLflow and the command line around stop_core."""

import os

# Here, and not where MLflow is used: it reads the first as it is imported, whoever does it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# A store that is away is tried again later, from the outbox; the defaults block for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
