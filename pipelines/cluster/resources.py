"""Options of a training that do not affect its result, and how many trainings have room at once."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cli.console import say
from ..cli.errors import RunError

if TYPE_CHECKING:  # Ray Train takes seconds
    from ray.train import ScalingConfig

_SECONDS_FOR_NODES_TO_JOIN = 60.0  # after a node failed, or a cluster was started


@dataclass(frozen=True)
class Resources:
    """Workers, devices, memory and checkpoints of a training. None of them affects the result."""

    workers: int = 1
    """Number of Ray Train workers; each batch is split among them."""
    min_workers: int | None = None
    """Start or resume with only this many workers while nodes are missing, and add workers as
    nodes join (default: wait until there is room for all)."""
    restarts: int = 2
    """Number of times that the workers of a training are restarted after one of them, or its node,
    fails. After that the training fails; the same command resumes it."""
    cpus_per_worker: float = 1
    """Logical CPUs, and compute threads, of each worker."""
    gpus_per_worker: float = 0
    """GPUs of each worker; 0 trains on the CPU; a fraction shares a GPU between trainings."""
    micro_batch: int | None = None
    """Clips that a worker embeds at a time, to save memory (default: its share of the batch)."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass instead of storing them, to save memory."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start, faster steps on a GPU."""
    checkpoint_minutes: float = 2.0
    """Minutes between checkpoints within an epoch; there is always one at the end of an epoch."""
    checkpoint_every_steps: int | None = None
    """Also save a checkpoint every N steps."""

    def __post_init__(self) -> None:
        if not 1 <= self.fewest_workers <= self.workers:
            raise ValueError(
                f"workers must be at least 1, and min_workers from 1 to workers; got workers "
                f"{self.workers}, min_workers {self.min_workers}"
            )
        for name in ("restarts", "gpus_per_worker"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("cpus_per_worker", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("micro_batch", "checkpoint_every_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def fewest_workers(self) -> int:
        """Returns the number of workers that are needed to start."""
        return self.workers if self.min_workers is None else self.min_workers

    def scaling(self) -> "ScalingConfig":
        """Returns these resources as options of Ray Train."""
        from ray.train import ScalingConfig

        per_worker = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            per_worker["GPU"] = self.gpus_per_worker
        elastic = self.fewest_workers < self.workers
        workers: Any = (self.fewest_workers, self.workers) if elastic else self.workers
        return ScalingConfig(
            num_workers=workers,  # its type does not name the range that it takes
            use_gpu=self.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        )


def room_for(resources: Resources) -> int:
    """Returns how many trainings fit into the cluster at once.

    Waits a minute for nodes that are joining; raises RunError if not even one fits then.
    """
    import ray

    deadline = time.monotonic() + (_SECONDS_FOR_NODES_TO_JOIN if "RAY_ADDRESS" in os.environ else 0)
    said = False
    cluster_resources: Callable[[], dict[str, float]] = ray.cluster_resources
    while (room := _room(resources, have := cluster_resources())) < 1:
        problem = (
            f"a training needs {resources.fewest_workers} x {resources.cpus_per_worker:g} CPUs and "
            f"{resources.fewest_workers} x {resources.gpus_per_worker:g} GPUs, and the cluster has "
            f"{have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
        )
        if time.monotonic() >= deadline:
            raise RunError(f"{problem}; lower --workers, --cpus-per-worker or --gpus-per-worker")
        if not said:
            say(f"{problem}; waiting {_SECONDS_FOR_NODES_TO_JOIN:.0f} s for nodes to join")
            said = True
        time.sleep(1.0)
    return room


def _room(resources: Resources, have: dict[str, float]) -> int:
    workers = resources.fewest_workers
    fits = [have.get("CPU", 0) / (workers * resources.cpus_per_worker)]
    if resources.gpus_per_worker:
        fits.append(have.get("GPU", 0) / (workers * resources.gpus_per_worker))
    return int(min(fits))
