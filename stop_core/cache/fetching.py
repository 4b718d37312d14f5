"""Copies of shards on this machine, fetched before they are read, within a bound on the disk.

A cache on an object store is read through copies, which the processes of a machine share:

    ABSENT --lock, make room, download, hash--> PRESENT --needed latest, not read--> ABSENT

    <local folder>/<data hash>/data/NAME.parquet        a copy with the SHA-256 of the manifest
    <local folder>/<data hash>/data/.NAME.parquet.part  a download, locked by its process
    <local folder>/.room                                locked while files appear and disappear

A download has its final size from the start, so the sizes of the files never exceed the bound. The
system releases the lock of a process that is killed: another one removes or repeats its download.
A reader holds a shared lock on the copy, and an eviction needs an exclusive one.
"""

import fcntl
import hashlib
import logging
import math
import os
import shutil
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from stop_core.cache.files import DATA, shard_path
from stop_core.cache.hashed import FOLDER_VARIABLE, HashedFiles, local_folder, stamp
from stop_core.cache.integrity import ChangedDataError, check_footer
from stop_core.cache.manifest import Manifest, ShardEntry
from stop_core.cache.mapping import remedy
from stop_core.storage.names import inside, open_lock
from stop_core.storage.paths import RemotePath, StoragePath

_LOG = logging.getLogger(__name__)
_THREADS = 8
_BLOCK = 1 << 23
"""Bytes of a request to the store."""
_USED_OF_FREE = 0.9
"""Share of the free disk that copies can fill if there is no bound."""
_PAUSE = 0.05
_PATIENCE = 300.0
"""Seconds for which a training waits for a store that does not answer."""


class LocalShards:
    """The shards of a cache as local files: its own, or copies.

    `limit` is the bytes of all copies on this machine. With it, shards of a folder are copied too.
    By default, copies of objects can fill most of the free disk.
    """

    def __init__(self, cache: StoragePath, manifest: Manifest, limit: int | None = None) -> None:
        self._cache = replace(cache, patience=_PATIENCE) if isinstance(cache, RemotePath) else cache
        self._manifest, self._limit = manifest, limit
        self._entries = {entry.name: entry for entry in manifest.shards}
        self._plan = _Plan(())
        self._seen: dict[str, list[int]] = {}
        self.are_copies = False
        if isinstance(cache, Path) and limit is None:
            self.folder = cache
        else:
            self.are_copies = True
            # Named by content: an address can be reused for other data.
            self.folder = inside(local_folder(), manifest.data_hash[:32])
        self._files = HashedFiles(self.folder)

    def __reduce__(self) -> tuple[type["LocalShards"], tuple[Any, ...]]:
        return LocalShards, (self._cache, self._manifest, self._limit)

    @property
    def home(self) -> str:
        """Identifies the folder of the copies: processes with the same value share them."""
        inside(self.folder, DATA).mkdir(parents=True, exist_ok=True)
        status = self.folder.stat()
        return f"{socket.gethostname()} {status.st_dev} {status.st_ino}"

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yields the path of a shard, which is not removed while the context is open.

        Raises OSError if it cannot be fetched, ChangedDataError if it is not the manifest's shard.
        """
        entry, path = self._entries[name], shard_path(self.folder, name)
        if not self.are_copies:
            check_footer(path, self._manifest.config, entry)
            yield path
            return
        with self._lock_copy(entry, path):
            if self._seen.get(name) != stamp(path):
                if not self._files.has(path, entry.sha256):
                    raise ChangedDataError(
                        f"the shard {path} was changed after it was fetched: delete it, then "
                        f"{remedy(path)}"
                    )
                self._seen[name] = stamp(path)
            yield path

    def each(self, entries: Sequence[ShardEntry]) -> Iterator[tuple[ShardEntry, Path]]:
        """Yields these shards with their paths, in this order; the next ones are fetched ahead."""
        with self.expect([[entry.name] for entry in entries]) as reached:
            for number, entry in enumerate(entries):
                reached(number)
                with self.opened(entry.name) as path:
                    yield entry, path

    @contextmanager
    def expect(self, batches: Sequence[Collection[str]]) -> Iterator[Callable[[int], None]]:
        """Fetches the shards of each batch of this machine in the background, in this order.

        A shard that is needed later makes room for one that is needed sooner. Yields a function to
        call with the number of each batch, when the earlier ones were read.
        """
        plan = self._plan = _Plan(batches if self.are_copies else ())
        claims, turn = self._claims(plan), threading.Lock()
        threads = [
            threading.Thread(target=self._fetch_ahead, args=(plan, claims, turn), daemon=True)
            for _ in range(min(_THREADS, len(plan.batches)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield plan.move
        finally:
            plan.is_closed = True
            plan.move(len(batches))
            for thread in threads:
                thread.join()

    def _claims(self, plan: "_Plan") -> Iterator[tuple[ShardEntry, IO[bytes]]]:
        """Yields the missing shards of a plan, each when there is room for it, locked."""
        for number, names in enumerate(plan.batches):
            for name in names:
                while plan.at <= number:
                    try:
                        if file := self._claim(self._entries[name], number, wait=False):
                            yield self._entries[name], file
                        break
                    except _NoRoomError:
                        plan.wait_for_move()

    def _fetch_ahead(
        self, plan: "_Plan", claims: Iterator[tuple[ShardEntry, IO[bytes]]], turn: threading.Lock
    ) -> None:
        """Downloads one shard after another, as one of several threads."""
        while True:
            try:
                with turn:
                    entry, file = next(claims)
                with file:
                    self._download(entry, file, plan)
            except StopIteration:
                return
            except (OSError, ValueError) as problem:  # the read that needs the shard raises it
                _LOG.warning("a shard could not be fetched ahead: %s", problem)

    def _lock_copy(self, entry: ShardEntry, path: Path) -> IO[bytes]:
        """Returns the copy of a shard with a shared lock, fetched first if it is missing."""
        while True:
            file: IO[bytes] | None
            try:
                file = path.open("rb")
            except FileNotFoundError:
                if (file := self._fetch_now(entry)) is None:
                    continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # it was evicted before it was locked

    def _fetch_now(self, entry: ShardEntry) -> IO[bytes] | None:
        """Returns a shard, locked; None if another process has fetched it, or there is no room."""
        use = self._plan.next_use(entry.name)
        try:
            # What the same batch needs can be evicted too: a bound smaller than a batch is slow.
            file = self._claim(entry, -1 if use == math.inf else use - 1, wait=True)
        except _NoRoomError:  # until other processes have read theirs
            time.sleep(_PAUSE)
            return None
        if file is not None:
            self._download(entry, file)
        return file

    def _claim(self, entry: ShardEntry, needed: float, *, wait: bool) -> IO[bytes] | None:
        """Locks a missing shard for this process, and reserves its room; None if it is not missing.

        Shards that are needed after the batch `needed` can be evicted. Without `wait`, a shard that
        another process downloads is left to it.
        """
        target = shard_path(self.folder, entry.name)
        if target.exists():
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        part, claimed = _part(target), False
        file = open_lock(part)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Otherwise it was completed or removed before it was locked.
            if _is_at(file, part) and not target.exists():
                os.ftruncate(file.fileno(), 0)  # left by a process that was killed
                self._reserve(entry, file, needed)
                claimed = True
        except BlockingIOError:
            file.close()
        finally:
            if not claimed and not file.closed:
                _remove_at(file, part)
                file.close()
        return file if claimed else None

    def _reserve(self, entry: ShardEntry, file: IO[bytes], needed: float) -> None:
        """Gives a download its final size, after the eviction of shards that are needed later."""
        with _room():
            files = dict(_copies())
            held = sum(status.st_size for status in files.values())
            limit = self._limit
            if limit is None:
                written = sum(512 * status.st_blocks for status in files.values())
                limit = written + int(_USED_OF_FREE * shutil.disk_usage(self.folder).free)
            if entry.file_bytes > limit:
                raise OSError(
                    f"the shard {entry.name} has {entry.file_bytes / 1e9:.3g} GB, and copies of "
                    f"shards in {local_folder()} can have {limit / 1e9:.3g}: give a larger "
                    f"--local-cache-gb, or set {FOLDER_VARIABLE} to a folder on a larger disk"
                )
            uses = {path: self._next_use_of(path) for path in files}
            later = [path for path, use in uses.items() if use > needed and files[path].st_size]
            later.sort(key=lambda path: (-uses[path], files[path].st_mtime_ns))
            excess = held + entry.file_bytes - limit
            if excess > sum(files[path].st_size for path in later):
                raise _NoRoomError
            for path in later:
                if excess <= 0:
                    break
                excess -= files[path].st_size if _evict(path) else 0
            if excess > 0:
                raise _NoRoomError
            os.ftruncate(file.fileno(), entry.file_bytes)

    def _next_use_of(self, path: Path) -> float:
        """Returns the batch that needs a file next; infinity for those of other caches."""
        name = path.name.removeprefix(".").removesuffix(".part").removesuffix(".parquet")
        return self._plan.next_use(name) if path.parent.parent == self.folder else math.inf

    def _download(self, entry: ShardEntry, file: IO[bytes], plan: "_Plan | None" = None) -> None:
        """Downloads a claimed shard; removes the download if the plan is closed meanwhile."""
        source, target = shard_path(self._cache, entry.name), shard_path(self.folder, entry.name)
        part, digest, left = _part(target), hashlib.sha256(), entry.file_bytes
        try:
            with _open(source) as remote, part.open("r+b") as local:
                while left >= 0 and (block := remote.read(_BLOCK)):
                    if plan and plan.is_closed:
                        return
                    left -= len(block)
                    if left >= 0:
                        local.write(block)
                        digest.update(block)
                local.flush()
                os.fsync(local.fileno())
            if left or digest.hexdigest() != entry.sha256:
                raise ChangedDataError(
                    f"the shard {source} is damaged: its hash differs from the manifest. Delete it "
                    "and run the same preprocess command"
                )
            with _room():
                part.rename(target)
            self._files.add(target, entry.sha256)
            self._seen[entry.name] = stamp(target)
        finally:
            _remove_at(file, part)


class _NoRoomError(Exception):
    """All copies are needed sooner than the shard, or are being read."""


class _Plan:
    """The shards of each of the next batches, and the number of the batch that is read."""

    def __init__(self, batches: Sequence[Collection[str]]) -> None:
        self.batches = batches
        self.at = 0
        self.is_closed = False
        self._moved = threading.Condition()
        self._uses: dict[str, list[int]] = {}
        for number, names in enumerate(batches):
            for name in names:
                self._uses.setdefault(name, []).append(number)

    def next_use(self, name: str) -> float:
        """Returns the number of the next batch with a shard; infinity if there is none."""
        uses = self._uses.get(name, [])
        place = bisect_left(uses, self.at)
        return uses[place] if place < len(uses) else math.inf

    def move(self, number: int) -> None:
        """Records that all batches before `number` have been read."""
        with self._moved:
            self.at = number
            self._moved.notify_all()

    def wait_for_move(self) -> None:
        """Waits until a batch has been read; not long, as other processes make room too."""
        with self._moved:
            self._moved.wait(1.0)


@contextmanager
def _room() -> Iterator[None]:
    """Locks the names of all copies on this machine."""
    with open_lock(local_folder() / ".room") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copies() -> Iterator[tuple[Path, os.stat_result]]:
    """Yields the copies and downloads of all caches on this machine."""
    for path in local_folder().glob(f"*/{DATA}/*"):
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _open(source: StoragePath) -> Any:
    try:
        return source.open("rb")
    except FileNotFoundError as error:
        raise ChangedDataError(
            f"the shard {source} is gone: run the same preprocess command again"
        ) from error


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Returns whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_at(file: IO[bytes], path: Path) -> None:
    """Removes a file that this process has locked, if it still has this path."""
    if _is_at(file, path):
        path.unlink()


def _evict(path: Path) -> bool:
    """Removes a copy, or a download of a killed process; returns False if it is in use."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False
    return True
