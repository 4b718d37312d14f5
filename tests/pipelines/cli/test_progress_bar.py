"""Laws of progress over videos: an estimate comes from finished work only."""

import logging
import re
import time
from collections.abc import Iterator

import pytest

from pipelines.cli import console
from pipelines.cli.console import set_verbosity
from pipelines.cli.progress_bar import Done, Pace, ProgressBar, duration


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_duration_is_hours_minutes_and_seconds() -> None:
    shown = {seconds: duration(seconds) for seconds in (0, 59.6, 61, 3599.4, 3600, 90061)}
    assert [*shown.values()] == ["0:00:00", "0:01:00", "0:01:01", "0:59:59", "1:00:00", "25:01:01"]


def test_time_left_comes_from_finished_work_only() -> None:
    clock = _Clock()
    pace = Pace(clock=clock)
    assert pace.left(10, 100) == ""  # one point gives no rate
    clock.now += 20
    assert pace.left(20, 100) == ", about 0:02:40 left"
    for _ in range(5):
        clock.now += 11
        assert pace.left(20, 100) == ", about 0:02:40 left"
    clock.now += 6  # 61 s since something finished
    assert pace.left(20, 100) == ", nothing finished for 0:01:00"
    clock.now += 3600
    assert pace.left(20, 100) == ", nothing finished for 1:01:00"
    assert re.fullmatch(r", about \d+:\d\d:\d\d left", pace.left(30, 100))


def test_slow_work_is_not_reported_as_a_pause() -> None:
    clock = _Clock()
    pace = Pace(clock=clock)
    for done in range(1, 5):
        pace.left(done, 10)
        clock.now += 300
    assert pace.left(4, 10) == ", about 0:30:00 left"
    clock.now += 600
    assert pace.left(4, 10) == ", about 0:30:00 left"
    clock.now += 1
    assert "nothing finished for 0:15:00" in pace.left(4, 10)


def test_start_of_workers_does_not_affect_the_rate() -> None:
    clock = _Clock()
    pace = Pace(clock=clock)
    pace.left(0, 30)
    clock.now += 50
    assert pace.left(10, 30) == ""
    clock.now += 5
    assert pace.left(20, 30) == ", about 0:00:05 left"


def test_repeated_work_restarts_the_estimate() -> None:
    clock = _Clock()
    pace = Pace(clock=clock)
    pace.left(10, 100)
    clock.now += 10
    pace.left(50, 100)
    clock.now += 10
    assert pace.left(40, 100) == ""
    clock.now += 10
    assert pace.left(50, 100) == ", about 0:00:50 left"


def test_progress_of_decoding_is_logged_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LOOKS", 0.01)

    def shards() -> Iterator[Done]:
        for _ in range(4):
            time.sleep(0.1)
            yield Done(clips=5, failures=1)

    ProgressBar(20).follow(shards())
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(
        r"^decoded 15 of 20 clips, 3 failed, about 0:00:0\d left$", captured.err, re.MULTILINE
    )


def test_quiet_shows_no_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    ProgressBar(1).follow(iter([Done(clips=1, failures=0)]))
    assert "1/1" in capsys.readouterr().err
    set_verbosity(logging.WARNING)
    quiet = ProgressBar(1)
    quiet.follow(iter([Done(clips=1, failures=0)]))
    assert quiet.clips == 1
    assert capsys.readouterr().err == ""
