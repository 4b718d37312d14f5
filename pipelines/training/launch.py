"""Starts the worker of a training: in the driver's process, or several under Ray Train.

`train_worker` runs in the workers, all else in the driver. Ray's controller also imports this
module, so modules that take seconds to import (torch, open_clip, MLflow) are imported in functions.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import read_text
from stop_core.storage.paths import StoragePath

from ..cli.console import RunError
from ..cluster.resources import Resources
from .task import FATAL, WorkerTask

if TYPE_CHECKING:
    from stop_core.clip.loading import ClipCache


@dataclass(frozen=True)
class TrainingHooks:
    """The means of a caller to follow a training epoch by epoch, and to stop it."""

    on_report: Callable[[dict[str, float]], None] | None = None
    """Gets the metrics of every report of a training in this process; SystemExit stops it."""
    clips: "ClipCache | None" = None
    """Provides the CLIP of a training in this process; default: it is loaded."""
    callbacks: tuple[Any, ...] = ()
    """`ray.train.UserCallback`s of a training with several workers."""
    is_sole: bool = False
    """Whether Ray runs only this training, and ends with this process."""


def train_in_process(
    task: WorkerTask, checkpoints: StoragePath, hooks: TrainingHooks
) -> StoragePath:
    """Trains in this process, and returns the last checkpoint below the folder `checkpoints`."""
    from .session import FolderSession
    from .worker import WorkerRun

    session = FolderSession(checkpoints, hooks.on_report)
    WorkerRun(task, session, hooks.clips).run()
    latest = session.latest()
    if latest is None:
        raise RuntimeError(f"no checkpoint was written to {checkpoints}")
    return latest


def train_on_ray(task: WorkerTask, resources: Resources, hooks: TrainingHooks) -> StoragePath:
    """Trains in workers of Ray Train, and returns the last checkpoint.

    The workers resume from the latest checkpoint in the folder of the run, after a restart by Ray
    Train too. Ray Train knows no checkpoints, and its own files are temporary.
    """
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    from ..cluster.process_groups import CheckedConfig
    from .session import RayTrainSession

    kind: type[TorchTrainer] = TorchTrainer
    if hooks.is_sole:
        with suppress(ImportError):  # it needs internals of Ray, which another release may not have
            from ..ray_internals.sole_trainer import SoleTrainer as kind
    fatal = task.folder / FATAL
    fatal.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="stop-train-") as files:
        trainer = kind(
            train_worker,
            train_loop_config={"task": task},
            torch_config=CheckedConfig(loopback="RAY_ADDRESS" not in os.environ),
            scaling_config=resources.scaling(),
            run_config=RunConfig(
                name=task.folder.name,
                storage_path=files,
                failure_config=FailureConfig(max_failures=resources.restarts),
                callbacks=list(hooks.callbacks),
            ),
        )
        try:
            trainer.fit()
        except Exception:  # it may only be the consequence of another worker's failure
            if not fatal.is_file():
                raise
    if fatal.is_file():
        raise RunError(read_text(fatal))
    latest = RayTrainSession(task.folder).latest()
    if latest is None:
        raise RunError(f"the training {task.folder.name} ended without a result; run it again")
    return latest


def train_worker(arguments: dict[str, WorkerTask]) -> None:
    """Runs in each worker of Ray Train: trains, and records a failure that would repeat itself."""
    from stop_core.cache.integrity import ChangedDataError
    from stop_core.runtime.devices import OutOfMemory
    from stop_core.runtime.distributed import broadcast_object, rank
    from stop_core.training.trainer import DivergedError

    task = arguments["task"]
    fatal = task.folder / FATAL
    if broadcast_object(fatal.exists()):
        return  # Ray restarted the workers after one of them gave up
    from .session import RayTrainSession
    from .worker import WorkerRun

    try:
        WorkerRun(task, RayTrainSession(task.folder)).run()
    except DivergedError as problem:
        # All workers raise it together. Ray Train would restart them if it saw the exception.
        if rank() == 0:
            write_whole(fatal, str(problem))
    except (ChangedDataError, OutOfMemory) as problem:
        write_whole(fatal, str(problem))
        raise  # the other workers wait for this one, and only Ray can stop them
