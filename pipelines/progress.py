"""Telling the user how far long work is: from workers through a small file, to the terminal."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from stop_core.cache.files import appearing
from stop_core.documents import build, parse_json, read_text

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_WRITES = 0.5


@dataclass(frozen=True)
class TrainingProgress:
    """The latest training step of a run."""

    step: int
    total: int
    loss: float
    started: float  # seconds since 1970, at the first step that was told of
    first_step: int

    def line(self) -> str:
        """The progress in words, with the time that is left."""
        line = f"step {self.step}/{self.total}, loss {self.loss:.3f}"
        done = self.step - self.first_step
        if not done:
            return line  # one point tells no speed
        left = (time.time() - self.started) / done * (self.total - self.step)
        return f"{line}, about {left:.0f} s left"


class ProgressFile:
    """Written by a worker, read by whoever started it; a reader never sees half of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started = 0.0
        self._first_step: int | None = None
        self._written = 0.0

    def write(self, step: int, total: int, loss: float) -> None:
        """Replaces the file, at most twice a second."""
        if self._first_step is None:
            self._first_step, self._started = step, time.time()
        if time.time() - self._written < _SECONDS_BETWEEN_WRITES and step < total:
            return
        self._written = time.time()
        value = TrainingProgress(step, total, loss, self._started, self._first_step)
        with appearing(self.path, lasting=False) as staging:
            staging.write_text(json.dumps(asdict(value)))

    def read(self) -> TrainingProgress | None:
        """The latest progress; None before the first step."""
        try:
            return build(TrainingProgress, parse_json(read_text(self.path)), self.path)
        except FileNotFoundError:
            return None


@contextmanager
def told(describe: Callable[[], str | None]) -> Iterator[None]:
    """Prints what `describe` returns every few seconds, while the body of the `with` runs."""
    stop = threading.Event()

    def tell() -> None:
        last = None
        while not stop.wait(_SECONDS_BETWEEN_LINES):
            line = describe()
            if line and line != last:
                say(line)
                last = line

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        stop.set()
        teller.join()


def say(line: str) -> None:
    """Prints one line at once."""
    print(line, flush=True, file=sys.stdout)
