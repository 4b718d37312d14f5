"""Options of a training that do not affect its result, and how many trainings have room at once."""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast

from ..cli.console import RunError, say
from ..cli.video_options import Device
from ..ray_internals.driver import has_pending_requests

if TYPE_CHECKING:  # Ray Train takes seconds
    from ray.train import ScalingConfig

_MOST_CPUS = 8  # that reading for one GPU profits from
_SECONDS_FOR_NODES_TO_JOIN = 60.0  # after a node failed, or a cluster was started


@dataclass(frozen=True)
class ResourceOptions:
    """Workers, devices, memory and checkpoints of a training. None of them affects the result."""

    device: Device = "auto"
    """Train on the GPUs of this machine or cluster, or on the CPU; auto: on GPUs if there are
    any."""
    workers: int | None = None
    """Number of Ray Train workers of a training; each batch is split among them (default: 1; for
    `stop train` on GPUs, one for each)."""
    min_workers: int | None = None
    """Start or resume with only this many workers while nodes are missing, and add workers as
    nodes join (default: wait until there is room for all)."""
    restarts: int = 2
    """Number of times that the workers of a training are restarted after one of them, or its node,
    fails. After that the training fails; the same command resumes it."""
    cpus_per_worker: float | None = None
    """Logical CPUs of each worker: its threads for computing and reading (default: 1 on the CPU; on
    GPUs a GPU's part of the CPUs of its machine, at most 8)."""
    gpus_per_worker: float | None = None
    """Share of a GPU of each worker, to run several trainings of one worker on a GPU (default: 1 on
    GPUs, 0 on the CPU)."""
    micro_batch: int | None = None
    """Clips that a worker embeds at a time, to save memory (default: its share of the batch)."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass instead of storing them, to save memory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with torch.compile: minutes at the start, once per machine and
    shape, and faster steps on a GPU; auto: on GPUs, for 1,000 steps or more, unless it fails."""
    local_cache_gb: float | None = None
    """Disk space of each machine, in GB, for copies of shards below $STOP_CACHE_FOLDER; with it, a
    cache on a shared folder is copied too (default: for a cache on an object store, most of the
    free disk; no copies otherwise)."""
    checkpoint_minutes: float = 2.0
    """Minutes between checkpoints within an epoch; there is always one at the end of an epoch."""
    checkpoint_every_steps: int | None = None
    """Also save a checkpoint every N steps."""

    def __post_init__(self) -> None:
        counts = [1, *(n for n in (self.min_workers, self.workers) if n is not None)]
        if counts != sorted(counts):
            raise ValueError(
                f"workers must be at least 1, and min_workers from 1 to workers; got workers "
                f"{self.workers}, min_workers {self.min_workers}"
            )
        for name in ("restarts", "gpus_per_worker"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        share = self.gpus_per_worker
        if share and self.device == "cpu":
            raise ValueError(f"gpus_per_worker is {share:g}, and device is cpu; leave one out")
        if share == 0 and self.device == "gpu":
            raise ValueError("gpus_per_worker is 0, and device is gpu; leave one out")
        if share and share > 1:
            raise ValueError(
                f"a worker uses one GPU, and gpus_per_worker is {share:g}; set it to 1 and "
                f"workers to {math.ceil(share * (self.workers or 1))}"
            )
        if share and share < 1 and counts[-1] > 1:
            raise ValueError(
                f"gpus_per_worker is {share:g} and workers is {counts[-1]}, but workers of one "
                "training cannot share a GPU (NCCL refuses it); set gpus_per_worker to 1, or "
                "workers to 1"
            )
        for name in ("cpus_per_worker", "local_cache_gb", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("micro_batch", "checkpoint_every_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def local_cache_bytes(self) -> int | None:
        """Returns `local_cache_gb` in bytes."""
        return None if self.local_cache_gb is None else int(self.local_cache_gb * 1e9)

    def on(self, gpus: int, most_workers: int = 1, cpus_per_gpu: float = 1) -> "Resources":
        """Returns the resources on a machine or cluster with this number of GPUs.

        A training may get `most_workers` if the user gave none; with 1, trainings run side by side.
        """
        share, workers = self.gpus_per_worker, self.workers
        if share is None:
            share = 0.0 if self.device == "cpu" or (self.device == "auto" and not gpus) else 1.0
        if workers is None:
            several = min(gpus, most_workers) if share == 1 else 1
            workers = max(1, several, self.min_workers or 1)
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        given |= {"device": "gpu" if share else "cpu", "workers": workers, "gpus_per_worker": share}
        if self.cpus_per_worker is None:
            given["cpus_per_worker"] = max(1, int(min(_MOST_CPUS, cpus_per_gpu) * share))
        if self.compile == "auto" and not share:
            given["compile"] = "off"
        return Resources(**given)


@dataclass(frozen=True)
class Resources(ResourceOptions):
    """Resources in which nothing is left to choose.

    With `compile` auto, the workers are on GPUs, and decide (`WorkerRun`).
    """

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    compile: Literal["auto", "on", "off"] = "off"
    gpu_bytes: int = 0
    """Memory of the smallest GPU; 0 if it is not known, as on a cluster."""

    @property
    def fewest_workers(self) -> int:
        """Returns the number of workers that are needed to start."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def per_worker(self) -> dict[str, float]:
        """Returns the resources of one worker by Ray's names."""
        gpu = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpu}

    def scaling(self) -> "ScalingConfig":
        """Returns these resources as options of Ray Train."""
        from ray.train import ScalingConfig

        elastic = self.fewest_workers < self.workers
        workers: Any = (self.fewest_workers, self.workers) if elastic else self.workers
        return ScalingConfig(
            num_workers=workers,  # its type does not name the range that it takes
            use_gpu=self.gpus_per_worker > 0,
            resources_per_worker=self.per_worker,
        )


def room_for(resources: Resources) -> int:
    """Returns how many trainings fit into the cluster at once.

    Waits a minute for nodes that are joining; raises RunError if not even one fits then.
    """
    deadline = time.monotonic() + (_SECONDS_FOR_NODES_TO_JOIN if "RAY_ADDRESS" in os.environ else 0)
    said = False
    while (room := _room(resources, nodes := node_resources())) < 1:
        kinds = Counter((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes)
        found = (f"{count} x {cpu:g} CPUs and {gpu:g} GPUs" for (cpu, gpu), count in kinds.items())
        problem = f"a training needs {_needs(resources)}, and the nodes have "
        problem += ", ".join(found) or "nothing"
        if time.monotonic() >= deadline:
            raise RunError(f"{problem}; lower --workers, --cpus-per-worker or --gpus-per-worker")
        if not said:
            say(f"{problem}; waiting {_SECONDS_FOR_NODES_TO_JOIN:.0f} s for nodes to join")
            said = True
        time.sleep(1.0)
    return room


def waited_for(resources: Resources) -> str | None:
    """Returns what a training that has not started waits for; None if its workers have it.

    They hold it while they start, so free resources say nothing; Ray knows the pending requests.
    """
    import ray

    if not has_pending_requests():
        return None
    available: Callable[[], dict[str, float]] = ray.available_resources
    free = available()
    rest = " and ".join(f"{free.get(name, 0.0):g} {name}s" for name in resources.per_worker)
    return f"waiting for {_needs(resources)}; {rest} of the cluster are free"


def node_resources() -> list[dict[str, float]]:
    """Returns the resources of each node of the cluster, whether in use or free."""
    import ray

    nodes: list[dict[str, Any]] = cast(Any, ray).nodes()
    return [node["Resources"] for node in nodes if node["Alive"]]


def _room(resources: Resources, nodes: list[dict[str, float]]) -> int:
    return copies_that_fit(nodes, resources.per_worker) // resources.fewest_workers


def copies_that_fit(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Returns how often some resources, by Ray's names, fit into the nodes, each time into one."""
    return sum(
        # Not below the whole number that floats of thirds should have given.
        min(int(node.get(name, 0.0) / need + 1e-9) for name, need in needs.items())
        for node in nodes
    )


def _needs(resources: Resources) -> str:
    count, cpus = resources.fewest_workers, resources.cpus_per_worker
    workers = "a worker" if count == 1 else f"{count} workers, each"
    gpu = f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    return f"{workers} with {cpus:g} CPU{'' if cpus == 1 else 's'}{gpu} of one node"
