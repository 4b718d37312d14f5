"""Atomic writes, durable on disk, and hashes of files and values."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stop_core.storage.documents import require_file
from stop_core.storage.names import create
from stop_core.storage.paths import RemotePath, StoragePath, scratch_file

_STAGING = ".tmp"


@contextmanager
def appearing(path: StoragePath, *, new: bool = False, lasting: bool = True) -> Iterator[Path]:
    """Gives a local staging path to write to; on a clean exit the file becomes `path` at once.

    The staging name begins with a dot, which pyarrow and DuckDB pass over, and is unique, so that
    two processes that make the same file cannot mix their bytes: the later one wins, whole. On an
    object store an object appears when its upload is complete.

    With `new`, the earlier one wins and the later one gets a FileExistsError; not on an object
    store, nor on a disk without hard links, where nothing tells which was earlier. Without
    `lasting`, the file may be empty after a power failure, and nothing waits for the disk.
    """
    if isinstance(path, RemotePath):
        with scratch_file() as staging:
            yield staging
            path.upload(staging)
        return
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_STAGING}")
    create(staging)
    try:
        yield staging
        if lasting:
            sync(staging)
        if not (new and _link(staging, path)):
            os.replace(staging, path)
        if lasting:
            sync(path.parent)  # the new name is on the disk only when its folder is
    finally:
        staging.unlink(missing_ok=True)


def _link(staging: Path, path: Path) -> bool:
    """Gives a file a second name that is not taken; False on a disk that has no second names."""
    try:
        os.link(staging, path)
    except FileExistsError:
        raise
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def write_whole(path: StoragePath, text: str, *, new: bool = False) -> None:
    """Writes a small text file, in UTF-8, that appears whole or not at all; `new` as above."""
    with appearing(path, new=new) as staging:
        staging.write_text(text, encoding="utf-8")


def is_leftover(path: StoragePath) -> bool:
    """Whether a path is a staging file; one that no process writes to was left by a kill."""
    return path.name.startswith(".") and path.name.endswith(_STAGING)


def hash_json(value: Any) -> str:
    """Returns the SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: StoragePath) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    if isinstance(path, Path):
        require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leave_memory(path: Path) -> None:
    """Has the pages of a file leave the memory that are on the disk, and sends the others there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class FileFollower:
    """Hashes a file while it is written, and has its pages leave the memory as they reach the disk.

    A cache that is larger than the memory would push all else out of it; and each new page has to
    be found by the kernel, which takes several times as long as filling it where a virtual
    machine's host has to supply it. So a few pages are used again and again, and the disk writes
    while the next rows are decoded, rather than at the end.

    Args:
        path: a local file that is being written, from its beginning on.
        leave: False keeps the pages for a reader that follows at once.
    """

    def __init__(self, path: Path, *, leave: bool = True) -> None:
        self.bytes = 0
        """How many there have been."""
        self._path = path
        self._leave = leave
        self._hash = hashlib.sha256()
        self._room = memoryview(bytearray(1 << 18))

    def follow(self) -> None:
        """Takes in what has been written since the last call."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self.bytes)
            while count := file.readinto(self._room):
                self._hash.update(self._room[:count])
                self.bytes += count
        if self._leave:
            leave_memory(self._path)

    @property
    def sha256(self) -> str:
        """Of all that was taken in, in hexadecimal."""
        return self._hash.hexdigest()


def sync(path: Path) -> None:
    """Has the disk take a file, or the names in a folder, before anything builds on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
