"""Finding the frame cache that a training is to use."""

from pathlib import Path

from stop_core.cache.integrity import check_footers
from stop_core.cache.manifest import Manifest
from stop_core.storage.paths import StoragePath, storage_path

EMBEDDED = "motion"


def find_cache(cache: str | None, output: Path) -> StoragePath:
    """Returns the finished cache at `cache`; None stands for the embedded set, made if need be.

    Raises:
        OSError: if there is no cache at `cache`; the message gives the command that makes one.
        ValueError: if the cache is unfinished, or a size or footer is not the manifest's.
    """
    if cache is not None:
        path = storage_path(cache)
        manifest = Manifest.load(path)
        if isinstance(path, Path):  # what is fetched from a store is hashed when it arrives
            check_footers(path, manifest.config, manifest.shards)
        return path
    from .make_cache import PreprocessConfig, make_cache

    config = PreprocessConfig(dataset=EMBEDDED, output=output)
    make_cache(config)
    return config.cache_path
