"""Records for MLflow that wait on disk until the store accepts them.

    <folder>/<time>-<kind>.json     waits
    <folder>/refused/...            refused by the store for good; stored with the reason

A record is deleted when the store has it. If the process is killed in between, the record is sent
again, which is idempotent: a run is found by its key before it is created, a point has a time
(MLflow keeps one point of the same name, step, time and value), and other records replace
themselves.
"""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import parse_json, read_text
from stop_core.storage.locks import locked
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath, matches

Record = dict[str, Any]
_numbers = itertools.count()


class RefusedError(Exception):
    """The store refuses a record for good; retrying is useless."""


class Outbox:
    """The waiting records of one MLflow run, in the order in which they were added."""

    def __init__(self, folder: StoragePath) -> None:
        self.folder = folder

    def put(self, record: Record) -> None:
        """Adds a record atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        order = f"{time.time_ns():020d}-{next(_numbers):06d}-{os.getpid()}"
        write_whole(self.folder / f"{order}-{record['kind']}.json", json.dumps(record))

    def waiting(self) -> list[StoragePath]:
        """Returns the records that are not delivered."""
        return matches(self.folder, "[0-9]*.json")

    def refused(self) -> list[StoragePath]:
        """Returns the records that the store refused."""
        return matches(self.folder / "refused", "*.json")

    def deliver(self, send: Callable[[Record], None]) -> Exception | None:
        """Sends the waiting records in order; stops at the first error and returns it.

        Does nothing while another process delivers the same records. `send` raises `RefusedError`
        if the store refuses a record for good, and any other error if it does not answer.
        """
        if not self.waiting():
            return None
        with locked(self.folder / ".lock") as mine:
            for path in self.waiting() if mine else []:
                try:
                    record = parse_json(read_text(path))
                    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                        raise ValueError("it is not a record")
                except ValueError as problem:
                    self._refuse(path, {"kind": "unknown", "refused": f"{path}: {problem}"})
                    path.unlink(missing_ok=True)
                    continue
                try:
                    send(record)
                except RefusedError as problem:
                    self._refuse(path, {**record, "refused": str(problem)})
                except Exception as problem:  # of SQLAlchemy, requests or MLflow
                    return problem
                path.unlink(missing_ok=True)
        return None

    def _refuse(self, path: StoragePath, record: Record) -> None:
        inside(self.folder, "refused").mkdir(exist_ok=True)
        write_whole(inside(self.folder, f"refused/{path.name}"), json.dumps(record))


class Courier:
    """Delivers records in a thread, so that training does not wait for the store; retries."""

    _FIRST_RETRY, _LAST_RETRY = 2.0, 60.0

    def __init__(self, deliver: Callable[[], Exception | None]) -> None:
        self._deliver = deliver
        self._called = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="courier")
        self._thread.start()

    def call(self) -> None:
        """Requests a delivery."""
        self._called.set()

    def close(self, seconds: float = 10.0) -> None:
        """Delivers a last time, waits for it up to `seconds`, and ends."""
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
            except OSError as full:  # the disk that the records wait on
                problem = full
            if ending:
                return
            if problem is None:
                retry, waits = self._FIRST_RETRY, None
            else:
                waits, retry = retry, min(2 * retry, self._LAST_RETRY)
