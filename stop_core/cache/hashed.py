"""Remembers on this machine which files were hashed, so that each is read once.

    $STOP_CACHE_FOLDER/hashed/<hash of host and folder>.jsonl

A line holds the path, the SHA-256, and the size, times and inode that the file had. A file that
was changed, replaced or copied since has no line and is read again.
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
    """Returns what this machine keeps of caches: these lists, and shards from object stores.

    `STOP_CACHE_FOLDER` of the environment, which each machine may set to its own fast disk; else
    `stop-video` in the user's cache folder.
    """
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stop-video"


def stamp(path: Path) -> list[int]:
    """Returns size, time of change in ns, time of the inode's change, and inode of a file.

    `touch` and `cp -p` set the first time; only the system sets the second.
    """
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


class HashedFiles:
    """The files of one folder that had an expected SHA-256 when this machine read them."""

    def __init__(self, folder: Path) -> None:
        # A home folder may be shared by machines whose local disks have the same paths.
        key = hash_json([socket.gethostname(), str(folder.resolve())])[:32]
        self._file = local_folder() / "hashed" / f"{key}.jsonl"
        self._known: set[str] = set()
        self._read = 0

    def has(self, path: Path, sha256: str) -> bool:
        """Whether a file has that SHA-256; reads it unless it was read before, as it is now.

        One process of a machine reads; the others wait for it.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        if _line(path, sha256) in self._known:
            return True
        with self._memory() as memory:
            while (line := _line(path, sha256)) not in self._known:
                if hash_file(path) != sha256:
                    return False
                if line == _line(path, sha256):  # otherwise it was changed meanwhile
                    self._add(line, memory)
        return True

    def add(self, path: Path, sha256: str) -> None:
        """Remembers a file that was hashed while it was written."""
        with self._memory() as memory:
            self._add(_line(path, sha256), memory)

    def _add(self, line: str, memory: BinaryIO | None) -> None:
        self._known.add(line)
        if memory is not None:
            memory.write(f"{line}\n".encode())

    @contextmanager
    def _memory(self) -> Iterator[BinaryIO | None]:
        """Locks and reads the file of this folder; None where no such file can be kept."""
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            memory = os.fdopen(os.open(self._file, flags, 0o600), "a+b")
            if os.fstat(memory.fileno()).st_uid != os.getuid():
                raise PermissionError(f"{self._file} is another user's")
            fcntl.flock(memory, fcntl.LOCK_EX)
        except OSError:  # no such file can be kept: every session reads the shards again
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
