"""The Ray Data chain of preprocessing: shard plans in, one small record per shard out.

    plans -> [task: decode the clips of a shard, write the shard] -> records -> driver

Frames never pass through the driver: the task that decodes a shard also writes it. A record is a
few dozen bytes, so the driver's memory does not grow with the data.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from stop_core.cache import CacheConfig, CacheJob, ShardPlan, write_shard
from stop_core.storage.paths import StoragePath
from stop_core.storage.private import first_line

from ..cli.console import RunError
from ..cli.progress_bar import Done
from ..cluster.session import quiet_ray_data, start_ray


def decode_shards(
    job: CacheJob, plans: Sequence[ShardPlan], data_root: StoragePath, timeout: float
) -> Iterator[Done]:
    """Decodes and writes shards on all CPUs of the cluster; yields once per finished shard.

    Every node can access the cache of the `job` and the absolute path `data_root`. A clip fails
    after `timeout` seconds. Raises RunError if a shard cannot be written, or a worker fails.
    """
    start_ray(job.cache, data_root)
    import ray.exceptions

    options = (job.config, data_root, job.cache.resolve(), timeout)
    try:
        for row in one_task_each(plans, write_shard_row, *options):
            if row["error"]:
                raise RunError(
                    f"cannot write the shard {row['shard']} to {job.cache}: {row['error']}. "
                    "Finished shards are kept. Fix the problem and run the same command again to "
                    "resume"
                )
            yield Done(clips=row["clips"], failures=row["failures"])
    except ray.exceptions.RayError as error:
        raise RunError(
            f"workers died while decoding ({first_line(error)}). "
            "Finished shards are kept; run the same command again to resume"
        ) from error


def one_task_each(
    plans: Sequence[ShardPlan], work: Callable[..., dict[str, Any]], *options: object
) -> Iterator[dict[str, Any]]:
    """Yields the result of `work({"plan": plan}, *options)` of each plan, each a task with one CPU.

    Ray must have been started.
    """
    import ray

    quiet_ray_data()
    # One block per plan: each task writes one shard, and reports it as soon as it is on disk. Ray
    # retries the task of a failed worker or node three times. That is safe, because a shard is
    # written atomically, and a command tries no clip of it twice.
    items = ray.data.from_items([{"plan": plan} for plan in plans], override_num_blocks=len(plans))
    function = cast(Callable[[dict[str, Any]], dict[str, Any]], work)  # with fn_args
    yield from items.map(function, fn_args=options, num_cpus=1).iter_rows()


def write_shard_row(
    row: dict[str, Any],
    config: CacheConfig,
    data_root: StoragePath,
    cache: StoragePath,
    timeout: float,
) -> dict[str, Any]:
    """Makes one shard in a worker. A row carries its error, so that no error stops the chain."""
    plan: ShardPlan = row["plan"]
    done = {"shard": plan.name, "clips": 0, "failures": 0, "error": ""}
    try:
        record = write_shard(plan, config, data_root, cache, timeout=timeout)
    except OSError as error:
        return done | {"error": str(error)}
    failures = sum(failure.stage == "decode" for failure in record.failures)
    return done | {"clips": record.rows + failures, "failures": failures}
