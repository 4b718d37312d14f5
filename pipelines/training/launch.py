"""The workers of one training under Ray Train, which starts again what a lost node took along."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import read_text

from ..cli.errors import RunError
from ..cluster.resources import Resources
from .task import GIVEN_UP, WorkerTask

if TYPE_CHECKING:
    from ray.train import UserCallback

    from stop_core.clip.shared import ClipCache

    from .session import Told


@dataclass(frozen=True)
class Watch:
    """Whoever follows a training from epoch to epoch, and may end it."""

    told: "Told | None" = None
    """Is handed every report of a training in this process; it ends it by SystemExit."""
    keeper: "ClipCache | None" = None
    """Gives a training in this process its tower."""
    callbacks: "tuple[UserCallback, ...]" = ()
    """Of Ray Train, for a training of several workers."""


def run_workers(task: WorkerTask, resources: Resources, watch: Watch) -> Path:
    """Trains, or goes on with it, and returns the last checkpoint.

    The run's name and folder are how Ray Train finds its checkpoints again.

    Raises:
        RunError: if the training has given up, which says why, or ends without a checkpoint.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    meeting = TorchConfig()
    if "RAY_ADDRESS" not in os.environ:
        from ..cluster.loopback import LoopbackConfig

        meeting = LoopbackConfig()
    given_up = task.folder / GIVEN_UP
    given_up.unlink(missing_ok=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"task": task},
        torch_config=meeting,
        scaling_config=resources.scaling(),
        run_config=RunConfig(
            name=task.folder.name,
            storage_path=str(task.folder.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=resources.restarts),
            callbacks=list(watch.callbacks),
        ),
    )
    try:
        outcome = trainer.fit()
    except Exception:  # perhaps what another worker's end has brought about in this one
        if not given_up.is_file():
            raise
    if given_up.is_file():
        raise RunError(read_text(given_up))
    if outcome.checkpoint is None:
        raise RunError(f"the training {task.folder.name} ended without a result; run it again")
    return Path(outcome.checkpoint.path)


def train_worker(arguments: dict[str, WorkerTask]) -> None:
    """The function that Ray Train runs in every worker."""
    from stop_core.cache.integrity import ChangedDataError
    from stop_core.runtime.distributed import broadcast_object, rank
    from stop_core.runtime.memory import OutOfMemory
    from stop_core.training.trainer import DivergedError

    task = arguments["task"]
    given_up = task.folder / GIVEN_UP
    if broadcast_object(given_up.exists()):
        return  # Ray has started the workers again after one of them gave up
    from .session import RayTrainSession
    from .worker import WorkerRun

    try:
        WorkerRun(task, RayTrainSession(task.folder)).run()
    except DivergedError as problem:
        # All workers are here: Ray Train, which starts what fails once more, is not told of it.
        if rank() == 0:
            write_whole(given_up, str(problem))
    except (ChangedDataError, OutOfMemory) as problem:
        write_whole(given_up, str(problem))
        raise  # the others wait for this worker, and only Ray can end them


def train_in_process(task: WorkerTask, checkpoints: Path, watch: Watch) -> Path:
    """Trains in this very process, checkpoints below a folder; returns the last one."""
    from .session import FolderSession
    from .worker import WorkerRun

    session = FolderSession(checkpoints, watch.told)
    WorkerRun(task, session, watch.keeper).run()
    latest = session.latest()
    if latest is None:
        raise RuntimeError(f"no checkpoint appeared in {checkpoints}")
    return latest
