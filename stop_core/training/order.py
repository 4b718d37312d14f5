"""The order of the training clips: which batch of an epoch shows which clips.

Both orders depend only on the settings and the epoch: not on the workers, nor on interruptions.

- global: a permutation of all clips.
- shards: each place of a batch has a lane, a part of the clips in a random order of the shards. A
  worker has neighbouring lanes, so the workers of a machine read few shards at a time, and every
  shard is read by one machine (a few by two).
"""

from collections.abc import Sequence

import torch

from stop_core.settings.experiment import ExperimentConfig

MIXED_SHARDS = 256
"""Number of shards that batches are drawn from at a time, in the order by shards; half of them at
the start and end of an epoch. Many lists are sorted by class, so a shard can have clips of one."""


def epoch_batches(
    clips: int, config: ExperimentConfig, epoch: int, shards: Sequence[str] = ()
) -> list[list[int]]:
    """Returns the batches of an epoch: each clip (or pair) once, in an order by seed and epoch.

    Args:
        clips: number of clips (or pairs).
        config: settings of the training.
        epoch: from 0.
        shards: the shard of each clip, for the order by shards.
    """
    size = config.batch_size
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    if config.training.shuffle == "global":
        order: list[int] = torch.randperm(clips, generator=generator).tolist()
        return [order[i : i + size] for i in range(0, clips, size)]
    lanes = _lanes(_by_shards(shards, -(-MIXED_SHARDS // size), generator), size)
    steps = max(map(len, lanes), default=0)
    return [[lane[step] for lane in lanes if step < len(lane)] for step in range(steps)]


def _by_shards(shards: Sequence[str], mixed: int, generator: torch.Generator) -> list[int]:
    """Returns clip numbers: the shards in a random order, and the clips of `mixed` shards mixed."""
    members: dict[str, list[int]] = {}
    for clip, shard in enumerate(shards):
        members.setdefault(shard, []).append(clip)
    groups = list(members.values())
    drawn = [groups[n] for n in torch.randperm(len(groups), generator=generator).tolist()]
    order = []
    for start in range(0, len(drawn), mixed):
        some = [clip for group in drawn[start : start + mixed] for clip in group]
        order += [some[n] for n in torch.randperm(len(some), generator=generator).tolist()]
    return order


def _lanes(order: Sequence[int], size: int) -> list[list[int]]:
    """Divides clips into lanes that differ in length by one at most.

    The longer ones are spread evenly, so that in the last batch, too, a worker has its own lanes.
    Every other lane is reversed: two lanes that share a shard begin with it, or end with it, so
    that it is not fetched twice.
    """
    shortest, rest = divmod(len(order), size)
    longer = {n * size // rest for n in range(rest)}
    lanes, start = [], 0
    for lane in range(size):
        end = start + shortest + (lane in longer)
        lanes.append(list(order[start:end])[:: -1 if lane % 2 else 1])
        start = end
    return lanes
