"""Checks every byte of a finished cache against the hashes from when it was made."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stop_core.cache.files import FAILURES, JOB, RECORDS, read_checked_json, record_path, shard_path
from stop_core.cache.manifest import Manifest, ShardEntry, read_job
from stop_core.cache.shards import ShardRecord
from stop_core.storage.atomic import hash_file
from stop_core.storage.documents import build
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath

_THREADS = 4  # hashing releases the GIL


@dataclass(frozen=True)
class Problem:
    """A file of a cache that has changed since it was made."""

    path: str
    found: str


def verify(cache: StoragePath) -> Iterator[Problem | None]:
    """Checks the manifest, then every file; yields a problem or None for each.

    Raises:
        FileNotFoundError, ValueError: if there is no finished cache, or its manifest is damaged.
    """
    manifest = Manifest.load(cache)
    yield None
    yield _check_job(cache, manifest)
    yield _check_hash(cache / FAILURES, manifest.failures_sha256)
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(
            lambda entry: _check_hash(shard_path(cache, entry.name), entry.sha256), manifest.shards
        )
    entries = {entry.name: entry for entry in manifest.shards}
    # A shard without any cached clip has a record and no file.
    names = entries.keys() | {p.name.removesuffix(".json") for p in _records(cache)}
    failures, readable = 0, True
    for name in sorted(names):
        problem, count = _check_record(cache, name, entries.get(name))
        failures, readable = failures + count, readable and problem is None
        yield problem
    if readable and failures != manifest.failures:
        yield _problem(
            cache / RECORDS,
            f"the records list {failures} failures and the manifest {manifest.failures}",
        )


def _records(cache: StoragePath) -> Iterator[StoragePath]:
    return (path for path in inside(cache, RECORDS).iterdir() if not path.name.startswith("."))


def _check_job(cache: StoragePath, manifest: Manifest) -> Problem | None:
    try:
        config = read_job(cache)
    except FileNotFoundError:
        return _problem(cache / JOB, "it is gone")
    except ValueError as error:
        return Problem(str(cache / JOB), str(error))
    if config != manifest.config:
        return _problem(cache / JOB, "its options are not the manifest's")
    return None


def _check_hash(path: StoragePath, expected: str) -> Problem | None:
    try:
        found = hash_file(path)
    except FileNotFoundError:
        return _problem(path, "it is gone")
    except OSError as error:
        return _problem(path, f"it cannot be read ({error})")
    return None if found == expected else _problem(path, "its hash is not the one recorded")


def _check_record(
    cache: StoragePath, name: str, entry: ShardEntry | None
) -> tuple[Problem | None, int]:
    """Returns the problem of a record, if any, and the number of failures that it lists."""
    path = record_path(cache, name)
    try:
        record = build(ShardRecord, read_checked_json(path), path)
    except FileNotFoundError:
        return _problem(path, "it is gone"), 0
    except ValueError as error:
        return Problem(str(path), str(error)), 0
    expected = (entry.rows, entry.file_bytes, entry.sha256) if entry else (0, 0, "")
    if (record.rows, record.file_bytes, record.sha256) != expected:
        return _problem(path, "it does not fit the manifest"), len(record.failures)
    return None, len(record.failures)


def _problem(path: StoragePath, found: str) -> Problem:
    return Problem(str(path), f"{path}: {found}")
