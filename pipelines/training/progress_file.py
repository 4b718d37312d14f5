"""The progress of one training, in a small file: a worker writes it, the driver prints it."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from stop_core.storage.atomic import appearing
from stop_core.storage.documents import build, parse_json, read_text
from stop_core.storage.paths import StoragePath

from ..cli.progress_bar import Pace

_LOG = logging.getLogger(__name__)
_SECONDS_BETWEEN_WRITES, _ON_A_STORE = 0.5, 10.0


@dataclass(frozen=True)
class TrainingProgress:
    """The content of the file: the latest training step, and all events so far."""

    step: int = 0
    total: int = 0
    loss: float = 0.0
    events: tuple[str, ...] = ()
    """One line each: where the training resumed, and the metrics of every epoch."""


class ProgressFile:
    """The file. It is replaced atomically, so the driver never reads a truncated one."""

    def __init__(self, path: StoragePath) -> None:
        self.path = path if isinstance(path, Path) else path.once()
        self._now: TrainingProgress | None = None
        self._written = 0.0
        self._pause = _SECONDS_BETWEEN_WRITES if isinstance(path, Path) else _ON_A_STORE

    def write(self, step: int, total: int, loss: float) -> None:
        """Records a step, at most twice a second; on an object store, every ten seconds."""
        if time.monotonic() - self._written >= self._pause or step == total:
            self._written = time.monotonic()
            self._replace(step=step, total=total, loss=loss)

    def report(self, event: str) -> None:
        """Records a line for the user."""
        self._replace(events=(*self._current().events, event))

    def read(self) -> TrainingProgress | None:
        """Returns the latest progress; None if nothing was recorded yet."""
        try:
            return build(TrainingProgress, parse_json(read_text(self.path)), self.path)
        except FileNotFoundError:
            return None
        except OSError:
            if isinstance(self.path, Path):
                raise
            return None  # the store is away, and the progress is only for the terminal

    def _replace(self, **values: object) -> None:
        self._now = TrainingProgress(**{**asdict(self._current()), **values})
        try:
            with appearing(self.path, lasting=False) as staging:
                staging.write_text(json.dumps(asdict(self._now)))
        except OSError:
            if isinstance(self.path, Path):
                raise
            _LOG.debug("%s cannot be written", self.path, exc_info=True)

    def _current(self) -> TrainingProgress:
        # A worker that Ray restarted continues the file of the worker before it.
        return self._now or self.read() or TrainingProgress()


class TrainingLines:
    """The lines that the driver prints about one training.

    `waiting` returns what the first step waits for, or None.
    """

    def __init__(
        self, file: ProgressFile, waiting: Callable[[], str | None] = lambda: None
    ) -> None:
        self._file = file
        self._waiting = waiting
        self._pace = Pace()
        self._printed = 0

    def events(self) -> list[str]:
        """Returns the events since the last call; the time left is added to those of an epoch."""
        progress = self._file.read() or TrainingProgress()
        new = progress.events[self._printed :]
        self._printed += len(new)
        left = self._left(progress)
        return [f"{event}{left if event.startswith('epoch') else ''}" for event in new]

    def line(self) -> str | None:
        """Returns the current step, loss and time left, or what the first step waits for."""
        progress = self._file.read()
        if progress is None or not progress.total:
            return self._waiting() or "loading the model and the data"
        line = f"step {progress.step}/{progress.total}, loss {progress.loss:.3f}"
        ended = progress.step == progress.total
        return line + (", validating and testing" if ended else self._left(progress))

    def _left(self, progress: TrainingProgress) -> str:
        ended = progress.step == progress.total  # what follows, such as the test, has no steps
        return "" if ended else self._pace.left(progress.step, progress.total)
