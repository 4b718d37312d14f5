"""Locks: one process at a time works in a folder, on a disk or on an object store.

On a disk, a lock is a locked file, which the system frees when its process ends. On an object
store, it is a prefix with one object per process, a claim:

    <folder>/.lock/<random>      renewed every 15 seconds; expires 60 seconds after the last renewal

A process writes its claim, then lists all claims. If another one has not expired, it removes its
own and tries again later. Two processes cannot both get the lock, because a listing shows every
object that was written before: S3 and GCS guarantee it, and of two processes, the one that wrote
last lists both claims. Ages are differences of the store's own times, so clocks need not agree. No
conditional writes are needed, which pyarrow does not offer.

A process that was suspended or cut off for so long that its claim expired looks for others before
it renews the claim. If there is one, it writes nothing more below the folder (`FENCED`).
"""

import fcntl
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from stop_core.storage.atomic import write_whole
from stop_core.storage.names import open_lock
from stop_core.storage.paths import FENCED, RemotePath, StoragePath

_LOG = logging.getLogger(__name__)
RENEWED, EXPIRED = 15.0, 60.0
"""Seconds between renewals of a claim, and from the last one to its end."""
_OWN_EXPIRED = 45.0  # by the clock of its process, so that it stops before others take over
_PAUSE = 3.0  # seconds at most between two attempts


@contextmanager
def locked(path: StoragePath, wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Yields whether this process has the lock `path`, a file or the prefix of the claims.

    `wait` is called once if another process has the lock, which is then waited for; without it,
    the lock is not waited for.
    """
    if isinstance(path, RemotePath):
        claim, waits = _Claim(path), False
        while not (mine := claim.take()) and wait:
            if not waits:
                wait()
                waits = True
            time.sleep(random.uniform(1, _PAUSE))  # so that two do not meet again and again
        try:
            yield mine
        finally:
            claim.release()
        return
    with open_lock(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                yield False
                return
            wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True


class _Claim:
    """The claim of this process on a lock on an object store."""

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder
        self.own = folder / secrets.token_hex(8)
        self._renewed = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Claims the lock, and renews the claim in a thread; returns False if another is alive."""
        FENCED.discard(self.folder.parent)
        self._write(self.own)
        if not self._is_only(self.folder):
            self.own.unlink(missing_ok=True)
            return False
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lock")
        self._thread.start()
        return True

    def release(self) -> None:
        """Removes the claim; if the store does not answer, it expires."""
        self._ended.set()
        if self._thread:
            self._thread.join()
            with suppress(OSError):
                self.own.once().unlink(missing_ok=True)

    def _write(self, own: RemotePath) -> None:
        began = time.monotonic()
        write_whole(own, f"{socket.gethostname()} {os.getpid()}")
        self._renewed = began

    def _is_only(self, folder: RemotePath) -> bool:
        """Returns whether no other claim is alive; removes expired ones."""
        claims = {name: status for name, status in folder.listing(recursive=False) if status}
        own = claims.pop(self.own.name, None)
        if own is None:
            return False
        for name, other in claims.items():
            if own.st_mtime_ns - other.st_mtime_ns < EXPIRED * 1e9:
                return False
            (folder / name).unlink(missing_ok=True)
        return True

    def _renew(self) -> None:
        own = self.own.once()
        while not self._ended.wait(RENEWED):
            is_late = time.monotonic() - self._renewed > _OWN_EXPIRED
            try:
                if is_late and not own.exists():
                    break
                self._write(own)
                if is_late and not self._is_only(self.folder.once()):
                    break
            except OSError as problem:  # the store is away: tried again
                _LOG.debug("the lock %s cannot be renewed: %s", self.folder, problem)
        else:
            return
        FENCED.add(self.folder.parent)
        with suppress(OSError):
            own.unlink(missing_ok=True)
