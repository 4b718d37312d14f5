"""No module of ours lets MLflow report its use: whichever of them it is imported by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What makes MLflow take a process for a test, or spares it the question, is left out.
_MEANT = {"PATH", "HOME", "LD_LIBRARY_PATH"}
_BEFORE_OTHERS = (
    "pipelines.tracking.queued_run",
    "pipelines.serving.mlflow_model",
    "pipelines.train",
)


@pytest.mark.parametrize("module", _BEFORE_OTHERS)
def test_mlflow_reports_nothing(module: str) -> None:
    asked = f"import {module}, mlflow.telemetry as t; print(t.get_telemetry_client())"
    environment = {name: value for name, value in os.environ.items() if name in _MEANT}
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["None"], done.stderr
