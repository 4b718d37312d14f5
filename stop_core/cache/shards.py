"""Shards: the units of work, planned from the clip list, and written atomically."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import (
    CACHE_FORMAT,
    CLIPS_PER_SHARD,
    MOST_CLIPS_PER_SHARD,
    RETRY,
    read_checked_json,
    record_path,
    shard_path,
    write_checked_json,
)
from stop_core.datasets import SPLITS, Clip, Split
from stop_core.storage.atomic import hash_json
from stop_core.storage.documents import Name, Sha256, Whole, build
from stop_core.storage.paths import RemotePath, StoragePath

DECODING = 4
"""Version of the decoded frames: shards of an older version are made again."""
_CONNECTIONS = 16
_LEAST_CLIPS, _LEAST_BYTES, _MOST_BYTES = 16, 1 << 23, 1 << 29

Stamp = tuple[int, int]


@dataclass(frozen=True)
class Failure:
    """A listed clip that is in no shard."""

    video_id: str
    source_path: str
    split: str
    stage: str
    """"find": the file does not exist. "decode": its frames cannot be decoded."""
    error: str
    attempts: Whole
    """Number of attempts since the file last changed."""


@dataclass(frozen=True)
class ShardPlan:
    """The clips of one shard, all of one split."""

    name: str
    split: Split
    clips: tuple[Clip, ...]

    def sources(self, data_root: StoragePath) -> list[Stamp | None]:
        """Returns the size and mtime of every clip's file; None for a missing file."""
        paths = [data_root / clip.path for clip in self.clips]
        if isinstance(data_root, Path):
            return [_stamp(path) for path in paths]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(_stamp, paths))

    def identity(self, config: CacheConfig, sources: Sequence[Stamp | None]) -> str:
        """Returns a hash of the options, clips and source files, which an up-to-date shard has."""
        return hash_json([CACHE_FORMAT, DECODING, config.to_dict(), asdict(self), sources])


@dataclass(frozen=True)
class ShardRecord:
    """The record of a complete shard: its contents and the identity of its sources."""

    name: Name
    split: Split
    rows: Annotated[int, Interval(ge=0, le=MOST_CLIPS_PER_SHARD)]
    file_bytes: Whole
    """Size of the shard's file; 0 without a file, if no clip could be cached."""
    sha256: Sha256 | Literal[""]
    """SHA-256 of the shard's file; empty without a file."""
    identity: Sha256
    failures: tuple[Failure, ...]

    @classmethod
    def load(cls, cache: StoragePath, name: str) -> "ShardRecord | None":
        """Reads the record of a shard; None if it is missing or unusable."""
        try:
            path = record_path(cache, name)
            return build(cls, read_checked_json(path), path)
        except (FileNotFoundError, ValueError):
            return None  # the shard is then made again, with a new record

    @property
    def has_retriable(self) -> bool:
        """Whether a clip failed to decode. A missing file is retried anyway when it appears."""
        return any(failure.stage == "decode" for failure in self.failures)

    def matches_file(self, cache: StoragePath) -> bool:
        """Returns whether the shard's file has the recorded size."""
        path = shard_path(cache, self.name)
        try:
            return path.stat().st_size == self.file_bytes
        except FileNotFoundError:
            return self.file_bytes == 0


def usual_clips_per_shard(clips: int, clip_bytes: int) -> int:
    """Returns the clips per shard of a new cache: the power of two nearest to sqrt(N) / 8.

    So the number of shards and their size grow alike. A shard has at least 16 clips, so that a
    task lasts long enough for the scheduler, and 8 MiB, unless 64 clips are smaller; but at most
    512 MiB, unless one clip is larger. N are the clips of all splits.
    """
    count = 1
    while count < MOST_CLIPS_PER_SHARD and 2 * count * clip_bytes <= _MOST_BYTES:
        least = _LEAST_CLIPS if count * clip_bytes >= _LEAST_BYTES else CLIPS_PER_SHARD
        if count >= least and clips < 128 * count**2:  # sqrt(clips) / 8 < sqrt(2) * count
            break
        count *= 2
    return count


def plan_shards(clips: Sequence[Clip], clips_per_shard: int) -> list[ShardPlan]:
    """Divides clips into shards of one split each, in list order; every run has the same ones."""
    plans = []
    for split in SPLITS:
        chosen = [clip for clip in clips if clip.split == split]
        for number, start in enumerate(range(0, len(chosen), clips_per_shard)):
            members = tuple(chosen[start : start + clips_per_shard])
            plans.append(ShardPlan(f"{split}-{number:05d}", split, members))
    return plans


def _stamp(path: StoragePath) -> Stamp | None:
    try:
        status = path.stat()
    except OSError as error:
        if isinstance(path, RemotePath) and not isinstance(error, FileNotFoundError):
            raise  # the store does not answer: the source may exist
        return None
    return status.st_size, status.st_mtime_ns


def begin_retry(cache: StoragePath, records: Sequence[ShardRecord]) -> None:
    """Writes the hashes of the records that have retriable clips to `retry.json`, unless it exists.

    A retry changes the record, even if every clip fails again. So until the manifest is written, no
    clip is retried twice, after an interruption or when Ray repeats a task.
    """
    hashes = {r.name: hash_json(asdict(r)) for r in records if r.has_retriable}
    if hashes and not (cache / RETRY).is_file():
        write_checked_json(cache / RETRY, {"records": hashes})


def still_to_retry(cache: StoragePath, records: Sequence[ShardRecord]) -> frozenset[str]:
    """Returns the names of the shards among `records` that `begin_retry` saw, and as they were."""
    if not (cache / RETRY).is_file():
        return frozenset()
    begun = read_checked_json(cache / RETRY).get("records")
    if not isinstance(begun, dict):
        raise ValueError(f"{cache / RETRY} lists no records: delete it, and run the command again")
    return frozenset(r.name for r in records if begun.get(r.name) == hash_json(asdict(r)))
