"""Internals of Ray that a driver needs where no public name gives the same."""

import os
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address


def in_ray_job() -> bool:
    """Returns whether this process belongs to a Ray job, and works in a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def listen_on_loopback() -> bool:
    """Makes a Ray of this machine listen on loopback only; returns whether this release does.

    Otherwise its servers listen on all interfaces, protected by the token only. Ray has a switch
    for systems without clusters: it reads the environment when it is imported, and its processes
    read it when they start.
    """
    import ray.util

    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with suppress(ImportError):  # then the address below is not of loopback
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False
    address: Callable[[], str] = ray.util.get_node_ip_address
    return ip_address(address()).is_loopback


def has_pending_requests() -> bool:
    """Returns whether a task, an actor or a placement group of the cluster waits for resources."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    return bool(demands.ray_task_actor_demand or demands.placement_group_demand)
