"""The surroundings of a training worker: Ray Train, or a plain folder without it.

A training of several workers needs Ray Train, which starts, connects and restarts them together. A
single worker runs in the driver or in a Ray task, which Ray restarts by itself: the controller and
helper processes of Ray Train would cost more than a short training.
"""

from collections.abc import Callable
from contextlib import suppress

import torch

from stop_core.runtime.devices import use_gpu
from stop_core.storage.atomic import remove_folder
from stop_core.storage.paths import StoragePath

from .checkpoints import Write, list_checkpoints, write_checkpoint

_KEPT = 2


class FolderSession:
    """The session of a single worker without Ray Train, with its checkpoints in `folder`.

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
                with suppress(OSError):  # the next report removes it
                    remove_folder(old)
        if self.on_report:
            self.on_report(metrics)


class RayTrainSession(FolderSession):
    """The session of a worker of Ray Train. Ray restarts workers, and knows no checkpoints."""

    def device(self, gpu: bool) -> torch.device:
        """Returns the device that Ray Train assigned."""
        if not gpu:
            return torch.device("cpu")
        from ray.train.torch import get_device

        use_gpu()
        device: torch.device = get_device()
        return device

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        """Also reports to Ray Train; every rank must call it, and only one passes a `write`."""
        import ray.train

        super().report(metrics, write)
        ray.train.report(metrics)
