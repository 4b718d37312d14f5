"""What travels to a Ray Train worker: a task, and the function that does it.

Ray's controller imports this file too, so what takes seconds to import (torch, open_clip, MLflow)
is left to the worker itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import StoragePath
from stop_core.training.run_state import Origin

if TYPE_CHECKING:
    pass

PREDICTIONS = "predictions.parquet"  # a row a clip (recognition) or a query (retrieval)
FIGURES = "figures"
ALONE = "checkpoints"
"""Where a worker without Ray Train keeps its checkpoints, in the folder of the run; Ray Train puts
its own beside."""
GIVEN_UP = "given_up.txt"
"""Why a training under Ray Train has given up: to start it again would end the same."""


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is told; it travels to other processes, so it holds paths and no tensors."""

    config: ExperimentConfig
    cache: StoragePath
    folder: Path
    """Of the run, seen by every node: for the records that wait for MLflow."""
    tracking_uri: str
    progress_file: Path
    threads: int
    """Computing threads; the rounding of a result depends on them."""
    gpu: bool
    """Whether a GPU was reserved; without one, a GPU that happens to be there is not used."""
    test: bool
    """Whether to evaluate the test split at the end; a trial of a sweep does not."""
    start: Path | None
    """The checkpoint of another folder that the training begins with."""
    fork: bool
    """Whether to take nothing but the prompts of `start`."""
    origin: Origin
    """What checkpoints are marked with, but for the MLflow run, which may come later."""
    micro_batch: int | None
    checkpoint_activations: bool
    compile: bool
    checkpoint_minutes: float
    checkpoint_every_steps: int | None
