"""Where a training worker keeps its checkpoints and reports to: Ray Train, or a plain folder.

A training of several workers needs Ray Train, which starts them, connects them and restarts them
together. For one worker inside a Ray task that is there already, its controller and helper
processes would cost more than a short training; the task itself is restarted by Ray instead.
"""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from .checkpoints import Write, keep, numbered

Told = Callable[[dict[str, float]], None]
_KEPT = 2
# Reports of a session after which Ray has noted the first two, and forgotten what was before: it
# takes up one when the one before is noted, and holds one more.
_NOTED = 4


class Session(Protocol):
    """What a worker needs of its surroundings."""

    def device(self, gpu: bool) -> torch.device:
        """The device to train on: the reserved GPU if `gpu`, else the CPU."""

    def latest(self) -> Path | None:
        """The last checkpoint that this kind of session has taken note of: its result, if any."""

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Reports numbers, and keeps the checkpoint that `write` fills a folder with."""


class RayTrainSession:
    """Inside a worker of Ray Train, which has the folder `run` for its own."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._made: list[Path] = []

    def device(self, gpu: bool) -> torch.device:
        """The device that Ray Train assigned."""
        if not gpu:
            return torch.device("cpu")
        from ray.train.torch import get_device

        _check_gpu()
        device: torch.device = get_device()
        return device

    def latest(self) -> Path | None:
        """The last that was reported."""
        import ray.train

        found = ray.train.get_checkpoint()
        return Path(found.path) if found else None

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Every rank must report; the one that brings a checkpoint has a `write`.

        Ray's controller takes note of the checkpoint a little later, or never if a kill comes in
        between. It would also copy it, file by file, from elsewhere.
        """
        import ray.train

        if write is None:
            ray.train.report(metrics)
            return
        self._made.append(keep(self.run, write))
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(self._made[-1])),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )
        if len(self._made) == _NOTED:
            self._remove_unnoted()

    def _remove_unnoted(self) -> None:
        """Ray removes old checkpoints, but not those that it never noted because of a kill."""
        for old in numbered(self.run):
            if old < self._made[0]:
                shutil.rmtree(old, ignore_errors=True)


class FolderSession:
    """A single worker that keeps its checkpoints below `folder`, by itself.

    `told` is handed what is reported, when it is safe; it may end the training by an exception.
    """

    def __init__(self, folder: Path, told: Told | None = None) -> None:
        self.folder = folder
        self.told = told
        self.metrics: dict[str, float] = {}

    def device(self, gpu: bool) -> torch.device:
        """The GPU that the Ray task was given, or the CPU."""
        if gpu:
            _check_gpu()
        return torch.device("cuda" if gpu else "cpu")

    def latest(self) -> Path | None:
        """The checkpoint of the highest number."""
        return next(reversed(numbered(self.folder)), None)

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Keeps the metrics, and the checkpoint whole or not at all."""
        self.metrics = metrics
        if write is not None:
            keep(self.folder, write)
            for old in numbered(self.folder)[:-_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        if self.told:
            self.told(metrics)


def _check_gpu() -> None:
    if not torch.cuda.is_available():
        raise OSError(
            f"a GPU was reserved on {socket.gethostname()}, but PyTorch {torch.__version__} finds "
            "none there; look at nvidia-smi and the driver on that machine, or train with "
            "--gpus-per-worker 0"
        )
