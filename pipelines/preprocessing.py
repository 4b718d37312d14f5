"""The Ray Data chain of preprocessing: shard plans in, one small record a shard out.

    plans -> [task: decode the clips of a shard, write the shard] -> records -> driver

Frames never leave the task that decoded them but for the shard file; a record is a few dozen
bytes, so the driver's memory does not grow with the data.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.command_line import RunError
from pipelines.progress import Pace, console, told
from pipelines.ray_session import start_ray
from stop_core.cache import CacheConfig, CacheJob, ShardPlan, write_shard
from stop_core.decoding.process import DECODE_TIMEOUT
from stop_core.storage import StoragePath, storage_path


@dataclass(frozen=True)
class ShardDone:
    """What the driver learns of a shard that is complete."""

    clips: int
    """Files that were there to be decoded."""
    failures: int
    """How many of them could not be."""


def decode_shards(
    job: CacheJob,
    plans: Sequence[ShardPlan],
    data_root: StoragePath,
    timeout: float = DECODE_TIMEOUT,
) -> Iterator[ShardDone]:
    """Decodes and writes shards on all CPUs of the cluster; yields as each is complete.

    Args:
        job: the cache to write to; its folder is seen by every node.
        plans: the shards to make.
        data_root: an absolute path that every node sees.
        timeout: seconds that one clip may take to decode.

    Raises:
        RunError: if a shard cannot be written, or a worker dies. Complete shards stay.
    """
    start_ray()
    import ray
    import ray.exceptions

    quiet(ray.data.DataContext.get_current())
    # One block a plan: a task is then one shard, and reports as soon as that is on disk. Ray runs
    # the task of a worker or node that dies three times more, which is safe: a shard is whole or
    # absent, and a command tries no clip of it twice.
    records = ray.data.from_items(
        [{"plan": plan.to_json()} for plan in plans], override_num_blocks=len(plans)
    ).map(
        write_shard_row,
        fn_kwargs={
            "config": json.dumps(job.config.to_dict()),
            "data_root": str(data_root),
            "cache": str(job.cache.resolve()),
            "timeout": timeout,
        },
        num_cpus=1,
    )
    try:
        for row in records.iter_rows():
            if row["error"]:
                raise RunError(
                    f"cannot write the shard {row['shard']} to {job.cache}: {row['error']}. "
                    "What is complete stays; mend this and run the same command again"
                )
            yield ShardDone(clips=row["clips"], failures=row["failures"])
    except ray.exceptions.RayError as error:
        raise RunError(
            f"workers died while decoding ({first_line(error)}). "
            "What is complete stays; run the same command again to go on"
        ) from error


def write_shard_row(
    row: dict[str, Any],
    config: str,
    data_root: str,
    cache: str,
    timeout: float,
) -> dict[str, Any]:
    """Makes one shard in a worker. An error is a value in the row, so that none stops the chain."""
    plan = ShardPlan.from_json(row["plan"])
    done = {"shard": plan.name, "clips": 0, "failures": 0, "error": ""}
    cache_config = CacheConfig.from_dict(json.loads(config))
    try:
        record = write_shard(
            plan,
            cache_config,
            storage_path(data_root),
            storage_path(cache),
            timeout=timeout,
        )
    except OSError as error:
        return done | {"error": str(error)}
    failures = sum(failure.stage == "decode" for failure in record.failures)
    return done | {"clips": record.rows + failures, "failures": failures}


class Progress:
    """How far the clips have come: a bar on a terminal, elsewhere a line about every 10 seconds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.clips = 0
        self.failures = 0
        self._pace = Pace()
        self._console = console(stderr=True)

    def follow(self, shards: Iterator[ShardDone]) -> None:
        """Takes shards as they are complete, until there are no more."""
        if not self._console.is_terminal:
            with told(self._line):
                for done in shards:
                    self._count(done)
            return
        from rich import progress
        from rich.text import Text

        class Left(progress.ProgressColumn):
            def render(column, task: progress.Task) -> Text:
                return Text(self._left().lstrip(", "))

        columns = (
            progress.TextColumn("decoding"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("clips, {task.fields[failed]} failed"),
            Left(),
        )
        with progress.Progress(*columns, console=self._console) as bar:
            task = bar.add_task("", total=self.total, failed=0)
            for done in shards:
                self._count(done)
                bar.update(task, completed=self.clips, failed=self.failures)

    def _count(self, done: ShardDone) -> None:
        self.clips += done.clips
        self.failures += done.failures

    def _line(self) -> str:
        counts = f"decoded {self.clips} of {self.total} clips, {self.failures} failed"
        return counts + self._left()

    def _left(self) -> str:
        return self._pace.left(self.clips, self.total)


def quiet(context: Any) -> None:
    """Turns off what Ray Data prints about its executions; progress is told by `Progress`."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It warns that the bars are off, and reports the end of every execution.
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def first_line(error: Exception) -> str:
    """What can be shown of an error of a worker."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), "no reason given"
    )
