"""Where a training worker keeps its checkpoints and reports to: Ray Train, or a plain folder.

A training of several workers needs Ray Train, which starts them, connects them and restarts them
together. For one worker inside a Ray task that is there already, its controller and helper
processes would cost more than a short training; the task itself is restarted by Ray instead.
"""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from pipelines.training_worker import ALONE

Write = Callable[[Path], None]
Told = Callable[[dict[str, float]], None]
_KEPT = 2


class Session(Protocol):
    """What a worker needs of its surroundings."""

    def device(self, gpu: bool) -> torch.device:
        """The device to train on: the reserved GPU if `gpu`, else the CPU."""

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """The latest checkpoint's folder; None for a training that begins."""

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Reports numbers, and keeps the checkpoint that `write` fills a folder with."""

    def left_by_others(self, run: Path) -> list[Path]:
        """What the other kind of session has left in the folder of a run, whole or not."""


class RayTrainSession:
    """Inside a worker of Ray Train."""

    def device(self, gpu: bool) -> torch.device:
        """The device that Ray Train assigned."""
        if not gpu:
            return torch.device("cpu")
        from ray.train.torch import get_device

        _check_gpu()
        device: torch.device = get_device()
        return device

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """The latest checkpoint of this run's name."""
        import ray.train

        found = ray.train.get_checkpoint()
        if found is None:
            yield None
            return
        with found.as_directory() as folder:
            yield Path(folder)

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Every rank must report; the one that brings a checkpoint has a `write`."""
        import ray.train

        if write is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def left_by_others(self, run: Path) -> list[Path]:
        """Those of a single worker."""
        return list((run / ALONE).glob("checkpoint_*"))


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

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """The checkpoint of the highest number."""
        yield self.latest()

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Keeps the metrics, and the checkpoint whole or not at all."""
        self.metrics = metrics
        if write is not None:
            self._keep(write)
        if self.told:
            self.told(metrics)

    def _keep(self, write: Write) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".checkpoint_", dir=self.folder))
        write(staging)
        done = self._checkpoints()
        number = _number(done[-1]) + 1 if done else 0
        os.replace(staging, self.folder / f"checkpoint_{number:06d}")
        for old in [*done[: 1 - _KEPT], *self.folder.glob(".checkpoint_*")]:
            shutil.rmtree(old, ignore_errors=True)

    def left_by_others(self, run: Path) -> list[Path]:
        """Those of Ray Train, which a kill may have left half copied."""
        return list(run.glob("checkpoint_*"))

    def latest(self) -> Path | None:
        """The folder of the newest checkpoint."""
        done = self._checkpoints()
        return done[-1] if done else None

    def _checkpoints(self) -> list[Path]:
        found = (path for path in self.folder.glob("checkpoint_*") if _is_ours(path))
        return sorted(found, key=_number)


def _check_gpu() -> None:
    if not torch.cuda.is_available():
        raise OSError(
            f"a GPU was reserved on {socket.gethostname()}, but PyTorch {torch.__version__} finds "
            "none there; look at nvidia-smi and the driver on that machine, or train with "
            "--gpus-per-worker 0"
        )


def _is_ours(path: Path) -> bool:
    return re.fullmatch(r"checkpoint_\d{6}", path.name) is not None


def _number(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint_"))
