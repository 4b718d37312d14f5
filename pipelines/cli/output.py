"""Where results go when the user does not say, and whether there is room for them."""

import os
from pathlib import Path

from stop_core.datasets.registry import division
from stop_core.storage.private import without_password

from .errors import RunError

TRACKING_URI = "MLFLOW_TRACKING_URI"


def default_output() -> Path:
    """`outputs` in the working directory; in a Ray job, `stop-outputs` in the home directory.

    The working directory of a Ray job is a temporary copy, and what it holds is lost with it.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return Path.home() / "stop-outputs"
    return Path("outputs")


def results_folder(parent: Path, dataset: str, fold: int, rest: str) -> Path:
    """Where results on a dataset go: `hmdb51-fold1-REST`, or `motion-REST` if it has one fold.

    Results of before 2026-12, when it was called `hmdb511-REST`, are found and continued there.
    """
    folder = parent / f"{division(dataset, fold, '-fold')}-{rest}"
    earlier = parent / f"{dataset}{fold}-{rest}"
    return earlier if earlier.is_dir() and not folder.is_dir() else folder


def given_store() -> str:
    """Returns the MLflow store of MLFLOW_TRACKING_URI; empty if none is given.

    Raises:
        RunError: if a URI that MLflow reads has a password in it, which would end in logs.
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
    """Whether what could not be written had no room, by its text: not all errors have a number."""
    return any(word in str(problem) for word in ("No space left", "Disk quota exceeded"))
