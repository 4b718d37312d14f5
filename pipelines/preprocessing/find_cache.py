"""Finding the frame caches of a training, and of a transfer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stop_core.cache.integrity import check_footers
from stop_core.cache.manifest import Manifest
from stop_core.datasets.registry import division
from stop_core.storage.paths import StoragePath, storage_path

EMBEDDED = "motion"


def find_cache(cache: str | None, output: StoragePath) -> StoragePath:
    """Returns the finished cache at `cache`; None means the embedded set, made if absent.

    Raises OSError, with the command that makes one, if there is no cache; ValueError if it is
    unfinished, or a size or footer differs from the manifest's.
    """
    return _find(cache, output)[0]


def _find(cache: str | None, output: StoragePath) -> tuple[StoragePath, Manifest]:
    if cache is not None:
        path = storage_path(cache)
        manifest = Manifest.load(path)
        if isinstance(path, Path):  # a file from an object store is hashed on arrival
            check_footers(path, manifest.config, manifest.shards)
        return path, manifest
    from .make_cache import PreprocessConfig, make_cache

    config = PreprocessConfig(dataset=EMBEDDED, output=output)
    return config.cache_path, make_cache(config)


def find_folds(caches: str | None, output: StoragePath) -> dict[StoragePath, Manifest]:
    """Returns the caches that are separated by commas, with their manifests; by default, the one.

    Raises as `find_cache`, and ValueError if they are not of different folds of one dataset.
    """
    found: dict[StoragePath, Manifest] = {}
    for name in caches.split(",") if caches else [None]:
        path, manifest = _find(name, output)
        for other in found.values():
            if not _are_folds(manifest, other):
                raise ValueError(
                    f"--cache names several caches, and {path} is not another fold of "
                    f"{division(other.dataset, other.fold)} made with the same options; name one "
                    "cache, or one of each fold"
                )
        found[path] = manifest
    return found


def _are_folds(one: Manifest, other: Manifest) -> bool:
    same = replace(one.config, fold=other.fold, clips_hash=other.config.clips_hash)
    return one.fold != other.fold and same == other.config


def find_targets(caches: Sequence[str], output: StoragePath) -> list[dict[StoragePath, Manifest]]:
    """Returns the caches of each table of a transfer: the folds of a dataset share one.

    Each of `caches` can be several, separated by commas. Raises as `find_cache`.
    """
    targets: list[dict[StoragePath, Manifest]] = []
    for name in [name for text in caches for name in text.split(",") if name]:
        path, manifest = _find(name, output)
        fitting = (one for one in targets if all(_are_folds(manifest, m) for m in one.values()))
        if (target := next(fitting, None)) is None:
            targets.append(target := {})
        target[path] = manifest
    return targets
