"""Paths of files on object stores, next to the local paths of `pathlib`.

    storage_path("outputs/cache")       -> pathlib.Path
    storage_path("file:///data/cache")  -> pathlib.Path
    storage_path("s3://bucket/cache")   -> RemotePath; the same for gs://

A RemotePath has the part of pathlib's interface that this project uses, so code that reads and
writes a cache works with both. It has no `__fspath__`: see `local_file`.
"""

import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow.fs

from stop_core.storage.private import private_folder, without_password

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
SCHEMES = ("s3", "gs")
# Without a limit, Google's client retries for 15 minutes if there is no answer.
_GCS_PATIENCE = "retry_limit_seconds=60"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FOLDER = ".folder"  # suffix of a scratch folder
_COMPARED = 1 << 20  # bytes up to which an uploaded object is read again
_LONGEST_PAUSE = 30.0  # seconds between two attempts
# Answers of a store that another attempt does not change.
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE", "CREDENTIALS")
FENCED: set["RemotePath"] = set()
"""Folders whose lock this process has lost: it writes nothing more below them (`locks.py`)."""


@dataclass(frozen=True)
class RemoteStatus:
    """Result of `RemotePath.stat`, with the names of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or a prefix of objects, on an object store. It can be pickled."""

    scheme: str
    key: str
    """Bucket and key, as in `bucket/folder/name`."""
    query: str = ""
    """Options of the connection in pyarrow's syntax: `endpoint_override=...`."""
    user: str = ""
    """User, if not that of the environment: "anonymous" for a public bucket."""
    patience: float = field(default=0.0, compare=False)
    """Seconds for which a request is repeated while the store does not answer."""

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{user}{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, part: str) -> "RemotePath":
        return replace(self, key=f"{self.key}/{part}")

    @property
    def name(self) -> str:
        """Returns the last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> "RemotePath":
        """Returns the path without its last part."""
        return replace(self, key=str(PurePosixPath(self.key).parent))

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Returns the connection; a process has one for each bucket and its options."""
        bucket = self.key.partition("/")[0]
        return _connect(self.scheme, f"{self.user}@{bucket}".lstrip("@"), self.query)

    def resolve(self) -> "RemotePath":
        """Returns the path itself: it is always absolute."""
        return self

    def stat(self) -> RemoteStatus:
        """Returns size and time of change; raises FileNotFoundError if there is no such object."""
        info = self._info()
        if info.type != pyarrow.fs.FileType.File:
            raise FileNotFoundError(f"there is no {self}")
        return RemoteStatus(info.size, info.mtime_ns)

    def exists(self) -> bool:
        """Returns whether there is an object with this name, or below it."""
        return bool(self._info().type != pyarrow.fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Returns whether there is an object with this name."""
        return bool(self._info().type == pyarrow.fs.FileType.File)

    def is_dir(self) -> bool:
        """Returns whether there are objects below this name."""
        return bool(self._info().type == pyarrow.fs.FileType.Directory)

    def once(self) -> "RemotePath":
        """Returns the same path without patience."""
        return replace(self, patience=0.0)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: an object store has no folders."""

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yields the paths directly below this one."""
        for name, _ in self.listing(recursive=False):
            yield self / name

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yields the paths below this one whose name matches; `*` stays within a part of it."""
        parts = pattern.split("/")
        for name, _ in self.listing(recursive=len(parts) > 1):
            own = name.split("/")
            if len(own) == len(parts) and all(map(fnmatchcase, own, parts)):
                yield self / name

    def listing(self, recursive: bool = True) -> Iterator[tuple[str, RemoteStatus | None]]:
        """Yields the relative name and status (None for a folder) of everything below this path."""
        selector = pyarrow.fs.FileSelector(self.key, allow_not_found=True, recursive=recursive)
        for info in self._ask(lambda: self.filesystem.get_file_info(selector)):
            name = info.path[len(self.key) + 1 :]
            is_file = info.type == pyarrow.fs.FileType.File
            yield name, RemoteStatus(info.size, info.mtime_ns) if is_file else None

    def open(self, mode: str = "rb") -> Any:
        """Opens an object for reading, as a binary file."""
        if mode != "rb":
            raise ValueError(f"{self} can be opened for reading bytes only, not with {mode!r}")
        return self._ask(lambda: self.filesystem.open_input_file(self.key))

    def read_bytes(self) -> bytes:
        """Returns the whole object."""

        def read() -> bytes:
            with self.filesystem.open_input_file(self.key) as file:
                return bytes(file.read())

        return self._ask(read)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the whole object as text."""
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object."""
        try:
            self._ask(lambda: self.filesystem.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: "RemotePath") -> None:
        """Moves the object, or all objects below this path, one after another: not atomically."""
        self._ask(lambda: _copy(self.key, self.filesystem, target.key, target.filesystem))
        if self.is_file():
            self.unlink()
        else:
            self.rmtree()

    def rmtree(self) -> None:
        """Removes all objects below this path, if there are any."""
        with suppress(FileNotFoundError):
            self._ask(lambda: self.filesystem.delete_dir(self.key))

    def upload(self, local: Path) -> None:
        """Uploads a local file atomically: the object is visible when the upload is complete.

        Raises OSError, without an object, if the store does not answer or refuses, and if this
        process has lost the lock of a folder that the object is in.
        """
        if lost := next((one for one in FENCED if self.key.startswith(f"{one.key}/")), None):
            raise OSError(
                f"another process works in {lost} now, because this one could not renew its lock "
                "in time: run the same command again when that one has ended"
            )

        def upload() -> None:
            # One call in native code, so that no signal interrupts it and completes half an object.
            _copy(str(local), pyarrow.fs.LocalFileSystem(), self.key, self.filesystem)
            # pyarrow reports no error of the end of an upload. A small object may have replaced one
            # of the same size, so it is compared; the others have checksums.
            status, size = self._info(), local.stat().st_size
            is_there = status.type == pyarrow.fs.FileType.File and status.size == size
            if not is_there or (size <= _COMPARED and self.read_bytes() != local.read_bytes()):
                raise OSError(f"{self} did not arrive whole")

        self._ask(upload)

    def download(self, local: Path) -> None:
        """Copies this object into a local file."""
        here = pyarrow.fs.LocalFileSystem()
        self._ask(lambda: _copy(self.key, self.filesystem, str(local), here))

    def _info(self) -> pyarrow.fs.FileInfo:
        return self._ask(lambda: self.filesystem.get_file_info(self.key))

    def _ask(self, request: Callable[[], _T]) -> _T:
        """Returns the answer of the store; repeats the request for `patience` seconds."""
        began, pause = time.monotonic(), 1.0
        while True:
            try:
                return request()
            except FileNotFoundError:
                raise
            except OSError as problem:
                is_final = problem.errno in _NO_ROOM or any(w in str(problem) for w in _FINAL)
                if is_final or time.monotonic() + pause - began > self.patience:
                    raise
                if pause == 1.0:
                    _LOG.warning("%s: %s; retrying", self, problem)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


StoragePath = Path | RemotePath
HUB = "hf://"


@dataclass(frozen=True)
class HubAddress:
    """A model on the Hugging Face Hub: `hf://USER/NAME`, or `hf://USER/NAME@REVISION`."""

    name: str
    """The whole address."""

    def __str__(self) -> str:
        return self.name


def storage_path(text: str | StoragePath) -> StoragePath:
    """Returns the path for a user's path or URI; ValueError for other schemes, or credentials."""
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
            "the URI contains credentials, which would be written to logs: use "
            f"{scheme}://{key} and set the environment of the store (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS)"
        )
    key = "/".join(part for part in key.split("/") if part)
    if not key:
        raise ValueError(f"{without_password(text)} names no bucket")
    return RemotePath(scheme, key, query, user)


def matches(folder: StoragePath, pattern: str) -> list[StoragePath]:
    """Returns the paths of `folder.glob(pattern)`, sorted."""
    found: list[StoragePath] = [*folder.glob(pattern)]
    return sorted(found, key=str)


@contextmanager
def local_file(path: StoragePath) -> Iterator[Path]:
    """Yields `path` if it is local, else a copy that is removed afterwards; OSError without one."""
    if isinstance(path, Path):
        yield path
        return
    # Some decoders look at the suffix.
    with scratch_file(PurePosixPath(path.key).suffix) as copy:
        path.download(copy)
        yield copy


@contextmanager
def scratch_file(suffix: str = "") -> Iterator[Path]:
    """Yields an empty local file that is removed afterwards; after a kill, by the next call."""
    folder = private_folder() / "scratch"
    folder.mkdir(mode=0o700, exist_ok=True)
    _remove_abandoned(folder)
    while True:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=suffix, delete=False) as file:
            path = Path(file.name)
            try:
                fcntl.flock(file, fcntl.LOCK_SH)
                if os.fstat(file.fileno()).st_nlink:
                    yield path
                    return
                # Another process removed it as abandoned before it was locked.
            finally:
                path.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields an empty local folder that is removed afterwards, like a `scratch_file`."""
    with scratch_file() as lock:
        folder = lock.with_suffix(_FOLDER)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes the files of killed processes; files in use are locked."""
    for path in folder.iterdir():
        if path.suffix == _FOLDER:
            continue  # removed with the file that is its lock
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.with_suffix(_FOLDER), ignore_errors=True)
                path.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue


def _copy(
    source: str, there: pyarrow.fs.FileSystem, target: str, here: pyarrow.fs.FileSystem
) -> None:
    pyarrow.fs.copy_files(source, target, source_filesystem=there, destination_filesystem=here)


@cache
def _connect(scheme: str, bucket: str, query: str) -> pyarrow.fs.FileSystem:
    if scheme == "gs" and "retry_limit_seconds" not in query:
        query = f"{query}&{_GCS_PATIENCE}".lstrip("&")
    filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}/?{query}".rstrip("?"))
    return filesystem


@dataclass(frozen=True)
class LocalCopy:
    """A local file. If it is a copy, closing `closing` deletes it."""

    file: Path
    closing: ExitStack
    problem: str = ""
    """The reason if there is no copy."""


def local_files(paths: Iterable[StoragePath], sources: deque[LocalCopy]) -> Iterator[Path]:
    """Yields local files with the bytes of `paths`, fetched on demand.

    `sources` receives a LocalCopy for each file, which the caller closes. Raises OSError if an
    object store does not answer, or the local disk is full.
    """
    for path in paths:
        closing = ExitStack()
        try:
            source = LocalCopy(closing.enter_context(local_file(path)), closing)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            path.exists()  # raises if the store does not answer
            source = LocalCopy(Path(path.name), closing, f"cannot be fetched: {error}")
        sources.append(source)
        yield source.file
