"""Progress over many videos: a bar on a terminal, log lines elsewhere, and the time left."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .console import console, is_quiet, reporting


@dataclass(frozen=True)
class Done:
    """Counts of a finished shard, or part of the predictions."""

    clips: int
    failures: int
    """Number of the clips that could not be decoded."""


class ProgressBar:
    """Progress of decoding: a bar on a terminal, elsewhere a line about every 10 seconds."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.clips = 0
        self.failures = 0
        self._pace = Pace()
        self._console = console(stderr=True)

    def follow(self, finished: Iterator[Done]) -> None:
        """Counts finished work until there is no more."""
        if is_quiet() or not self._console.is_terminal:
            with reporting(self._line):
                for done in finished:
                    self._count(done)
            return
        from rich import progress
        from rich.table import Column
        from rich.text import Text

        class Left(progress.ProgressColumn):
            def render(column, task: progress.Task) -> Text:
                return Text(self._pace.left(self.clips, self.total).lstrip(", "))

        columns = (
            progress.TextColumn("decoding"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("clips, {task.fields[failed]} failed"),
            Left(Column(no_wrap=True)),
        )
        with progress.Progress(*columns, console=self._console) as bar:
            task = bar.add_task("", total=self.total, failed=0)
            for done in finished:
                self._count(done)
                bar.update(task, completed=self.clips, failed=self.failures)

    def _count(self, done: Done) -> None:
        self.clips += done.clips
        self.failures += done.failures

    def _line(self) -> str:
        counts = f"decoded {self.clips} of {self.total} clips, {self.failures} failed"
        return counts + self._pace.left(self.clips, self.total)


def duration(seconds: float) -> str:
    """Returns h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Pace:
    """Estimates the time left, from finished work only.

    The estimate changes only when work finishes. If nothing finishes for much longer than before,
    and for `shortest_pause` seconds, the length of the pause is reported instead.
    """

    def __init__(
        self, shortest_pause: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shortest_pause = shortest_pause
        self._clock = clock
        # Finished work and the time of it: at the start of the measured rate, and the latest.
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)
        self._longest = 0.0

    def left(self, done: float, total: float) -> str:
        """Returns ", about 0:12:30 left", or the pause; "" while there is no rate yet.

        Call it every few seconds with the finished work and all of it.
        """
        now = self._clock()
        # Workers start before the first work is finished; `done` falls when one is restarted.
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
