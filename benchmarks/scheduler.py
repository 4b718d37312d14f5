"""Measures what one driver feeds: tiny Ray tasks, one per shard, run as preprocessing runs its own.

    python benchmarks/scheduler.py                        # 100,000 tasks
    python benchmarks/scheduler.py --tasks 2000 --through ray-data
    python benchmarks/scheduler.py --tasks 100000 --clips 8 --through tasks

Each task gets the plan of a shard and returns a record of a few bytes. `ray-data` is the code of
`stop preprocess` with a function that does nothing; `tasks` are plain Ray tasks, of which as many
are in flight as fit into twice the CPUs. Printed are tasks per second, and CPU milliseconds per
task of the driver, of Ray's processes of this node, and of the workers: on a busy machine, the rate
says nothing, and 1000 / the driver's milliseconds is what a driver with a dedicated CPU can feed.
Also the peak of the driver's memory, as the plans begin and at the end.
"""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import psutil
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cluster.session import start_ray
from pipelines.preprocessing.decode_shards import one_task_each
from stop_core.cache import ShardPlan
from stop_core.datasets import Clip


@dataclass(frozen=True)
class SchedulerBenchmark:
    """Count what a task costs the driver, Ray and the workers."""

    tasks: int = 100_000
    """Number of shards."""
    clips: int = 8
    """Clips of a shard."""
    through: tuple[Literal["ray-data", "tasks"], ...] = ("ray-data", "tasks")
    """The ways to run them."""


def main(options: SchedulerBenchmark) -> None:
    """Prints a line for each way."""
    print(options)
    plans = [_plan(number, options.clips) for number in range(options.tasks)]
    start_ray(dashboard=False)
    for way in options.through:
        run = one_task_each if way == "ray-data" else bounded_tasks
        for _ in run(plans[:50], do_nothing):  # workers start, and import
            pass
        peak, before, begin = _peak(), cpu_seconds(), time.perf_counter()
        done = sum(row["clips"] for row in run(plans, do_nothing))
        wall, after = time.perf_counter() - begin, cpu_seconds()
        if done != options.tasks * options.clips:
            raise SystemExit(f"{done} clips of {options.tasks * options.clips} were done")
        costs = ", ".join(
            f"{role} {(after[role] - before[role]) / options.tasks * 1e3:.2f}" for role in after
        )
        print(
            f"{way}: {options.tasks} tasks, {options.tasks / wall:.0f} a second; CPU ms a task: "
            f"{costs}; driver {peak} MiB, then {_peak()} MiB",
            flush=True,
        )


def do_nothing(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a record like that of a shard."""
    plan: ShardPlan = row["plan"]
    return {"shard": plan.name, "clips": len(plan.clips), "failures": 0, "error": ""}


def bounded_tasks(plans: list[ShardPlan], work: Any) -> Iterator[dict[str, Any]]:
    """Yields the results of plain tasks, of which a bounded number is in flight."""
    import ray

    task = ray.remote(num_cpus=1)(work)
    most = 2 * int(cast(Any, ray).cluster_resources()["CPU"])
    flying: list[Any] = []
    for plan in plans:
        if len(flying) >= most:
            done, flying = ray.wait(flying, num_returns=1)
            yield from ray.get(done)
        flying.append(task.remote({"plan": plan}))
    for result in flying:
        yield ray.get(result)


def cpu_seconds() -> dict[str, float]:
    """Returns the CPU seconds so far of the driver, Ray's processes, and the workers."""
    seconds = {"driver": 0.0, "Ray": 0.0, "workers": 0.0}
    driver = psutil.Process()
    for process in [driver, *driver.children(recursive=True)]:
        try:
            times, name = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        role = "workers" if "ray::" in name else "Ray"
        seconds["driver" if process == driver else role] += times.user + times.system
    return seconds


def _plan(number: int, clips: int) -> ShardPlan:
    names = (f"class{number % 400:03d}/clip{number:06d}-{i:03d}" for i in range(clips))
    made = tuple(Clip(n, f"videos/{n}.mp4", "train", 1, n[:8], n) for n in names)
    return ShardPlan(f"train-{number:05d}", "train", made)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main(tyro.cli(SchedulerBenchmark, config=(tyro.conf.FlagConversionOff,)))
