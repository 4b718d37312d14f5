"""Frame caches of small datasets, decoded without Ray: starting it would take longer."""

from pathlib import Path

from stop_core.cache import CacheConfig, CacheJob, write_shard
from stop_core.datasets import DATASETS, select_clips
from stop_core.datasets.motion.files import write_motion_dataset


def write_cache(name: str, root: Path, cache: Path, *, frames: int = 6, size: int = 32) -> Path:
    """Writes the clips of the dataset `name` below `root` into a cache; returns its folder."""
    dataset = DATASETS[name]
    selection = select_clips(dataset.read(root, 1))
    config = CacheConfig.of(dataset, selection, fold=1, frames=frames, size=size)
    job = CacheJob.open(cache, config, selection.clips)
    for plan in job.plans:
        write_shard(plan, config, root, job.cache)
    job.finish()
    return cache


def motion_cache(folder: Path) -> Path:
    """Writes a small motion set and its cache below `folder`; returns the cache."""
    write_motion_dataset(folder / "videos", train=64, test=16, seed=1)
    return write_cache("hmdb51", folder / "videos", folder / "cache")
