"""Process groups of the workers of a training, checked for GPUs before they connect.

Those on one machine have no port that others can reach. By default workers meet at torch's
TCPStore, which listens on all interfaces without a password, and then listen at the machine's
address for each other.
"""

import os
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from torch.distributed import init_process_group

from stop_core.runtime.devices import use_gpu
from stop_core.storage.private import private_folder

_TorchBackend: Any = TorchConfig().backend_cls


class CheckedConfig(TorchConfig):
    """Refuses a GPU that torch cannot use, before NCCL fails without giving the reason.

    With `loopback`, workers meet in a private file of this user, and communicate over loopback.
    """

    def __init__(self, *, loopback: bool) -> None:
        super().__init__()
        self.loopback = loopback

    @property
    def backend_cls(self) -> type[Backend]:
        """Returns the class that Ray Train calls when the workers have started."""
        return _Checked


class _Checked(_TorchBackend):  # type: ignore[misc]
    file: Path | None = None

    # Ray declares a worker group without the methods that its own backend calls: hence `Any`.
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        has_gpus: bool = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        if has_gpus:
            worker_group.execute(use_gpu)
        if not backend_config.loopback:
            super().on_start(worker_group, backend_config)
            return
        backend = "nccl" if has_gpus else "gloo"
        self.file = private_folder() / f"workers-{uuid.uuid4().hex}"
        size, seconds = len(worker_group), backend_config.timeout_s
        joining: list[Any] = [
            worker_group.execute_single_async(rank, _join, backend, rank, size, self.file, seconds)
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        super().on_shutdown(worker_group, backend_config)
        if self.file:
            self.file.unlink(missing_ok=True)


def _join(backend: str, rank: int, size: int, file: Path, seconds: int) -> None:
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    init_process_group(
        backend,
        init_method=file.as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )
