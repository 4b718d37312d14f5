"""Progress of long work: from workers through a small file, to the terminal's stderr."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stop_core.cache.files import appearing
from stop_core.documents import build, parse_json, read_text
from stop_core.outside_text import visible

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_WRITES = 0.5


def duration(seconds: float) -> str:
    """Returns h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Pace:
    """Estimates the time left, from finished work only.

    The estimate changes when work finishes, and not in between. While nothing finishes for much
    longer than before there is none, and the length of the pause is reported instead.

    Args:
        shortest_pause: seconds without finished work that are never reported.
        clock: gives seconds.
    """

    def __init__(
        self,
        shortest_pause: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shortest_pause = shortest_pause
        self._clock = clock
        # Work and its time: where the rate is counted from, and the latest.
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)
        self._longest = 0.0

    def left(self, done: float, total: float) -> str:
        """Returns ", about 0:12:30 left", or the pause; "" while there is no rate yet.

        Args:
            done: the work that is finished by now; call it every few seconds.
            total: all of the work.
        """
        now = self._clock()
        # Before the first work is finished, workers start; less is done after one was restarted.
        if self._first is None or done < self._last[0] or (done > 0 and self._first[0] == 0):
            self._first = self._last = done, now
            return ""
        before, at = self._last
        if done > before:
            self._longest = max(self._longest, now - at)
            self._last = before, at = done, now
        if now - at > max(self._shortest_pause, 3 * self._longest):
            return f", nothing finished for {duration((now - at) // 60 * 60)}"
        first, began = self._first
        if before == first:
            return ""
        return f", about {duration((at - began) / (before - first) * (total - before))} left"


@dataclass(frozen=True)
class TrainingProgress:
    """The latest training step of a run, and what was reported so far."""

    step: int = 0
    total: int = 0
    loss: float = 0.0
    events: tuple[str, ...] = ()
    """A line each: where the training resumed, and the measures of every epoch."""


class ProgressFile:
    """Written by a worker, read by the driver, which never sees half of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._now: TrainingProgress | None = None
        self._written = 0.0

    def write(self, step: int, total: int, loss: float) -> None:
        """Records a step, at most twice a second."""
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES or step == total:
            self._written = time.monotonic()
            self._replace(step=step, total=total, loss=loss)

    def report(self, event: str) -> None:
        """Records a line for the user."""
        self._replace(events=(*self._current().events, event))

    def _replace(self, **values: object) -> None:
        self._now = TrainingProgress(**{**asdict(self._current()), **values})
        with appearing(self.path, lasting=False) as staging:
            staging.write_text(json.dumps(asdict(self._now)))

    def _current(self) -> TrainingProgress:
        """What this worker wrote last, or the one before it, which Ray has restarted."""
        return self._now or self.read() or TrainingProgress()

    def read(self) -> TrainingProgress | None:
        """The latest progress; None before the first."""
        try:
            return build(TrainingProgress, parse_json(read_text(self.path)), self.path)
        except FileNotFoundError:
            return None


class TrainingLines:
    """What the driver prints of one training: the events as they come, and how far it is."""

    def __init__(self, file: ProgressFile) -> None:
        self._file = file
        self._pace = Pace()
        self._printed = 0

    def events(self) -> list[str]:
        """The events since the last call; those of an epoch with the time left."""
        progress = self._file.read() or TrainingProgress()
        new = progress.events[self._printed :]
        self._printed += len(new)
        left = self._left(progress)
        return [f"{event}{left if event.startswith('epoch') else ''}" for event in new]

    def line(self) -> str | None:
        """How far it is; None before the first step."""
        progress = self._file.read()
        if progress is None or not progress.total:
            return None
        line = f"step {progress.step}/{progress.total}, loss {progress.loss:.3f}"
        return line + self._left(progress)

    def _left(self, progress: TrainingProgress) -> str:
        return self._pace.left(progress.step, progress.total) if progress.total else ""


@contextmanager
def told(
    describe: Callable[[], str | None], events: Callable[[], Sequence[str]] = tuple
) -> Iterator[None]:
    """Prints progress while the body of the `with` runs.

    Args:
        describe: returns a line, which is printed every few seconds if it is another one.
        events: returns the lines that have come since its last call, which are printed at once.
    """
    stop = threading.Event()

    def tell() -> None:
        last, due = None, time.monotonic() + _SECONDS_BETWEEN_LINES
        while not stop.wait(_SECONDS_BETWEEN_LOOKS):
            for event in events():
                say(event)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + _SECONDS_BETWEEN_LINES
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
        for event in events():
            say(event)


def say(text: str) -> None:
    """Prints progress or a diagnosis on stderr; makes control characters in it visible."""
    print(visible(text), flush=True, file=sys.stderr)


def print_result(text: str = "") -> None:
    """Prints part of a command's result on stdout; makes control characters in it visible."""
    print(visible(text), flush=True)


def console(width: int | None = None, *, stderr: bool = False) -> "Console":
    """The terminal for tables; whatever is no terminal is `width` characters wide.

    Nothing in a text is markup, a link or a control sequence.
    """
    from rich.console import Console
    from rich.text import Text

    class Literal(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

    plain = {"markup": False, "emoji": False, "highlight": False, "stderr": stderr}
    terminal = Literal(**plain)
    return terminal if width is None or terminal.is_terminal else Literal(width=width, **plain)
