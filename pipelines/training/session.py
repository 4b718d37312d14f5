"""The surroundings of a training worker: Ray Train, or a plain folder without it.

A training of several workers needs Ray Train, which starts, connects and restarts them together. A
single worker runs in the driver or in a Ray task, which Ray restarts by itself: the controller and
helper processes of Ray Train would cost more than a short training.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.fs
import torch

from stop_core.runtime.devices import use_gpu
from stop_core.storage.atomic import remove_folder
from stop_core.storage.paths import RemotePath, StoragePath

from .checkpoints import Write, list_checkpoints, write_checkpoint

_KEPT = 2
# Number of reports after which Ray has registered the first two, and removed all older checkpoints:
# it registers one when the report before is registered, and holds back one more.
_REPORTS_TO_REGISTER = 4


class RayTrainSession:
    """The session of a worker of Ray Train, which owns the folder `run`."""

    def __init__(self, run: StoragePath) -> None:
        self.run = run
        self._made: list[StoragePath] = []

    def device(self, gpu: bool) -> torch.device:
        """Returns the device that Ray Train assigned."""
        if not gpu:
            return torch.device("cpu")
        from ray.train.torch import get_device

        use_gpu()
        device: torch.device = get_device()
        return device

    def latest(self) -> StoragePath | None:
        """Returns the last checkpoint that Ray Train registered."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return as_path(checkpoint.path, self.run) if checkpoint else None

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Reports to Ray Train; every rank must call it, and only one passes a `write`.

        The checkpoint is written in place, because Ray would copy it file by file. Ray's controller
        registers it a little later, or never if the training is interrupted in between.
        """
        import ray.train

        if write is None:
            ray.train.report(metrics)
            return
        made = write_checkpoint(self.run, write)
        self._made.append(made)
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint(*place(made)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )
        if len(self._made) == _REPORTS_TO_REGISTER:
            # Ray removes the older checkpoints that it registered. The others are removed here.
            for old in list_checkpoints(self.run):
                if old.name < self._made[0].name:
                    _remove(old)


class FolderSession:
    """The session of a single worker without Ray Train, with its checkpoints below `folder`.

    `on_report` is called with the metrics after the checkpoint is stored. It can stop the training
    by raising an exception.
    """

    def __init__(
        self, folder: StoragePath, on_report: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        self.folder = folder
        self.on_report = on_report

    def device(self, gpu: bool) -> torch.device:
        """Returns the GPU that was reserved for the process, or the CPU."""
        if gpu:
            use_gpu()
        return torch.device("cuda" if gpu else "cpu")

    def latest(self) -> StoragePath | None:
        """Returns the checkpoint with the highest number."""
        return next(reversed(list_checkpoints(self.folder)), None)

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Writes the checkpoint atomically, and keeps the last two."""
        if write is not None:
            write_checkpoint(self.folder, write)
            for old in list_checkpoints(self.folder)[:-_KEPT]:
                _remove(old)
        if self.on_report:
            self.on_report(metrics)


def _remove(checkpoint: StoragePath) -> None:
    with suppress(OSError):  # the next report removes it
        remove_folder(checkpoint)


def place(folder: StoragePath) -> tuple[str, pyarrow.fs.FileSystem]:
    """Returns the path of a folder as Ray takes it, with its file system."""
    if isinstance(folder, RemotePath):
        return folder.key, folder.filesystem
    return str(folder), pyarrow.fs.LocalFileSystem()


def as_path(path: str, run: StoragePath) -> StoragePath:
    """Returns the path that Ray gives of a checkpoint of `run`: the inverse of `place`."""
    return replace(run, key=path) if isinstance(run, RemotePath) else Path(path)


Session = RayTrainSession | FolderSession
