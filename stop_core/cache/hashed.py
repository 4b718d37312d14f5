"""Records on this machine which files have been hashed, so that each is hashed once.

    $STOP_CACHE_FOLDER/hashed/<hash of host and folder>.jsonl

A line holds the path, the SHA-256, and the size, times and inode of the file. A file that was
changed, replaced or copied since then matches no line and is hashed again.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stop_core.storage.atomic import hash_file, hash_json

FOLDER_VARIABLE = "STOP_CACHE_FOLDER"


def local_folder() -> Path:
    """Returns the folder of this machine for these lists and for copies of shards."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stop-video"


def stamp(path: Path) -> list[int]:
    """Returns the size, mtime and ctime in ns, and inode of a file."""
    status = path.stat()  # `touch` and `cp -p` set mtime; only the system sets ctime
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class HashedFiles:
    """The files of one folder whose SHA-256 this machine has verified."""

    def __init__(self, folder: Path) -> None:
        # With the host: machines with the same local paths can share a home folder.
        key = hash_json([socket.gethostname(), str(folder.resolve())])[:32]
        self._file = local_folder() / "hashed" / f"{key}.jsonl"
        self._known: set[str] = set()
        self._read = 0

    def has(self, path: Path, sha256: str) -> bool:
        """Returns whether a file has that SHA-256; one process hashes it, if new or changed."""
        if _line(path, sha256) in self._known:
            return True
        with self._memory() as memory:
            while (line := _line(path, sha256)) not in self._known:
                if hash_file(path) != sha256:
                    return False
                if line == _line(path, sha256):  # unchanged while it was hashed
                    self._add(line, memory)
        return True

    def add(self, path: Path, sha256: str) -> None:
        """Records a file that was hashed while it was written."""
        with self._memory() as memory:
            self._add(_line(path, sha256), memory)

    def _add(self, line: str, memory: BinaryIO | None) -> None:
        self._known.add(line)
        if memory is not None:
            memory.write(f"{line}\n".encode())

    @contextmanager
    def _memory(self) -> Iterator[BinaryIO | None]:
        """Locks and reads the list of this folder; yields None if it cannot be opened."""
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            memory = os.fdopen(os.open(self._file, flags, 0o600), "a+b")
            if os.fstat(memory.fileno()).st_uid != os.getuid():
                raise PermissionError(f"{self._file} belongs to another user")
            fcntl.flock(memory, fcntl.LOCK_EX)
        except OSError:  # without a list, every session hashes the shards again
            yield None
            return
        with memory:
            memory.seek(self._read)
            lines = memory.read()
            self._read += len(lines)
            self._known.update(lines.decode(errors="replace").splitlines())
            yield memory


def _line(path: Path, sha256: str) -> str:
    return json.dumps([str(path.resolve()), sha256, *stamp(path)])
