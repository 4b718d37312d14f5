"""Makes a cache, or resumes it from any state of an earlier attempt.

    ABSENT --open--> STARTED --every shard recorded, finish--> FINISHED
                        ^                                         |
                        +---- start: a source has changed --------+

STARTED has `job.json`; FINISHED also has `manifest.json`. An interruption leaves one of the three
states, and the same command resumes from there to the same bytes, even if `job.json` is lost: the
identity in each record shows whether its shard belongs to this job.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import (
    CACHE_FORMAT,
    CLIP_LIST,
    CLIPS_PER_SHARD,
    DATA,
    FAILURES,
    JOB,
    LOCK,
    MANIFEST,
    RECORDS,
    RETRY,
    remove_leftovers,
    write_checked_json,
)
from stop_core.cache.layout import CLIP_COLUMNS
from stop_core.cache.manifest import JobFile, Manifest, ShardEntry, count_rows, read_job
from stop_core.cache.shards import (
    Failure,
    ShardPlan,
    ShardRecord,
    begin_retry,
    plan_shards,
    still_to_retry,
    usual_clips_per_shard,
)
from stop_core.datasets import Clip
from stop_core.storage.atomic import appearing, hash_file, is_leftover
from stop_core.storage.documents import read_parquet
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath, local_file

_CONNECTIONS = 16
_KINDS = {"attempts": pa.int32()}
_FAILURES = pa.schema(
    [pa.field(f.name, _KINDS.get(f.name, pa.string()), nullable=False) for f in fields(Failure)]
)


@dataclass(frozen=True)
class CacheJob:
    """A cache to make: its folder, its options and its shards."""

    cache: StoragePath
    config: CacheConfig
    plans: tuple[ShardPlan, ...]

    @classmethod
    def open(
        cls,
        cache: StoragePath,
        config: CacheConfig,
        clips: Sequence[Clip],
        clips_per_shard: int | None = None,
    ) -> "CacheJob":
        """Starts a cache in an absent or empty folder, or resumes one with the same options.

        Of commands that start at the same moment, the first to write `job.json` wins. A resumed
        cache keeps the size of its shards; a new one has `usual_clips_per_shard` by default.
        Raises ValueError if the folder holds anything else; OSError if it cannot be written.
        """
        count = clips_per_shard or usual_clips_per_shard(len(clips), prod(config.shape))
        is_started = (cache / JOB).is_file()
        if not is_started and cache.is_dir():
            count = _count_in(cache, config, clips, [count, CLIPS_PER_SHARD])
        try:
            cache.mkdir(parents=True, exist_ok=True)
            if not is_started:
                job = asdict(JobFile(config, count)) | {"config": config.to_dict()}
                with suppress(FileExistsError):
                    write_checked_json(cache / JOB, job, new=True)
            job_file = read_job(cache)
            differences, count = job_file.config.differences(config), job_file.clips_per_shard
            if clips_per_shard not in (None, count):
                differences.append(f"clips_per_shard is {count} there and {clips_per_shard} here")
            _refuse_differences(cache, differences)
            for folder in (DATA, RECORDS):
                inside(cache, folder).mkdir(exist_ok=True)
        except OSError as error:
            raise OSError(
                f"cannot write a cache to {cache} ({error.strerror or error}): "
                "choose another --cache, or ask for the permission"
            ) from error
        return cls(cache, config, tuple(plan_shards(clips, count)))

    def pending(self, data_root: StoragePath, retry_failed: bool = False) -> list[ShardPlan]:
        """Returns the shards that are missing or whose sources have changed.

        With `retry_failed`, also shards with a clip that did not decode, if an interrupted retry
        has not retried them already.
        """
        records = self._records()
        retried: frozenset[str] = frozenset()
        if retry_failed:
            complete = [record for record in records if record is not None]
            begin_retry(self.cache, complete)
            retried = still_to_retry(self.cache, complete)

        def is_done(plan: ShardPlan, record: ShardRecord | None) -> bool:
            return (
                record is not None
                and plan.name not in retried
                and record.matches_file(self.cache)
                and record.identity == plan.identity(self.config, plan.sources(data_root))
            )

        # Threads hide the latency of object stores.
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            done = pool.map(is_done, self.plans, records)
            return [plan for plan, ready in zip(self.plans, done, strict=True) if not ready]

    def _records(self) -> list[ShardRecord | None]:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(lambda plan: ShardRecord.load(self.cache, plan.name), self.plans))

    def is_finished(self) -> bool:
        """Returns whether the cache has a manifest, so that it can be read."""
        return (self.cache / MANIFEST).is_file()

    def start(self) -> None:
        """Removes the manifest, so that the cache cannot be read until `finish`."""
        (self.cache / MANIFEST).unlink(missing_ok=True)

    def finish(self) -> Manifest:
        """Writes clips, failures and the manifest; ValueError if a shard has no record."""
        records = self._records()
        complete = [record for record in records if record is not None]
        if len(complete) < len(records):
            missing = len(records) - len(complete)
            raise ValueError(f"{self.cache}: {missing} of {len(records)} shards are not complete")
        failures = [failure for record in complete for failure in record.failures]
        self._write(FAILURES, [asdict(failure) for failure in failures], _FAILURES)
        clips = []  # in a file: otherwise every process would open every shard for them
        for plan, record in zip(self.plans, complete, strict=True):
            failed = {failure.video_id for failure in record.failures}
            clips += [asdict(clip) for clip in plan.clips if clip.video_id not in failed]
        self._write(CLIP_LIST, clips, CLIP_COLUMNS)
        manifest = self._manifest(complete, len(failures))
        # Before the manifest: a finished cache is never cleaned again.
        remove_leftovers(self.cache)
        (self.cache / RETRY).unlink(missing_ok=True)
        write_checked_json(self.cache / MANIFEST, manifest.to_dict())
        return manifest

    def _write(self, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        with appearing(self.cache / name) as staging:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), staging)

    def _manifest(self, records: Sequence[ShardRecord], failures: int) -> Manifest:
        shards = tuple(
            ShardEntry(r.name, r.split, r.rows, r.file_bytes, r.sha256) for r in records if r.rows
        )
        manifest = Manifest(
            format_version=CACHE_FORMAT,
            config=self.config,
            data_hash="",
            counts=count_rows(self.config, shards),
            failures=failures,
            failures_sha256=hash_file(self.cache / FAILURES),
            clips_sha256=hash_file(self.cache / CLIP_LIST),
            shards=shards,
        )
        return replace(manifest, data_hash=manifest.hash())


def read_failures(cache: StoragePath) -> list[Failure]:
    """Returns the failures of a finished cache, in the order of the clip list."""
    with local_file(cache / FAILURES) as path:
        table = read_parquet(path, _FAILURES)
    return [Failure(**row) for row in table.to_pylist()]


def _count_in(
    cache: StoragePath, config: CacheConfig, clips: Sequence[Clip], counts: Sequence[int]
) -> int:
    """Returns the first of `counts` that fits the shards of a folder; ValueError if none does."""
    names = {path.name for path in cache.iterdir() if not is_leftover(path)} - {LOCK, JOB}
    if not names:
        return counts[0]
    if names - {DATA, RECORDS, CLIP_LIST, FAILURES, MANIFEST, RETRY} or not names & {DATA, RECORDS}:
        raise ValueError(f"{cache} holds files but no frame cache: choose another --cache")
    if MANIFEST in names:
        _refuse_differences(cache, Manifest.load(cache).config.differences(config))
    found = {
        path: path.name.removesuffix(suffix)
        for folder, suffix in ((DATA, ".parquet"), (RECORDS, ".json"))
        for path in (cache / folder).glob("[!.]*")
    }
    records = [ShardRecord.load(cache, name) for name in set(found.values())]
    lengths = {r.name: r.rows + len(r.failures) for r in records if r is not None}
    for count in counts:
        plans = {plan.name: len(plan.clips) for plan in plan_shards(clips, count)}
        strange = [
            path
            for path, name in found.items()
            if name not in plans or lengths.get(name, plans[name]) != plans[name]
        ]
        if not strange:
            return count
    raise ValueError(f"{strange[0]} does not belong to this frame cache: choose another --cache")


def _refuse_differences(cache: StoragePath, differences: Sequence[str]) -> None:
    if differences:
        raise ValueError(
            f"{cache} was made with other options: {'; '.join(differences)}. "
            "Choose another --cache, or give the same options"
        )
