"""Shards: the unit of work, planned from the clip list alone and complete or absent."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import (
    CACHE_FORMAT,
    CLIPS_PER_SHARD,
    read_checked_json,
    record_path,
    shard_path,
)
from stop_core.datasets import SPLITS, Clip, Split
from stop_core.storage.atomic import hash_json
from stop_core.storage.documents import Name, Sha256, Whole, build
from stop_core.storage.paths import RemotePath, StoragePath

DECODING = 4
"""Counts the changes of the frames that a video yields: shards of before are made again."""
_CONNECTIONS = 16

Stamp = tuple[int, int]


@dataclass(frozen=True)
class Failure:
    """A listed clip that is in no shard."""

    video_id: str
    source_path: str
    split: str
    stage: str
    """"find": the file is not there. "decode": it does not yield its frames."""
    error: str
    attempts: Whole
    """How often this file was tried, as it is now."""


@dataclass(frozen=True)
class ShardPlan:
    """The clips that one shard is made from, all of one split."""

    name: str
    split: Split
    clips: tuple[Clip, ...]

    def sources(self, data_root: StoragePath) -> list[Stamp | None]:
        """Returns size and time of change of every clip's file; None where there is no file.

        Raises:
            OSError: if an object store does not answer.
        """
        paths = [data_root / clip.path for clip in self.clips]
        if isinstance(data_root, Path):
            return [_stamp(path) for path in paths]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:  # each question waits for an answer
            return list(pool.map(_stamp, paths))

    def identity(self, config: CacheConfig, sources: Sequence[Stamp | None]) -> str:
        """Returns a hash over configuration, clips and source files.

        A shard made under this identity need not be made again. A source that is replaced, edited
        or touched, or that appears or goes, changes it.
        """
        return hash_json([CACHE_FORMAT, DECODING, config.to_dict(), asdict(self), sources])

    def to_json(self) -> str:
        """Returns the plan as text, for the way to a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardPlan":
        """Reads back what `to_json` gave."""
        values = json.loads(text)
        clips = (Clip(**clip | {"captions": tuple(clip["captions"])}) for clip in values["clips"])
        return cls(values["name"], values["split"], tuple(clips))


@dataclass(frozen=True)
class ShardRecord:
    """Says that a shard is complete: what it holds and what it was made from."""

    name: Name
    split: Split
    rows: Annotated[int, Interval(ge=0, le=CLIPS_PER_SHARD)]
    file_bytes: Whole
    """Size of the shard's file; 0 where no clip of the shard could be cached, and no file is."""
    sha256: Sha256 | Literal[""]
    """Of the shard's file; empty where there is none."""
    identity: Sha256
    failures: tuple[Failure, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, cache: StoragePath, name: str) -> "ShardRecord | None":
        """Reads the record of a shard; None if there is none that can be used."""
        try:
            path = record_path(cache, name)
            return build(cls, read_checked_json(path), path)
        except (FileNotFoundError, ValueError):
            # An unreadable record means that the shard is made again, which mends it.
            return None

    @property
    def has_retriable(self) -> bool:
        """Whether a clip failed whose file is there; one that appears is noticed anyway."""
        return any(failure.stage == "decode" for failure in self.failures)

    def matches_file(self, cache: StoragePath) -> bool:
        """Whether the shard's file is there with the size that was recorded."""
        path = shard_path(cache, self.name)
        try:
            return path.stat().st_size == self.file_bytes
        except FileNotFoundError:
            return self.file_bytes == 0


def plan_shards(clips: Sequence[Clip], clips_per_shard: int = CLIPS_PER_SHARD) -> list[ShardPlan]:
    """Divides clips into shards of one split each, in the order of the list.

    The plan depends on the list alone, so every run of a command makes the same shards.
    """
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
            raise  # the store does not answer: that says nothing of the source
        return None
    return status.st_size, status.st_mtime_ns
