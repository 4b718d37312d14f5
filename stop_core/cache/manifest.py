"""The manifest, which lists the contents of a finished cache."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from annotated_types import Interval

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import (
    CACHE_FORMAT,
    CLIPS_PER_SHARD,
    JOB,
    MANIFEST,
    MOST_CLIPS_PER_SHARD,
    RECORDS,
    read_checked_json,
)
from stop_core.datasets import Split, Task, class_words
from stop_core.storage.atomic import hash_json
from stop_core.storage.documents import Name, Sha256, Whole, build
from stop_core.storage.paths import StoragePath


@dataclass(frozen=True)
class ShardEntry:
    """A shard with at least one row."""

    name: Name
    split: Split
    rows: Annotated[int, Interval(ge=1, le=MOST_CLIPS_PER_SHARD)]
    file_bytes: Whole
    sha256: Sha256


@dataclass(frozen=True)
class Manifest:
    """The contents of a finished cache, and a hash that identifies them."""

    format_version: int
    config: CacheConfig
    data_hash: Sha256
    """Hash of the configuration and the bytes of every shard."""
    counts: dict[Split, Whole]
    """Number of clips by split."""
    failures: Whole
    """Number of listed clips that are not in the cache; `failures.parquet` has the reasons."""
    failures_sha256: Sha256
    """SHA-256 of `failures.parquet`."""
    shards: tuple[ShardEntry, ...]
    clips_sha256: Sha256 | Literal[""] = ""
    """SHA-256 of `clips.parquet`; empty for a cache without it, whose shards are read instead."""

    @property
    def dataset(self) -> str:
        """Name of the dataset, for example "hmdb51"."""
        return self.config.dataset

    @property
    def task(self) -> Task:
        """ "recognition" if clips have a class, "retrieval" if they have only captions."""
        return self.config.task

    @property
    def fold(self) -> int:
        """Number of the dataset's official split, from 1."""
        return self.config.fold

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by label, in the dataset's spelling."""
        return self.config.class_names

    @property
    def class_words(self) -> tuple[str, ...]:
        """Class names by label, in English words."""
        return tuple(class_words(name) for name in self.class_names)

    def hash(self) -> str:
        """Returns the correct value of `data_hash`."""
        content = [[shard.name, shard.rows, shard.sha256] for shard in self.shards]
        return hash_json([self.config.to_dict(), content])

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, cache: StoragePath) -> "Manifest":
        """Reads the manifest; FileNotFoundError without a cache, ValueError if it is unfinished."""
        if not (cache / MANIFEST).is_file():
            _refuse_unfinished(cache)
        path = cache / MANIFEST
        values = read_checked_json(path)
        config = CacheConfig.from_dict(values.get("config"), path)
        manifest = build(cls, values | {"config": config.to_dict()}, path)
        # An edited manifest can have a correct checksum.
        counts, names = count_rows(config, manifest.shards), {s.name for s in manifest.shards}
        in_place = all(shard.name.startswith(f"{shard.split}-") for shard in manifest.shards)
        if (
            manifest.hash() != manifest.data_hash
            or counts != manifest.counts
            or len(names) < len(manifest.shards)
            or not in_place
        ):
            raise ValueError(
                f"{path} was changed: its data hash, its counts and its list of shards do not fit "
                "each other; delete it and run the same preprocess command again"
            )
        return replace(manifest, counts=counts)  # in the order of the splits


def count_rows(config: CacheConfig, shards: Sequence[ShardEntry]) -> dict[Split, int]:
    """Returns the number of clips of each split of a cache."""
    counts = dict.fromkeys(config.splits, 0)
    for shard in shards:
        counts[shard.split] = counts.get(shard.split, 0) + shard.rows
    return counts


@dataclass(frozen=True)
class JobFile:
    """The contents of `job.json`."""

    config: CacheConfig
    clips_per_shard: Annotated[int, Interval(ge=1, le=MOST_CLIPS_PER_SHARD)] = CLIPS_PER_SHARD
    format_version: int = CACHE_FORMAT


def read_job(cache: StoragePath) -> JobFile:
    """Reads the options of a cache; ValueError if they are invalid."""
    path = cache / JOB
    values = read_checked_json(path)
    config = CacheConfig.from_dict(values.get("config"), path)
    return build(JobFile, values | {"config": config.to_dict()}, path)


def _refuse_unfinished(cache: StoragePath) -> None:
    if not (cache / JOB).is_file():
        raise FileNotFoundError(
            f"there is no frame cache at {cache}: make one with `stop preprocess "
            f"--dataset NAME --data-root DIR --cache {shlex.quote(str(cache))}`"
        )
    config = read_job(cache).config
    done = sum(1 for _ in (cache / RECORDS).glob("[!.]*.json"))
    raise ValueError(
        f"the frame cache at {cache} is unfinished ({done} shards are complete, and it has no "
        f"{MANIFEST}): finish it with `{config.command(cache)}`"
    )
