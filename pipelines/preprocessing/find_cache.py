"""Finding the frame cache of a training."""

from pathlib import Path

from stop_core.cache.integrity import check_footers
from stop_core.cache.manifest import Manifest
from stop_core.storage.paths import StoragePath, storage_path

EMBEDDED = "motion"


def find_cache(cache: str | None, output: Path) -> StoragePath:
    """Returns the finished cache at `cache`; None means the embedded set, made if absent.

    Raises:
        OSError: if there is no cache at `cache`; the message contains the command that makes one.
        ValueError: if the cache is unfinished, or a size or footer differs from the manifest's.
    """
    if cache is not None:
        path = storage_path(cache)
        manifest = Manifest.load(path)
        if isinstance(path, Path):  # a file from an object store is hashed on arrival
            check_footers(path, manifest.config, manifest.shards)
        return path
    from .make_cache import PreprocessConfig, make_cache

    config = PreprocessConfig(dataset=EMBEDDED, output=output)
    make_cache(config)
    return config.cache_path
