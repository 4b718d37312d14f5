"""Files one after another, each on this machine for as long as it is used."""

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
    """A file on this machine, which goes when `closing` is closed if it is a copy."""

    file: Path
    closing: ExitStack
    problem: str = ""
    """Why there is no copy."""


def local_files(paths: Iterable[StoragePath], sources: deque[LocalCopy]) -> Iterator[Path]:
    """Yields local files with the bytes of `paths`, fetched as they are asked for.

    Args:
        paths: of files, some of which may be on an object store.
        sources: to each file that is yielded, its source is added here; whoever takes it closes it.

    Raises:
        OSError: if an object store does not answer, or here is no room: neither says anything of
            the file.
    """
    for path in paths:
        closing = ExitStack()
        try:
            source = LocalCopy(closing.enter_context(local_file(path)), closing)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            path.exists()  # raises if nothing can be had from the store
            source = LocalCopy(Path(path.name), closing, f"cannot be fetched: {error}")
        sources.append(source)
        yield source.file
