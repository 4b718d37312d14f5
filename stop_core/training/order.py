"""The order of the training clips: which batch of an epoch shows which clips.

Both orders depend only on the settings and the epoch: not on the workers, nor on interruptions.

- global: a permutation of all clips.
- shards: each place of a batch has a lane, a part of the clips in a random order of the shards. A
  worker has neighbouring lanes, so the workers of a machine read few shards at a time. Groups of
  neighbouring lanes have the same shards in every epoch, so a machine finds its copies again.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from stop_core.settings.experiment import ExperimentConfig

_T = TypeVar("_T")
MIXED_SHARDS = 256
"""Number of shards that batches are drawn from at a time, in the order by shards; half of them at
the start and end of an epoch. Many lists are sorted by class, so a shard can have clips of one."""

LANE_GROUPS = 64
"""Number of groups of lanes, if it divides the batch size (otherwise their common divisor)."""


def epoch_batches(
    clips: int, config: ExperimentConfig, epoch: int, shards: Sequence[str] = ()
) -> list[list[int]]:
    """Returns the batches of an epoch: each clip (or pair) once, in an order by seed and epoch."""
    size = config.batch_size
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    if config.training.shuffle == "global":
        order: list[int] = torch.randperm(clips, generator=generator).tolist()
        return [order[i : i + size] for i in range(0, clips, size)]
    lanes = _lanes(shards, size, config.seed, generator)
    steps = max(map(len, lanes), default=0)
    return [[lane[step] for lane in lanes if step < len(lane)] for step in range(steps)]


def _lanes(
    shards: Sequence[str], size: int, seed: int, generator: torch.Generator
) -> list[list[int]]:
    """Divides the clips into lanes that differ in length by one at most.

    The longer ones are spread evenly, so that in the last batch, too, a worker has its own lanes.
    Every other lane is reversed: two lanes that share a shard begin with it, or end with it, so
    that it is not fetched twice.
    """
    shortest, rest = divmod(len(shards), size)
    longer = {n * size // rest for n in range(rest)}
    lengths = [shortest + (lane in longer) for lane in range(size)]
    drawn = _drawn(_by_shard(range(len(shards)), shards), torch.Generator().manual_seed(seed))
    in_every_epoch = [clip for clips in drawn for clip in clips]
    groups = math.gcd(size, LANE_GROUPS)
    lanes: list[list[int]] = []
    start = 0
    for group in range(groups):
        own = lengths[len(lanes) : (group + 1) * size // groups]
        members = _by_shard(in_every_epoch[start : start + sum(own)], shards)
        # Other groups can share the first and the last shard, which therefore keep their places.
        order = [*members[:1], *_drawn(members[1:-1], generator), *members[1:][-1:]]
        clips = _mixed(order, -(-MIXED_SHARDS // size), generator)
        for length in own:
            lanes.append(clips[:length][:: -1 if len(lanes) % 2 else 1])
            clips = clips[length:]
        start += sum(own)
    return lanes


def _by_shard(clips: Iterable[int], shards: Sequence[str]) -> list[list[int]]:
    """Returns the clips of each shard, in the order of their first clips."""
    members: dict[str, list[int]] = {}
    for clip in clips:
        members.setdefault(shards[clip], []).append(clip)
    return list(members.values())


def _drawn(items: Sequence[_T], generator: torch.Generator) -> list[_T]:
    return [items[n] for n in torch.randperm(len(items), generator=generator).tolist()]


def _mixed(order: Sequence[list[int]], count: int, generator: torch.Generator) -> list[int]:
    """Returns the clips of these shards; those of `count` neighbouring shards are mixed."""
    mixed = []
    for start in range(0, len(order), count):
        mixed += _drawn([c for clips in order[start : start + count] for c in clips], generator)
    return mixed
