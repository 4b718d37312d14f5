"""The task that the driver sends to a training worker, and the names of the files they share."""

from dataclasses import dataclass
from pathlib import Path

from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import StoragePath
from stop_core.training.run_state import Origin

PREDICTIONS = "predictions.parquet"  # one row per clip (recognition) or query (retrieval)
FIGURES = "figures"
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints of a training without Ray Train, below the folder of the run. Ray Train
writes its checkpoints into the folder of the run itself."""
FATAL = "given_up.txt"
"""The reason why workers of Ray Train gave up; restarting them would fail in the same way."""


@dataclass(frozen=True)
class WorkerTask:
    """The input of a worker. It is sent to other processes, so it has paths and no tensors."""

    config: ExperimentConfig
    cache: StoragePath
    folder: Path
    """Folder of the run, visible to every node; records wait here for MLflow."""
    tracking_uri: str
    progress_file: Path
    threads: int
    """Number of computing threads; the rounding of a result depends on it."""
    gpu: bool
    """Whether a GPU was reserved; without a reservation, no GPU is used."""
    test: bool
    """Whether to evaluate the test split at the end; trials of a sweep do not."""
    start: Path | None
    """Checkpoint in another folder that the training starts from."""
    fork: bool
    """Whether to take only the prompts from `start`."""
    origin: Origin
    """Recorded in every checkpoint; the worker adds the id of the MLflow run."""
    micro_batch: int | None
    checkpoint_activations: bool
    compile: bool
    checkpoint_minutes: float
    checkpoint_every_steps: int | None
