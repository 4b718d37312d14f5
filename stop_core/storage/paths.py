"""Files on an object store, named by a URI, beside the local files that `pathlib` names.

    storage_path("outputs/cache")       -> pathlib.Path
    storage_path("file:///data/cache")  -> pathlib.Path
    storage_path("s3://bucket/cache")   -> RemotePath, and gs:// alike

A RemotePath has the part of pathlib's interface that this project uses, so code that reads and
writes a cache need not know which of the two it was given. It has no `__fspath__`: what needs a
local file says so with `local_file`.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.fs

from stop_core.storage.private import private_folder, without_password

SCHEMES = ("s3", "gs")
# Without a limit, Google's client tries for 15 minutes where nobody answers.
_GCS_PATIENCE = "retry_limit_seconds=60"


@dataclass(frozen=True)
class RemoteStatus:
    """What `RemotePath.stat` tells, under the names of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or a prefix of objects, on an object store. Travels between processes by name."""

    scheme: str
    key: str
    """Bucket and key, as in `bucket/folder/name`."""
    query: str = ""
    """Options of the connection, as pyarrow reads them from a URI: `endpoint_override=...`."""
    user: str = ""
    """Who asks, where it is not the one of the environment: "anonymous", for a public bucket."""

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{user}{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, part: str) -> "RemotePath":
        return replace(self, key=f"{self.key}/{part}")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> "RemotePath":
        """The path without its last part."""
        return replace(self, key=str(PurePosixPath(self.key).parent))

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """The connection, one a process for every bucket and its options."""
        bucket = self.key.partition("/")[0]
        return _connect(self.scheme, f"{self.user}@{bucket}".lstrip("@"), self.query)

    def resolve(self) -> "RemotePath":
        """Returns the path: it is absolute always."""
        return self

    def stat(self) -> RemoteStatus:
        """Returns size and time of change; FileNotFoundError if there is no such object."""
        info = self._info()
        if info.type != pyarrow.fs.FileType.File:
            raise FileNotFoundError(f"there is no {self}")
        return RemoteStatus(info.size, info.mtime_ns)

    def exists(self) -> bool:
        """Whether there is an object of this name or below it."""
        return bool(self._info().type != pyarrow.fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return bool(self._info().type == pyarrow.fs.FileType.File)

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        return bool(self._info().type == pyarrow.fs.FileType.Directory)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: an object store has no folders, only names."""

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yields what is directly below; nothing if there is nothing."""
        for name, _ in self.listing(recursive=False):
            yield self / name

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yields what is directly below and whose name fits."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def listing(self, recursive: bool = True) -> Iterator[tuple[str, RemoteStatus | None]]:
        """Yields name (relative to this path) and status, None for a folder, of all that is below.

        One request for a thousand objects.
        """
        selector = pyarrow.fs.FileSelector(self.key, allow_not_found=True, recursive=recursive)
        for info in self.filesystem.get_file_info(selector):
            name = info.path[len(self.key) + 1 :]
            if info.type == pyarrow.fs.FileType.File:
                yield name, RemoteStatus(info.size, info.mtime_ns)
            else:
                yield name, None

    def open(self, mode: str = "rb") -> Any:
        """Opens an object for reading, as a binary file."""
        if mode != "rb":
            raise ValueError(f"{self} can be opened for reading bytes only, not with {mode!r}")
        return self.filesystem.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        """Returns the whole object."""
        with self.open() as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the whole object as text."""
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object."""
        try:
            self.filesystem.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def upload(self, local: Path) -> None:
        """Makes this object of a local file; it appears whole, when the last byte has arrived.

        Raises:
            OSError: if the store cannot be reached or refuses; nothing has appeared then.
        """
        here = pyarrow.fs.LocalFileSystem()
        # One call in native code: no signal can come between the parts and close half an object.
        pyarrow.fs.copy_files(
            str(local), self.key, source_filesystem=here, destination_filesystem=self.filesystem
        )
        if self.stat().st_size != local.stat().st_size:
            raise OSError(f"{self} did not arrive whole")

    def download(self, local: Path) -> None:
        """Copies this object into a local file."""
        pyarrow.fs.copy_files(
            self.key,
            str(local),
            source_filesystem=self.filesystem,
            destination_filesystem=pyarrow.fs.LocalFileSystem(),
        )

    def _info(self) -> pyarrow.fs.FileInfo:
        return self.filesystem.get_file_info(self.key)


StoragePath = Path | RemotePath


def storage_path(text: str | StoragePath) -> StoragePath:
    """Returns what a user's path or URI names.

    Raises:
        ValueError: if it is a URI of another kind, or has credentials in it.
    """
    if not isinstance(text, str):
        return text
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    if scheme not in SCHEMES:
        raise ValueError(
            f"{without_password(text)} is neither a path nor a URI that begins with file://, "
            f"{' or '.join(f'{known}://' for known in SCHEMES)}"
        )
    key, _, query = rest.partition("?")
    user, _, _ = key.partition("/")[0].rpartition("@")
    key = key.removeprefix(f"{user}@")
    if (user and (scheme, user) != ("gs", "anonymous")) or without_password(text) != text:
        raise ValueError(
            f"credentials in a URI would end in logs: give {scheme}://{key} and set the "
            "environment of the store (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "GOOGLE_APPLICATION_CREDENTIALS)"
        )
    key = "/".join(part for part in key.split("/") if part)
    if not key:
        raise ValueError(f"{without_password(text)} names no bucket")
    return RemotePath(scheme, key, query, user)


@contextmanager
def local_file(path: StoragePath) -> Iterator[Path]:
    """Gives a local file with the bytes of `path`: itself, or a copy that is removed afterwards.

    Raises:
        FileNotFoundError: if there is no such object.
        OSError: if the object cannot be fetched.
    """
    if isinstance(path, Path):
        yield path
        return
    # The ending is kept: some decoders look at it.
    with scratch_file(PurePosixPath(path.key).suffix) as copy:
        path.download(copy)
        yield copy


@contextmanager
def scratch_file(suffix: str = "") -> Iterator[Path]:
    """Gives an empty local file that is removed afterwards; after a kill, by the next that asks."""
    folder = private_folder() / "scratch"
    folder.mkdir(mode=0o700, exist_ok=True)
    _remove_abandoned(folder)
    with _locked_file(folder, suffix) as path:
        yield path


@contextmanager
def _locked_file(folder: Path, suffix: str) -> Iterator[Path]:
    while True:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=suffix, delete=False) as file:
            path = Path(file.name)
            try:
                fcntl.flock(file, fcntl.LOCK_SH)
                if os.fstat(file.fileno()).st_nlink:
                    yield path
                    return
                # Another process took it for abandoned before it was locked.
            finally:
                path.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes the files of processes that were killed; those in use are locked."""
    for path in folder.iterdir():
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue


@cache
def _connect(scheme: str, bucket: str, query: str) -> pyarrow.fs.FileSystem:
    if scheme == "gs" and "retry_limit_seconds" not in query:
        query = f"{query}&{_GCS_PATIENCE}".lstrip("&")
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}/?{query}".rstrip("?"))
    return filesystem
