"""Records for MLflow that wait on disk until the store takes them.

    <folder>/<time>-<kind>.json     waits
    <folder>/refused/...            the store will never take it; kept, with the reason

A record leaves the disk when the store has it. A process that is killed between the two sends it
again, and nothing is doubled: a run is found by its key before it is created, a point carries its
own time (MLflow keeps one of the same name, step, time and value), and the rest replaces itself.
"""

import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import parse_json, read_text
from stop_core.storage.names import inside, open_lock

Record = dict[str, Any]
_numbers = itertools.count()


class RefusedError(Exception):
    """The store understood a record and will never take it."""


class Outbox:
    """The waiting records of one MLflow run, in the order in which they were put."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, record: Record) -> None:
        """Adds a record, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        order = f"{time.time_ns():020d}-{next(_numbers):06d}-{os.getpid()}"
        write_whole(self.folder / f"{order}-{record['kind']}.json", json.dumps(record))

    def waiting(self) -> list[Path]:
        """The records that are not delivered."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def refused(self) -> list[Path]:
        """The records that the store refused."""
        return sorted((self.folder / "refused").glob("*.json"))

    def deliver(self, send: Callable[[Record], None]) -> Exception | None:
        """Sends what waits, until it is all gone or fails; returns what it failed with.

        Another process that is delivering the same records is left to it.

        Args:
            send: takes a record to the store. It raises `RefusedError` for one that is no use
                trying again, and anything else for a store that is away.
        """
        if not self.waiting():
            return None
        with _held(self.folder / ".lock") as mine:
            for path in self.waiting() if mine else []:
                try:
                    record = parse_json(read_text(path))
                    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                        raise ValueError("it is no record")
                except ValueError as problem:
                    self._refuse(path, {"kind": "unknown", "refused": f"{path}: {problem}"})
                    path.unlink(missing_ok=True)
                    continue
                try:
                    send(record)
                except RefusedError as problem:
                    self._refuse(path, {**record, "refused": str(problem)})
                except Exception as problem:  # SQLAlchemy's, requests' and MLflow's own kinds
                    return problem
                path.unlink(missing_ok=True)
        return None

    def _refuse(self, path: Path, record: Record) -> None:
        inside(self.folder, "refused").mkdir(exist_ok=True)
        write_whole(inside(self.folder, f"refused/{path.name}"), json.dumps(record))


class Courier:
    """Delivers in the background, so that nothing waits for the store; retries while it is away."""

    _FIRST_RETRY, _LAST_RETRY = 2.0, 60.0

    def __init__(self, deliver: Callable[[], Exception | None]) -> None:
        self._deliver = deliver
        self._called = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="courier")
        self._thread.start()

    def call(self) -> None:
        """There is something to deliver."""
        self._called.set()

    def close(self, seconds: float = 10.0) -> None:
        """Delivers once more, waits for it so long at most, and ends."""
        self._ending = True
        self._called.set()
        self._thread.join(seconds)

    def _work(self) -> None:
        retry = self._FIRST_RETRY
        waits: float | None = None
        while True:
            self._called.wait(waits)
            self._called.clear()
            ending = self._ending
            try:
                problem = self._deliver()
            except OSError as full:  # of the disk that the records wait on
                problem = full
            if ending:
                return
            if problem is None:
                retry, waits = self._FIRST_RETRY, None
            else:
                waits, retry = retry, min(2 * retry, self._LAST_RETRY)


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the file; it does not wait."""
    with open_lock(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
