"""Checks names from untrusted sources before they become paths, and creates files safely.

Keys of a bucket, annotations, video ids, and the fields of manifests, job files, indices, model
folders and runs are written by others. `check_path` checks each of them before it becomes a path,
and `inside` before a file is written, removed or renamed there.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import IO, TypeVar

from stop_core.storage.paths import RemotePath

P = TypeVar("P", Path, RemotePath, Path | RemotePath)

LONGEST_NAME = 255
"""Maximum bytes of one part of a path on all common file systems."""
_LONGEST_PATH = 4000
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")


def check_path(path: object, where: object) -> str:
    """Returns `path` if it is relative, with forward slashes, and stays below its folder.

    Raises ValueError for an absolute path, a part that is empty, `.` or `..`, a control character,
    a backslash, or a name that no file system takes; the message begins with `where`.
    """
    if reason := _problem(path):
        raise ValueError(
            f"{where}: the name {_shown(path)} {reason}, so it cannot name a file below a folder; "
            "rename it, or do not use this data"
        )
    assert isinstance(path, str)
    return path


def is_a_path_below_a_folder(path: str) -> bool:
    """Returns whether `check_path` accepts a path."""
    return not _problem(path)


def is_the_name_of_a_file(name: str) -> bool:
    """Returns whether it is such a path of one part, which names a file in a given folder."""
    return "/" not in name and not _problem(name)


def inside(folder: P, path: str) -> P:
    """Returns `folder / path`; ValueError as `check_path`, or for a link that leads out of it."""
    joined = folder / check_path(path, folder)
    if isinstance(joined, Path):
        _refuse_links(joined, path)
    return joined


def _refuse_links(joined: Path, path: str) -> None:
    parts = [joined, *joined.parents]
    folder = parts[path.count("/") + 1]
    if any(part.is_symlink() for part in parts[: path.count("/") + 1]):
        target = joined.resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ValueError(
                f"{joined} is a link, or is behind one, that leads out of {folder} to {target}: "
                "remove the link, or give the folder that it leads to"
            )


def create(path: Path) -> None:
    """Creates an empty file. An existing file or link of that name is an error."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def open_lock(path: Path) -> IO[bytes]:
    """Opens a file for locking, and creates it if missing; OSError for a link, pipe or device."""
    # O_NONBLOCK: opening a pipe must not wait for its other end.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as problem:
        if problem.errno != errno.ELOOP:
            raise
        raise OSError(f"{path} is a link, and a lock must be a file: remove the link") from problem
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file, and a lock must be one: remove it")
    return file


def _problem(path: object) -> str:
    """Returns why a path cannot be joined to a folder; empty if it can."""
    if not isinstance(path, str):
        return "is not text"
    if path.startswith("/"):
        return "is absolute"
    if _FORBIDDEN.search(path):
        return "has a control character or a backslash"
    parts = path.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return "has a part that is empty, . or .."
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        return "has half of a surrogate pair"
    if max(sizes) > LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
        return f"is longer than {LONGEST_NAME} bytes a part or {_LONGEST_PATH} in all"
    return ""


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
