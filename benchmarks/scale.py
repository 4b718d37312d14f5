"""Where does a GPU wait, and for what? A model of reading, fetching, computing and reducing.

    python benchmarks/scale.py                        # the table: 1 to 256 GPUs, disk, NFS, S3
    python benchmarks/scale_nodes.py                  # the model against measured epochs

A cache of D bytes in shards is trained on by n nodes. An epoch lasts as long as its slowest part,
because clips are fetched and read ahead: computing and reducing, reading from the node's own disk,
the server that all nodes share, and the node's connection. The bytes that a node fetches are
counted, not modelled: the order of the clips is that of a training (`epoch_batches`), and the
copies that have room are chosen as `LocalShards` chooses them: those that are needed latest leave
first. Shards are fetched in the order of the steps that need them; a step waits for its own. All
constants are below, with their sources. The times of an H100 are modelled, too: nothing here was
measured on a GPU. Left out: memory that holds files of NFS, requests, and nodes of unequal speed.
"""

import heapq
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stop_core.cache.shards import usual_clips_per_shard
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import Shuffle, TrainingOptions
from stop_core.training.order import epoch_batches

GB, GOAL = 1e9, 0.9
GPUS_PER_NODE = 8
S3 = 1.0 * GB
"""Bytes per second of a node's connection to the store: what the goal names."""
NFS_SERVER = 5.0 * GB
"""Bytes per second of one file server for all nodes: an assumption, 50 Gbit/s less a fifth."""
DISK = 5.0 * GB
"""Bytes per second that a node reads from its disk: an assumption, one NVMe disk of PCIe 4."""
COPY = 6.7 * GB
"""Bytes per second of one reader from the page cache into a tensor: docs/benchmarks.md."""
NVLINK, NETWORK = 150 * GB, 12 * GB
"""Bytes per second of a sum over the GPUs of a node, and over nodes: assumptions for an H100 with
one network card of 100 Gbit/s for a node."""
LATENCY = 50e-6
"""Seconds of a sum of few bytes, for each doubling of the GPUs: an assumption."""


@dataclass(frozen=True)
class Work:
    """A cache of Kinetics-400, and what trains on it."""

    name: str
    clip_bytes: float
    """Size of a cached clip."""
    read: float
    """Part of them that the model reads: its frames of those that are cached."""
    batch: int
    """Clips of a step on one GPU."""
    step: float
    """Seconds of a step: `benchmarks/kernels.py`, a roofline of an H100 in bf16, not measured."""
    gradients: float
    """Bytes that are summed over the GPUs: the trained parameters of STOP in float32."""
    clips: int
    rows: int
    """Clips of a shard."""

    @property
    def shard_bytes(self) -> float:
        """Bytes of a shard."""
        return self.rows * self.clip_bytes


CLIPS, WHOLE, SQUARE = 240_000, 32 * 256 * 340 * 3, 12 * 224 * 224 * 3
_MANY = CLIPS, usual_clips_per_shard(CLIPS, WHOLE)
_FEW = CLIPS, usual_clips_per_shard(CLIPS, SQUARE)
WORKS = (
    Work("ViT-L/14, 32 frames of the 32 cached (2.0 TB)", WHOLE, 1.0, 8, 0.837, 38.8e6, *_MANY),
    Work(
        "ViT-B/16, 12 frames of the 32 cached (2.0 TB)", WHOLE, 12 / 32, 32, 0.140, 16.1e6, *_MANY
    ),
    Work("ViT-B/16, 12 frames of the 12 cached (0.43 TB)", SQUARE, 1.0, 32, 0.140, 16.1e6, *_FEW),
)


@dataclass(frozen=True)
class Storage:
    """Where the cache is, and how it is read."""

    name: str
    node: float
    """Bytes per second that reach one node; infinite for its own disk."""
    shared: float = math.inf
    """Bytes per second for all nodes together."""
    copies: float = 0.0
    """Bytes of a node's disk for copies of whole shards; 0: the clips themselves are read."""
    shuffle: Shuffle = "global"


STORAGES = (
    Storage("own disk, which has the whole cache", math.inf),
    Storage("NFS", NETWORK, NFS_SERVER),
    Storage("S3, global shuffle, copies 4 TB", S3, copies=4e12),
    Storage("S3, global shuffle, copies 0.5 TB", S3, copies=0.5e12),
    Storage("S3, shuffle by shards, copies 4 TB", S3, copies=4e12, shuffle="shards"),
    Storage("S3, shuffle by shards, copies 0.6 TB", S3, copies=0.6e12, shuffle="shards"),
    Storage("S3, global shuffle, ranges of bytes (not built)", S3),
)


def count_fetches(
    batches: Sequence[Sequence[int]], room: int, held: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """Counts the fetches of shards that are read in this order, with room for some of them.

    The shard that is needed latest, or not at all, makes room: no other rule fetches fewer.

    Args:
        batches: the shard of each clip of each batch.
        room: number of shards that have room, at least 1.
        held: those that are there at the beginning.

    Returns:
        The number of fetches of each batch, and the shards that are there at the end.
    """
    order = [shard for batch in batches for shard in batch]
    uses: dict[int, list[int]] = {}
    for place in range(len(order) - 1, -1, -1):
        uses.setdefault(order[place], []).append(place)
    there = set(held)
    latest = [(-uses[shard][-1] if shard in uses else -math.inf, shard) for shard in there]
    heapq.heapify(latest)
    counts = []
    for batch in batches:
        counts.append(0)
        for shard in batch:
            uses[shard].pop()
            if shard not in there:
                counts[-1] += 1
                while len(there) >= room:
                    # An entry of the past is never reached: each shard has one of the future.
                    there.discard(heapq.heappop(latest)[1])
                there.add(shard)
            heapq.heappush(latest, (-uses[shard][-1] if uses[shard] else -math.inf, shard))
    return counts, sorted(there)


def end_of_steps(fetches: Iterable[float], step: float) -> float:
    """Returns when the last step ends, if all shards are fetched one after another, ahead of them.

    Args:
        fetches: for each step, the seconds that its shards take that were not fetched before.
        step: seconds of a step.
    """
    fetched = end = 0.0
    for seconds in fetches:
        fetched += seconds
        end = max(end, fetched) + step
    return end


def epoch_orders(
    work: Work, batch: int, nodes: int, shuffle: Shuffle, epochs: int, node: int = 0
) -> list[list[list[int]]]:
    """Returns the batches of one node for each epoch: clip numbers, in a training's order."""
    config = ExperimentConfig(batch_size=batch, training=TrainingOptions(shuffle=shuffle))
    names = [f"{clip // work.rows}" for clip in range(work.clips)] if shuffle == "shards" else ()
    orders = []
    for epoch in range(epochs):
        batches = epoch_batches(work.clips, config, epoch, names)
        if shuffle == "shards":  # neighbouring places of the batch
            orders.append([np.array_split(some, nodes)[node].tolist() for some in batches])
        else:
            orders.append([some[node::nodes] for some in batches])
    return orders


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch."""

    compute: float
    causes: dict[str, float]
    """How long it lasts if a GPU waits for one cause only."""
    fetched: float
    """Bytes that one node fetches."""

    @property
    def seconds(self) -> float:
        """The whole epoch: clips are fetched, read and copied ahead, at the same time."""
        return max(self.causes.values())

    @property
    def busy(self) -> float:
        """Share of the time in which a GPU computes."""
        return self.compute / self.seconds

    @property
    def waits_for(self) -> str:
        """The cause of most of the waiting."""
        return max(self.causes, key=lambda name: self.causes[name])


def model_epoch(
    work: Work, storage: Storage, gpus: int, nodes: int, fetches: Sequence[float]
) -> Epoch:
    """Returns the seconds of an epoch in which a node fetches these bytes for each step."""
    speed = NETWORK if nodes > 1 else NVLINK
    summing = 2 * (gpus - 1) / gpus * work.gradients / speed
    # Sums run beside the backward pass, two thirds of a step.
    reduce = math.log2(gpus) * LATENCY + max(0.0, summing - work.step * 2 / 3)
    read = work.clips * work.clip_bytes * work.read
    from_disk = storage.copies or storage.node == math.inf
    causes = {
        "sum": len(fetches) * (work.step + reduce),
        "disk": (read / nodes + sum(fetches)) / DISK if from_disk else 0.0,
        "copy": read / gpus / COPY,
    }
    for cause, rate in (("network", storage.node), ("server", storage.shared / nodes)):
        causes[cause] = end_of_steps((some / rate for some in fetches), work.step)
    return Epoch(len(fetches) * work.step, causes, sum(fetches))


def model(
    work: Work, storage: Storage, gpus: int, epochs: int = 3, per_node: int = GPUS_PER_NODE
) -> list[Epoch]:
    """Returns the first epochs of a training."""
    nodes, batch = -(-gpus // per_node), work.batch * gpus
    if not storage.copies:
        steps = -(-work.clips // batch)
        clips = 0.0 if storage.node == math.inf else work.clips / nodes / steps
        fetches = [clips * work.clip_bytes * work.read] * steps
        return [model_epoch(work, storage, gpus, nodes, fetches)] * epochs
    room, found, held = int(storage.copies / work.shard_bytes), [], list[int]()
    for batches in epoch_orders(work, batch, nodes, storage.shuffle, epochs):
        shards = [[clip // work.rows for clip in some] for some in batches]
        counts, held = count_fetches(shards, room, held)
        fetches = [count * work.shard_bytes for count in counts]
        found.append(model_epoch(work, storage, gpus, nodes, fetches))
    return found


@dataclass(frozen=True)
class ScaleBenchmark:
    """Model how busy a GPU is, and what it waits for."""

    gpus: tuple[int, ...] = (1, 8, 32, 256)
    """Numbers of GPUs, eight on a node."""


def main(options: ScaleBenchmark) -> None:
    """Prints tables in Markdown: the first epoch, and the third one if it differs."""
    for work in WORKS:
        print(f"\n{work.name}, shards of {work.shard_bytes / 1e6:.0f} MB\n")
        print("| storage |" + "".join(f" {gpus} GPU |" for gpus in options.gpus))
        print("|---|" + "---|" * len(options.gpus))
        for storage in STORAGES:
            cells = []
            for gpus in options.gpus:
                first, *_, later = map(_shown, model(work, storage, gpus))
                cells.append(first if first == later else f"{first}; {later}")
            print(f"| {storage.name} | {' | '.join(cells)} |", flush=True)


def _shown(epoch: Epoch) -> str:
    reasons = [epoch.waits_for] if epoch.busy < GOAL else []
    reasons += [f"{epoch.fetched / GB:,.0f} GB"] if epoch.fetched else []
    return f"{epoch.busy:.0%}" + (f" ({', '.join(reasons)})" if reasons else "")


if __name__ == "__main__":
    main(tyro.cli(ScaleBenchmark, config=(tyro.conf.FlagConversionOff,)))
