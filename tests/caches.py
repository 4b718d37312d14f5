"""Small frame caches for the tests of other modules."""

from pathlib import Path
from typing import Any

from stop_core.cache import CacheConfig, CacheJob, write_shard
from stop_core.datasets import DATASETS, select_clips


def write_cache(dataset: str, root: Path, folder: Path, fold: int = 1, **options: Any) -> Path:
    """Makes a finished cache of all clips of a dataset; returns `folder`.

    Args:
        dataset: name of the dataset.
        root: its folder.
        folder: of the cache.
        fold: number of the fold.
        options: of `CacheConfig.of`, such as `frames` and `size`.
    """
    selection = select_clips(DATASETS[dataset].read(root, fold))
    config = CacheConfig.of(DATASETS[dataset], selection, fold=fold, **options)
    job = CacheJob.open(folder, config, selection.clips)
    for plan in job.plans:
        write_shard(plan, config, root, job.cache)
    job.finish()
    return folder
