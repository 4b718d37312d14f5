"""Default locations of results and of the MLflow store."""

import os
from pathlib import Path

from stop_core.datasets.registry import division
from stop_core.storage.private import without_password

from .errors import RunError

TRACKING_URI = "MLFLOW_TRACKING_URI"


def default_output() -> Path:
    """Returns `outputs` in the working directory; in a Ray job, `stop-outputs` in the home folder.

    The working directory of a Ray job is a temporary copy, which is deleted after the job.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return Path.home() / "stop-outputs"
    return Path("outputs")


def results_folder(parent: Path, dataset: str, fold: int, rest: str) -> Path:
    """Returns the folder of results: `hmdb51-fold1-REST`, or `motion-REST` if there is one fold.

    Before 2026-12 it was called `hmdb511-REST`. Such a folder is used if it exists.
    """
    folder = parent / f"{division(dataset, fold, '-fold')}-{rest}"
    earlier = parent / f"{dataset}{fold}-{rest}"
    return earlier if earlier.is_dir() and not folder.is_dir() else folder


def given_store() -> str:
    """Returns the MLflow store of MLFLOW_TRACKING_URI; empty if it is not set.

    Raises RunError if a URI that MLflow reads contains a password, which would end up in logs.
    """
    for name in (TRACKING_URI, "MLFLOW_REGISTRY_URI"):
        uri = os.environ.get(name, "")
        if (shown := without_password(uri)) != uri:
            raise RunError(
                f"{name}={shown} has a password in it, and would show it in logs: leave it out, "
                "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for PostgreSQL "
                "PGPASSWORD), or write it into ~/.mlflow/credentials (~/.pgpass)"
            )
    return os.environ.get(TRACKING_URI, "")


def is_full(problem: object) -> bool:
    """Returns whether an error is about a full disk, by its text: not all have an error number."""
    return any(word in str(problem) for word in ("No space left", "Disk quota exceeded"))
