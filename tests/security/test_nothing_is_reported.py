"""MLflow sends no usage reports: `pipelines/__init__.py` turns them off before any import."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Without the variables by which MLflow recognises a test, or which turn its reports off.
_INHERITED = {"PATH", "HOME", "LD_LIBRARY_PATH"}


def test_mlflow_reports_nothing() -> None:
    module = "pipelines.tracking.queued_run"  # imports mlflow itself, as the first
    program = f"import {module}, mlflow.telemetry as t; print(t.get_telemetry_client())"
    environment = {name: value for name, value in os.environ.items() if name in _INHERITED}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["None"], done.stderr
