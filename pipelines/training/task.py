"""The task that the driver sends to a training worker, and the names of the files they share."""

from dataclasses import dataclass

from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import StoragePath
from stop_core.training.run_state import Origin

from ..cluster.resources import Resources
from .start_from import StartFrom

PREDICTIONS = "predictions.parquet"  # one row per clip (recognition) or query (retrieval)
FIGURES = "figures"
PROGRESS_FILE = "progress.json"
FATAL = "given_up.txt"
"""The reason why workers of Ray Train gave up; restarting them would fail in the same way."""
PAUSE = "pause_requested"
"""A file that asks the workers to save the training after the current step, and to end."""


@dataclass(frozen=True)
class WorkerTask:
    """The input of a worker. It is sent to other processes, so it has paths and no tensors."""

    config: ExperimentConfig
    cache: StoragePath
    folder: StoragePath
    """Folder of the run, visible to every node; records wait here for MLflow."""
    tracking_uri: str
    resources: Resources
    """A CPU is a thread; the rounding of a result depends on their number. A GPU is used only if it
    is reserved."""
    test: bool
    """Whether to evaluate the test split at the end; trials of a sweep do not."""
    start: StartFrom | None
    origin: Origin
    """Recorded in every checkpoint; the worker adds the id of the MLflow run."""
