"""How often a machine fetches a shard in an epoch, by order of the clips and bound on the disk.

    python benchmarks/local_cache.py --clips 220000 --batch-size 256 --machines 4

Counts the downloads of one machine with the orders of `stop_core/training/order.py` and the rule of
eviction of `stop_core/cache/fetching.py` (what is needed latest makes room), without any download.
Some epochs fill the disk, and the next one is counted.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from unittest.mock import patch

import tyro

from stop_core.cache.fetching import _Plan
from stop_core.runtime import distributed
from stop_core.runtime.distributed import my_block, my_share
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training.order import epoch_batches


@dataclass(frozen=True)
class LocalCacheBenchmark:
    """The training and its machines."""

    clips: int = 220_000
    clips_per_shard: int = 64
    batch_size: int = 256
    machines: int = 4
    workers: int = 8
    """Workers of each machine."""
    bounds: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    """Disk space of a machine for copies, as shares of the cache."""
    epochs: int = 8
    """Before the one that is counted."""


def main(options: LocalCacheBenchmark) -> None:
    """Prints a row for each bound: downloads, per shard of this machine's part of the clips."""
    shards = [str(clip // options.clips_per_shard) for clip in range(options.clips)]
    count = math.ceil(options.clips / options.clips_per_shard)
    config = ExperimentConfig(batch_size=options.batch_size)
    by_shards = replace(config, training=TrainingOptions(shuffle="shards"))
    plans = {
        one.training.shuffle: [
            _plan(options, one, epoch, shards) for epoch in range(options.epochs + 1)
        ]
        for one in (config, by_shards)
    }
    first = plans["shards"][0]
    window = max(len({name for names in first[n : n + 4] for name in names}) for n in range(500))
    print(f"{options}: {count} shards; 4 batches by shards need {window} of them on a machine")
    for share in options.bounds:
        bound = int(share * count)
        cells = []
        for name, epochs in plans.items():
            held: set[str] = set()
            for plan in epochs:
                fetched, held = _fetched(plan, held, bound)
            cells.append(f"{name} {fetched / (count / options.machines):.2f}")
        print(f"bound {share:.0%} of the cache ({bound} shards): {', '.join(cells)}")


def _plan(
    options: LocalCacheBenchmark, config: ExperimentConfig, epoch: int, shards: Sequence[str]
) -> list[list[str]]:
    """Returns the shards that the first machine needs for each batch."""
    part = my_block if config.training.shuffle == "shards" else my_share
    with patch.object(distributed, "world_size", lambda: options.machines * options.workers):
        return [
            [shards[clip] for rank in range(options.workers) for clip in part(batch, rank)]
            for batch in epoch_batches(options.clips, config, epoch, shards)
        ]


def _fetched(plan: list[list[str]], held: set[str], bound: int) -> tuple[int, set[str]]:
    """Returns the number of downloads of an epoch, and the copies at its end."""
    needs, held, fetched = _Plan(plan), set(held), 0
    latest = [(-needs.next_use(name), name) for name in held]  # some of them outdated
    heapq.heapify(latest)
    for needs.at, names in enumerate(plan):
        for name in names:
            if name not in held:
                fetched += 1
                while len(held) >= bound:
                    use, other = heapq.heappop(latest)
                    if -needs.next_use(other) == use:
                        held.discard(other)
                held.add(name)
        needs.at += 1
        for name in {*names} & held:
            heapq.heappush(latest, (-needs.next_use(name), name))
    return fetched, held


if __name__ == "__main__":
    main(tyro.cli(LocalCacheBenchmark))
