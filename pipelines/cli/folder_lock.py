"""Exclusive use of a folder of results."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stop_core.cache.files import LOCK
from stop_core.storage.names import open_lock

from .console import say


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process works in this folder; the lock of a killed process is free."""
    with open_lock(folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process works in {folder}; waiting until it ends")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
