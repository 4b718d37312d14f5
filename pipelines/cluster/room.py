"""Number of trainings that the cluster can run at once."""

import os
import time
from collections.abc import Callable

import ray

from ..cli.console import say
from ..cli.errors import RunError
from .resources import Resources

_SECONDS_FOR_NODES_TO_JOIN = 60.0  # after a node failed, or a cluster was started


def room_for(resources: Resources) -> int:
    """Returns how many trainings fit into the cluster at once; waits for nodes that are joining.

    Raises:
        RunError: if not even one fits after a minute.
    """
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
