"""Checks that the files of a finished cache are those from when it was made.

A reader compares the size and footer of a shard with the manifest when it opens it. Contents are
hashed once per machine, during training in the background of the first epoch; copies of shards are
hashed when they are fetched (`fetching.py`). `verify` hashes every file, and names all that differ.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stop_core.cache import files
from stop_core.cache.config import CacheConfig
from stop_core.cache.files import read_checked_json, record_path, shard_path
from stop_core.cache.hashed import HashedFiles, stamp
from stop_core.cache.layout import CONFIG_KEY, SHARD
from stop_core.cache.manifest import Manifest, ShardEntry, read_job
from stop_core.cache.mapping import read_footer, remedy
from stop_core.cache.shards import ShardRecord
from stop_core.storage.atomic import hash_file, hash_json
from stop_core.storage.documents import build
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath

_THREADS = 8
_NICENESS = 10


class ChangedDataError(ValueError):
    """A shard that differs from the one in the manifest."""


def check_footers(folder: Path, config: CacheConfig, entries: Sequence[ShardEntry]) -> None:
    """Compares only the sizes and footers of shards; ValueError if one is missing or differs."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda e: check_footer(shard_path(folder, e.name), config, e), entries):
            pass


def check_footer(path: Path, config: CacheConfig, entry: ShardEntry) -> None:
    """Compares the size and footer of the shard at `path`; raises as `check_footers`."""
    footer = read_footer(path)
    metadata = footer.metadata or {}
    # Early shards of format version 2 do not hold their name; their hash identifies them.
    name = metadata.get(SHARD.encode(), entry.name.encode()).decode(errors="replace")
    expected_options = json.dumps(config.to_dict(), sort_keys=True)
    options = metadata.get(CONFIG_KEY.encode(), b"").decode(errors="replace")
    for field, found, expected in (
        ("size", path.stat().st_size, entry.file_bytes),
        ("number of rows", footer.num_rows, entry.rows),
        ("name", name, entry.name),
        ("options", options, expected_options),
    ):
        if found != expected:
            raise _another(path, field, expected, found)


def _another(path: Path, field: str, expected: object, found: object) -> ChangedDataError:
    values = "" if field == "options" else f", {expected!r}, but {found!r}"
    return ChangedDataError(
        f"the shard {path} is not the one of this cache: its {field} is not the "
        f"manifest's{values}; delete it, then {remedy(path)}"
    )


def check_contents(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Compares every byte of shards that this machine has not compared; raises ValueError."""
    hashed = HashedFiles(folder)
    for entry in entries:
        _check_content(folder, entry, hashed)


def _check_content(folder: Path, entry: ShardEntry, hashed: HashedFiles) -> None:
    path = shard_path(folder, entry.name)
    problem = "its SHA-256 is not the one in the manifest"
    try:
        if hashed.has(path, entry.sha256):
            return
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
    raise ChangedDataError(
        f"the shard {path} is not as it was made: {problem}; delete it, then {remedy(path)}"
    )


class BackgroundCheck:
    """A background thread that hashes the shards of a training while it runs.

        RUNNING --all hashes fit--> VERIFIED --a file changes--> hashed again
           \\--one differs--> every later check raises

    Start it before the first read. A shard that changes before it was hashed is refused even if
    its hash is right by then, because the training may have read the other content.
    """

    def __init__(self, folder: Path, entries: Sequence[ShardEntry]) -> None:
        self._folder = folder
        self._files = HashedFiles(folder)
        self._begun = {entry: _begin(shard_path(folder, entry.name), entry) for entry in entries}
        self._verified: set[ShardEntry] = set()
        self._problem: Exception | None = None
        self.state = hash_json(list(self._begun.values()))
        """Hash of the sizes, times and inodes of the shards at the start."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="hashing")
        self._thread.start()

    def is_verified(self) -> bool:
        """Returns whether all contents have been compared, without waiting; raises as `wait`."""
        if self._thread.is_alive():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Waits for the comparison, and checks for changes since; ChangedDataError if any."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        self._compare()

    def _work(self) -> None:
        # Lowers the priority of this thread only, so that hashing does not slow the training.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            self._compare()
        except (OSError, ValueError) as problem:
            self._problem = problem

    def _compare(self) -> None:
        for entry, begun in self._begun.items():
            _check_content(self._folder, entry, self._files)
            path = shard_path(self._folder, entry.name)
            if entry not in self._verified and stamp(path) != begun:
                raise ChangedDataError(
                    f"the shard {path} was changed while it was being trained on, before it was "
                    "compared with the manifest: give the same command again"
                )
            self._verified.add(entry)


def _begin(path: Path, entry: ShardEntry) -> list[int]:
    """Returns the stamp of a shard; refuses one of another size."""
    try:
        found = stamp(path)
    except OSError as error:
        raise ChangedDataError(
            f"the shard {path} cannot be read ({error.strerror}): {remedy(path)}"
        ) from error
    if found[0] != entry.file_bytes:
        raise _another(path, "size", entry.file_bytes, found[0])
    return found


def verify(cache: StoragePath) -> Iterator[str]:
    """Checks the manifest, whose errors are raised, then every file: yields its problem, or ""."""
    manifest = Manifest.load(cache)
    yield ""
    yield _job_problem(cache, manifest)
    yield _hash_problem(cache / files.FAILURES, manifest.failures_sha256)
    if manifest.clips_sha256:
        yield _hash_problem(cache / files.CLIP_LIST, manifest.clips_sha256)
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(
            lambda entry: _hash_problem(shard_path(cache, entry.name), entry.sha256),
            manifest.shards,
        )
    entries = {entry.name: entry for entry in manifest.shards}
    # A shard without any cached clip has a record and no file.
    records = (path.name for path in inside(cache, files.RECORDS).iterdir() if path.name[0] != ".")
    failures, readable = 0, True
    for name in sorted(entries.keys() | {name.removesuffix(".json") for name in records}):
        problem, count = _record_problem(cache, name, entries.get(name))
        failures, readable = failures + count, readable and not problem
        yield problem
    if readable and failures != manifest.failures:
        yield (
            f"{cache / files.RECORDS}: the records list {failures} failures and the manifest "
            f"{manifest.failures}"
        )


def _job_problem(cache: StoragePath, manifest: Manifest) -> str:
    path = cache / files.JOB
    try:
        config = read_job(cache).config
    except FileNotFoundError:
        return f"{path}: it is gone"
    except ValueError as error:
        return str(error)
    return "" if config == manifest.config else f"{path}: its options are not the manifest's"


def _hash_problem(path: StoragePath, expected: str) -> str:
    try:
        found = hash_file(path)
    except FileNotFoundError:
        return f"{path}: it is gone"
    except OSError as error:
        return f"{path}: it cannot be read ({error})"
    return "" if found == expected else f"{path}: its hash is not the one recorded"


def _record_problem(cache: StoragePath, name: str, entry: ShardEntry | None) -> tuple[str, int]:
    """Returns the problem of a record, if any, and the number of failures that it lists."""
    path = record_path(cache, name)
    try:
        record = build(ShardRecord, read_checked_json(path), path)
    except FileNotFoundError:
        return f"{path}: it is gone", 0
    except ValueError as error:
        return str(error), 0
    expected = (entry.rows, entry.file_bytes, entry.sha256) if entry else (0, 0, "")
    fits = (record.rows, record.file_bytes, record.sha256) == expected
    return "" if fits else f"{path}: it does not fit the manifest", len(record.failures)
