"""What travels to a Ray Train worker: a task, and the function that does it.

Ray's controller imports this file too, so what takes seconds to import (torch, open_clip, MLflow)
is left to the worker itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.cache.files import write_whole
from stop_core.experiment import ExperimentConfig
from stop_core.run_state import Origin
from stop_core.storage import StoragePath

if TYPE_CHECKING:
    from ray.train import UserCallback

    from pipelines.worker_session import Told
    from stop_core.kept_clip import ClipKeeper

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


def train_worker(arguments: dict[str, WorkerTask]) -> None:
    """The function that Ray Train runs in every worker."""
    from stop_core.cache.integrity import ChangedDataError
    from stop_core.distributed import rank, told_by_first
    from stop_core.memory import OutOfMemory
    from stop_core.training import DivergedError

    task = arguments["task"]
    given_up = task.folder / GIVEN_UP
    if told_by_first(given_up.exists()):
        return  # Ray has started the workers again after one of them gave up
    from pipelines.worker_run import WorkerRun
    from pipelines.worker_session import RayTrainSession

    try:
        WorkerRun(task, RayTrainSession(task.folder)).run()
    except DivergedError as problem:
        # All workers are here: Ray Train, which starts what fails once more, is not told of it.
        if rank() == 0:
            write_whole(given_up, str(problem))
    except (ChangedDataError, OutOfMemory) as problem:
        write_whole(given_up, str(problem))
        raise  # the others wait for this worker, and only Ray can end them


@dataclass(frozen=True)
class Watch:
    """Whoever follows a training from epoch to epoch, and may end it."""

    told: "Told | None" = None
    """Is handed every report of a training in this process; it ends it by SystemExit."""
    keeper: "ClipKeeper | None" = None
    """Gives a training in this process its tower."""
    callbacks: "tuple[UserCallback, ...]" = ()
    """Of Ray Train, for a training of several workers."""


def train_alone(task: WorkerTask, checkpoints: Path, watch: Watch) -> Path:
    """Trains in this very process, checkpoints below a folder; returns the last one."""
    from pipelines.worker_run import WorkerRun
    from pipelines.worker_session import FolderSession

    session = FolderSession(checkpoints, watch.told)
    WorkerRun(task, session, watch.keeper).run()
    latest = session.latest()
    if latest is None:
        raise RuntimeError(f"no checkpoint appeared in {checkpoints}")
    return latest
