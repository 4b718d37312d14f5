"""Measures the cost of comparing a cache with its manifest.

Bytes that are read are exact counts. Times are of this process's processor time, which a busy
machine disturbs less than the clock: one hash of every shard, as a training does it in the
background of its first epoch on a machine, against the steps of that epoch.

    python benchmarks/integrity.py                                  # the tiny tower
    python benchmarks/integrity.py --tower ViT-B-32-quickgelu --clips 64 --batch-size 4 --steps 3
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.read import Config, write_cache
from stop_core.cache import FrameCache, hashed


@dataclass(frozen=True)
class IntegrityBenchmark:
    """Count the bytes that are hashed, and compare with the steps of an epoch."""

    tower: str = "tiny"
    """Any open_clip ViT, with random weights; tiny and tiny-64 have their own."""
    clips: int = 512
    """Clips of an epoch."""
    frames: int = 12
    """Frames of a clip."""
    batch_size: int = 16
    """Clips of a step."""
    steps: int = 12
    """Timed steps, after one that is not."""


def main(options: IntegrityBenchmark) -> None:
    """Prints bytes and seconds of the footers and of the contents, and their share of an epoch."""
    from stop_core.clip.loading import tower_shape

    shape = tower_shape(options.tower)
    assert shape is not None
    read: list[int] = []
    hash_file = hashed.hash_file

    def counted(path: Path) -> str:
        read.append(path.stat().st_size)
        return hash_file(path)

    hashed.hash_file = counted
    with tempfile.TemporaryDirectory() as name:
        os.environ[hashed.FOLDER_VARIABLE] = f"{name}/machine"
        made = Config(clips=options.clips, frames=options.frames, size=shape.image_size)
        cache = FrameCache(write_cache(made, Path(name), "none", "center"))
        print(f"{options.clips} clips, {len(cache.manifest.shards)} shards, {options}")
        footers = _seconds(lambda: len(cache.split("train").labels))
        print(f"sizes, footers and labels: {1000 * footers:.1f} ms, {sum(read)} bytes hashed")
        first = _seconds(cache.verify)
        print(f"contents, the first time: {1000 * first:.1f} ms, {sum(read)} bytes hashed")
        print(f"  of which the shards have {sum(e.file_bytes for e in cache.manifest.shards)}")
        read.clear()
        again = _seconds(cache.verify)
        print(f"contents, afterwards: {1000 * again:.1f} ms, {sum(read)} bytes hashed")
        epoch = _epoch_seconds(options, cache)
    print(f"an epoch: {epoch:.1f} s of processor time; the first hash is {first / epoch:.2%} of it")


def _epoch_seconds(options: IntegrityBenchmark, cache: FrameCache) -> float:
    """Processor time of an epoch, from some of its steps."""
    import torch

    from stop_core.clip.loading import load_clip
    from stop_core.model.methods import build_method
    from stop_core.runtime.devices import seed_weights
    from stop_core.settings.experiment import ExperimentConfig
    from stop_core.training.clip_views import ShownClips
    from stop_core.training.objectives import make_objective
    from stop_core.training.trainer import Trainer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = ExperimentConfig(tower=options.tower, batch_size=options.batch_size).for_dataset("x")
    seed_weights(0)
    model = build_method(config, load_clip(config.tower, None), len(cache.manifest.class_names))
    clips = ShownClips(cache.split("train"), config, model.image_size)
    objective = make_objective(model, config, cache.manifest, {"train": clips})
    steps = Trainer(model, config, clips, objective, shown=clips.in_epoch).steps(0)
    next(steps)
    taken = _seconds(lambda: [next(steps) for _ in range(options.steps)])
    return taken / options.steps * options.clips / options.batch_size


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main(tyro.cli(IntegrityBenchmark))
