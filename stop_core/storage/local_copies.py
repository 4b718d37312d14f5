"""Local copies of files, each for as long as it is used."""

import errno
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from stop_core.storage.paths import StoragePath, local_file

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class LocalCopy:
    """A local file. If it is a copy, closing `closing` deletes it."""

    file: Path
    closing: ExitStack
    problem: str = ""
    """The reason if there is no copy."""


def local_files(paths: Iterable[StoragePath], sources: deque[LocalCopy]) -> Iterator[Path]:
    """Yields local files with the bytes of `paths`, fetched on demand.

    Args:
        paths: files, some of which may be on an object store.
        sources: receives a LocalCopy for each file; the caller closes it.

    Raises:
        OSError: if an object store does not answer, or the local disk is full.
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
