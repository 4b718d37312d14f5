"""Atomic and durable writes, hashes of files and values, and the file SHA256SUMS of a folder."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stop_core.storage.documents import read_text, require_file, shown
from stop_core.storage.names import create, inside, is_the_name_of_a_file
from stop_core.storage.paths import RemotePath, StoragePath, scratch_file, scratch_folder

_STAGING = ".tmp"


@contextmanager
def appearing(path: StoragePath, *, new: bool = False, lasting: bool = True) -> Iterator[Path]:
    """Writes a file atomically: yields a staging path, which is renamed to `path` on a clean exit.

    The staging name begins with a dot, which pyarrow and DuckDB skip, and is unique, so that two
    processes that write the same file cannot mix their bytes: the later one replaces the earlier
    one. On an object store, the object is visible when its upload is complete.

    Args:
        path: the file or object.
        new: the earlier of two processes wins, and the later one gets a FileExistsError. This has
            no effect on object stores and on disks without hard links.
        lasting: False does not wait for the disk: the file may be empty after a power failure.
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
            sync(path.parent)  # the new name is durable only when its folder is
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def appearing_folder(path: StoragePath, *, lasting: bool = True) -> Iterator[Path]:
    """Yields a staging folder that is renamed to `path` on success and removed on an error.

    An object store has no renames: the objects are uploaded, SHA256SUMS last. A folder without it
    is not complete. `lasting` is that of `appearing`.
    """
    if isinstance(path, RemotePath):
        with scratch_folder() as staging:
            yield staging
            files = [file for file in staging.rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: file.name == SUMS):
                (path / str(file.relative_to(staging))).upload(file)
        return
    path = path.absolute()
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_STAGING}")
    staging.mkdir(parents=True)
    try:
        yield staging
        for part in (*staging.rglob("*"), staging) if lasting else ():
            sync(part)
        os.replace(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if lasting:
        sync(path.parent)


@contextmanager
def fetched_folder(path: StoragePath) -> Iterator[Path]:
    """Yields `path` if it is local, else a copy that is then removed; ValueError for bad names."""
    if isinstance(path, Path):
        yield path
        return
    with scratch_folder() as copy:
        for name, status in path.listing():
            if status is not None:
                file = inside(copy, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                inside(path, name).download(file)
        yield copy


@contextmanager
def named_copy(path: StoragePath) -> Iterator[Path]:
    """Yields a local file with the bytes and the name of `path`: itself, or a copy."""
    if isinstance(path, Path):
        yield path
        return
    with scratch_folder() as folder:
        copy = inside(folder, path.name)
        path.download(copy)
        yield copy


def remove_folder(path: StoragePath) -> None:
    """Removes a folder, if there is one; on an object store, it is incomplete first."""
    if isinstance(path, RemotePath):
        (path / SUMS).unlink(missing_ok=True)
        path.rmtree()
    elif path.exists():
        shutil.rmtree(path)


def _link(staging: Path, path: Path) -> bool:
    """Creates a hard link; returns False on a disk without hard links."""
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
    """Writes a small text file in UTF-8 atomically; `new` as in `appearing`."""
    with appearing(path, new=new) as staging:
        staging.write_text(text, encoding="utf-8")


def is_leftover(path: StoragePath) -> bool:
    """Returns whether a path is a staging file, of a process that writes it or was killed."""
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
    """Starts writing dirty pages of a file to disk, and drops clean ones from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class FileFollower:
    """Hashes a file while it is written, and drops its pages from the page cache.

    A cache that is larger than memory would displace everything else from the page cache. Also,
    the kernel has to find each new page, which takes several times longer than filling it on a
    virtual machine whose host has to supply it. So a few pages are reused, and the disk writes
    while the next rows are decoded. `leave=False` keeps the pages for a reader that follows.
    """

    def __init__(self, path: Path, *, leave: bool) -> None:
        self.bytes = 0
        """Number of bytes that were hashed."""
        self._path = path
        self._leave = leave
        self._hash = hashlib.sha256()
        self._room = memoryview(bytearray(262_144))

    def follow(self) -> None:
        """Hashes the bytes that were written since the last call."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self.bytes)
            while count := file.readinto(self._room):
                self._hash.update(self._room[:count])
                self.bytes += count
        if self._leave:
            leave_memory(self._path)

    @property
    def sha256(self) -> str:
        """Returns the SHA-256 of the bytes so far, in hexadecimal."""
        return self._hash.hexdigest()


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SUMS = "SHA256SUMS"


def write_sums(folder: Path, without: Collection[str] = ()) -> None:
    """Writes the sums of all files in a folder, except those named in `without`."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in (SUMS, *without))
    lines = [f"{hash_file(folder / name)}  {name}\n" for name in names]
    write_whole(folder / SUMS, "".join(lines))


def check_sums(folder: Path, names: Collection[str]) -> None:
    """Compares `names`, and all other files that have a sum; ValueError if one differs."""
    lines = read_text(folder / SUMS).splitlines()
    sums = {name: found for found, _, name in (line.partition("  ") for line in lines)}
    for name in sorted({*names, *sums}):
        if name not in sums or not is_the_name_of_a_file(name):
            raise ValueError(f"{folder / SUMS} is damaged: it has no sum of {shown(name)}")
        if sums[name] != hash_file(folder / name):
            raise ValueError(f"{folder / name} is not as it was written, by its sum in {SUMS}")
