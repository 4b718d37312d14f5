"""The manifest: what a finished cache holds."""

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import JOB, MANIFEST, RECORDS, hash_json, read_json
from stop_core.datasets import Task, class_words
from stop_core.storage import StoragePath


@dataclass(frozen=True)
class ShardEntry:
    """A shard with at least one row."""

    name: str
    split: str
    rows: int
    file_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished cache holds, and a hash to tell it by."""

    format_version: int
    config: CacheConfig
    data_hash: str
    """Over the configuration and the bytes of every shard."""
    counts: dict[str, int]
    """Clips by split."""
    failures: int
    """Listed clips that are not in the cache; `failures.parquet` says why."""
    failures_sha256: str
    """Of `failures.parquet`."""
    shards: tuple[ShardEntry, ...]

    @property
    def dataset(self) -> str:
        """Name of the dataset, for example "hmdb51"."""
        return self.config.dataset

    @property
    def task(self) -> Task:
        """Whether the clips have a class, or captions alone."""
        return self.config.task

    @property
    def fold(self) -> int:
        """Which of the dataset's official divisions, from 1."""
        return self.config.fold

    @property
    def frames(self) -> int:
        """F, cached frames of a clip."""
        return self.config.frames

    @property
    def size(self) -> int:
        """Short side of a frame, in pixels."""
        return self.config.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label, as the dataset writes them."""
        return self.config.class_names

    @property
    def class_words(self) -> tuple[str, ...]:
        """Class names by label, in English words."""
        return tuple(class_words(name) for name in self.class_names)

    def hash(self) -> str:
        """Returns what `data_hash` has to be."""
        content = [[shard.name, shard.rows, shard.sha256] for shard in self.shards]
        return hash_json([self.config.to_dict(), content])

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, cache: StoragePath) -> "Manifest":
        """Reads the manifest of a finished cache.

        Raises:
            FileNotFoundError: if there is no cache; the message gives the command that makes one.
            ValueError: if the cache is unfinished or cannot be read; the message says what to do.
        """
        if not (cache / MANIFEST).is_file():
            _refuse_unfinished(cache)
        values = read_json(cache / MANIFEST)
        try:
            config = CacheConfig.from_dict(values.pop("config"))
            shards = tuple(ShardEntry(**shard) for shard in values.pop("shards"))
            counts = {split: values["counts"][split] for split in config.splits}
            _refuse_paths(cache, (config.dataset, *(shard.name for shard in shards)))
            manifest = cls(**values | {"config": config, "shards": shards, "counts": counts})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{cache / MANIFEST} cannot be read: preprocess again") from error
        _refuse_changes(cache, manifest)
        return manifest


def _refuse_changes(cache: StoragePath, manifest: Manifest) -> None:
    """The checksum of the file shows damage; this shows a manifest that was edited."""
    rows = Counter({split: 0 for split in manifest.counts})
    for shard in manifest.shards:
        rows[shard.split] += shard.rows
    in_place = all(shard.name.startswith(f"{shard.split}-") for shard in manifest.shards)
    if manifest.hash() != manifest.data_hash or rows != manifest.counts or not in_place:
        raise ValueError(
            f"{cache / MANIFEST} was changed: its data hash, its counts and its list of shards do "
            "not fit each other; delete it and run the same preprocess command again"
        )


def _refuse_paths(cache: StoragePath, names: Iterable[str]) -> None:
    """Names of files and folders are made of these, and must not lead elsewhere."""
    for name in names:
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
            raise ValueError(
                f"{cache / MANIFEST} holds the name {name!r}, which leads to another folder: do "
                "not use this cache, and preprocess the dataset yourself"
            )


def _refuse_unfinished(cache: StoragePath) -> None:
    if not (cache / JOB).is_file():
        raise FileNotFoundError(
            f"there is no frame cache at {cache}: make one with `python pipelines/preprocess.py "
            f"--dataset NAME --data-root DIR --cache {shlex.quote(str(cache))}`"
        )
    config = CacheConfig.from_dict(read_json(cache / JOB)["config"])
    done = sum(1 for _ in (cache / RECORDS).glob("[!.]*.json"))
    raise ValueError(
        f"the frame cache at {cache} is unfinished ({done} shards are complete, and it has no "
        f"{MANIFEST}): finish it with "
        f"`{config.command(cache)}`"
    )
