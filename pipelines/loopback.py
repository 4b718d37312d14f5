"""How the workers of a training meet on one machine, without a port that others can reach.

By default they meet at torch's TCPStore, which listens on all interfaces and asks for no password,
and then listen at the machine's address for each other.
"""

import os
import uuid
from datetime import timedelta
from pathlib import Path

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from stop_core.private import private_folder


class LoopbackConfig(TorchConfig):
    """Lets workers meet in a file that only this user can open, and talk over loopback."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Returns what Ray Train calls when the workers have started."""
        return _Loopback


class _Loopback(_TorchBackend):
    def on_start(self, worker_group: WorkerGroup, backend_config: TorchConfig) -> None:
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(_set_torch_distributed_env_vars)
        file = private_folder() / f"workers-{uuid.uuid4().hex}"  # torch removes it
        size = len(worker_group)
        joined = [
            worker_group.execute_single_async(
                rank, _join, "nccl" if has_gpus else "gloo", file, rank, size, backend_config
            )
            for rank in range(size)
        ]
        ray.get(joined)


def _join(backend: str, file: Path, rank: int, size: int, config: TorchConfig) -> None:
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        backend,
        init_method=file.as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=config.timeout_s),
    )
