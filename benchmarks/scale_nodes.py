"""The model of `scale.py` against measured epochs, on storage of a limited speed.

    python benchmarks/scale_nodes.py                  # ten minutes, nearly no work

Three processes are three nodes, each with a separate disk. They read a made cache through the
reader of a training, in its order, and sleep where a GPU would compute; all wait for each other
after each step. Reading a shard from the storage takes its bytes over `SPEED`: of each node, or of
all nodes together. The measured bytes are exact. On a busy machine, the seconds can be longer.
"""

import io
import math
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scale import Storage, Work, epoch_orders, model
from stop_core.settings.training import Shuffle

NODES, CLIPS, ROWS, BATCH, EPOCHS = 3, 1536, 8, 32, 2
SPEED = 200e3
"""Bytes per second."""


@dataclass(frozen=True)
class Case:
    """An epoch of three nodes that is run."""

    name: str
    shuffle: Shuffle
    room: float
    """Part of the shards that has room on a node."""
    step: float
    """Seconds."""
    is_shared: bool = False
    """Whether the nodes share the speed of the storage."""


CASES = (
    Case("by shards", "shards", 1.0, 0.5),
    Case("by shards, long steps", "shards", 1.0, 3.0),
    Case("by shards, room for a quarter", "shards", 0.25, 0.5),
    Case("by shards, one server for all", "shards", 1.0, 0.5, is_shared=True),
    Case("global", "global", 1.0, 0.5),
    Case("global, room for a quarter", "global", 0.25, 0.5),
)


class _SlowPath(type(Path())):  # type: ignore[misc]
    """A folder whose shards are read at a limited speed."""

    free_at: Any
    """A time that all readers of the storage share, with its lock."""
    read_bytes_of_shards = 0

    def open(self, mode: str = "r", *arguments: Any, **options: Any) -> IO[Any]:
        if mode == "rb" and self.parent.name == "data":
            return _SlowFile(self)
        return cast(IO[Any], super().open(mode, *arguments, **options))


class _SlowFile(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        with _SlowPath.free_at.get_lock():
            end = max(time.monotonic(), _SlowPath.free_at.value) + len(data) / SPEED
            _SlowPath.free_at.value = end
            _SlowPath.read_bytes_of_shards += len(data)
        time.sleep(max(0.0, end - time.monotonic()))
        return data


def main() -> None:
    """Prints the bytes and seconds of each epoch, predicted and measured."""
    from benchmarks import read

    context = multiprocessing.get_context("spawn")
    print("| case, epoch | MB of a node, predicted / measured | seconds, predicted / measured |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        config = read.Config(clips=CLIPS, frames=2, size=32)
        cache = read.write_cache(config, Path(name), "none", "center", ROWS)
        clip_bytes = sum(path.stat().st_size for path in cache.glob("data/*")) / CLIPS
        for number, case in enumerate(CASES):
            work = Work(case.name, clip_bytes, 1.0, BATCH, case.step, 0.0, CLIPS, ROWS)
            room = int(case.room * CLIPS / ROWS) * work.shard_bytes * 1.001
            speeds = [context.Value("d", 0.0) for _ in range(NODES)]
            barrier, answers = context.Barrier(NODES), context.Queue()
            nodes = [
                context.Process(
                    target=_run_node,
                    args=(case, work, cache, f"{name}/{number}-{node}", node, int(room)),
                    kwargs={
                        "free_at": speeds[0 if case.is_shared else node],
                        "barrier": barrier,
                        "answers": answers,
                    },
                )
                for node in range(NODES)
            ]
            for node in nodes:
                node.start()
            found = [answers.get() for _ in nodes]
            for node in nodes:
                node.join()
            shared = SPEED if case.is_shared else math.inf
            storage = Storage("", SPEED, shared, room, case.shuffle)
            predicted = model(work, storage, NODES, EPOCHS, per_node=1)
            for epoch, expected in enumerate(predicted):
                fetched = sum(one[epoch][0] for one in found) / NODES / 1e6
                seconds = max(one[epoch][1] for one in found)
                print(
                    f"| {case.name}, {epoch + 1} | {expected.fetched / 1e6:.1f} / {fetched:.1f} | "
                    f"{expected.seconds:.0f} / {seconds:.0f} |",
                    flush=True,
                )


def _run_node(
    case: Case,
    work: Work,
    cache: Path,
    copies: str,
    node: int,
    room: int,
    *,
    free_at: Any,
    barrier: Any,
    answers: Any,
) -> None:
    """Trains on one node: reads as a training does, and sleeps where it computes."""
    import torch

    from stop_core.cache import FrameCache
    from stop_core.runtime.read_ahead import read_ahead

    os.environ["STOP_CACHE_FOLDER"], _SlowPath.free_at = copies, free_at
    clips = FrameCache(_SlowPath(cache), room).split("train")
    found = []
    batch = work.batch * NODES
    for batches in epoch_orders(work, batch, NODES, case.shuffle, EPOCHS, node):
        barrier.wait()
        before, begin = _SlowPath.read_bytes_of_shards, time.monotonic()
        with closing(read_ahead(clips, batches, torch.device("cpu"))) as reads:
            for _ in reads:
                time.sleep(case.step)
                barrier.wait()
        found.append((_SlowPath.read_bytes_of_shards - before, time.monotonic() - begin))
    answers.put(found)


if __name__ == "__main__":
    main()
