"""Laws of progress: an estimate comes from finished work, and what is reported is printed once."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import console
from pipelines.cli.console import reporting, say
from pipelines.cli.progress_bar import Done, Pace, ProgressBar, duration
from pipelines.training.progress_file import ProgressFile, TrainingLines


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_duration_is_hours_minutes_and_seconds() -> None:
    shown = {seconds: duration(seconds) for seconds in (0, 59.6, 61, 3599.4, 3600, 90061)}
    assert [*shown.values()] == ["0:00:00", "0:01:00", "0:01:01", "0:59:59", "1:00:00", "25:01:01"]


def test_the_time_left_is_that_of_the_finished_work_and_stands_while_nothing_finishes() -> None:
    clock = _Clock()
    pace = Pace(clock=clock)
    assert pace.left(10, 100) == ""  # one point tells no rate
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


def test_slow_work_is_no_pause() -> None:
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


def test_the_start_of_the_workers_is_no_part_of_the_rate() -> None:
    clock = _Clock()
    pace = Pace(clock=clock)
    pace.left(0, 30)
    clock.now += 50
    assert pace.left(10, 30) == ""
    clock.now += 5
    assert pace.left(20, 30) == ", about 0:00:05 left"


def test_work_that_is_repeated_begins_the_estimate_again() -> None:
    clock = _Clock()
    pace = Pace(clock=clock)
    pace.left(10, 100)
    clock.now += 10
    pace.left(50, 100)
    clock.now += 10
    assert pace.left(40, 100) == ""
    clock.now += 10
    assert pace.left(50, 100) == ", about 0:00:50 left"


def test_every_event_is_printed_once_though_a_worker_is_started_again(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    lines = TrainingLines(ProgressFile(file))
    assert lines.events() == []
    assert lines.line() is None
    first = ProgressFile(file)
    first.report("resuming x")
    assert lines.line() is None
    assert lines.events() == ["resuming x"]
    first.write(1, 4, 0.5)
    assert lines.line() == "step 1/4, loss 0.500"
    first.report("epoch 1/2: a")
    second = ProgressFile(file)  # of the worker that Ray has started in its place
    second.report("resuming y")
    second.write(4, 4, 0.25)
    second.report("epoch 2/2: b")
    events = lines.events()
    assert [event.partition(", about")[0] for event in events] == [
        "epoch 1/2: a",
        "resuming y",
        "epoch 2/2: b",
    ]
    assert lines.events() == []


def test_progress_goes_to_stderr_and_the_last_event_is_not_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LOOKS", 0.01)
    events = [["first"], ["second", "third"]]
    with reporting(lambda: "a line", lambda: events.pop(0) if len(events) > 1 else []):
        time.sleep(0.2)
        events.append([])
    say("end")
    said = capsys.readouterr()
    assert not said.out
    lines = said.err.splitlines()
    assert lines[-1] == "end"
    assert lines.count("a line") == 1  # it does not change
    assert [line for line in lines if line != "a line"] == ["first", "second", "third", "end"]


def test_the_progress_of_decoding_is_told_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LOOKS", 0.01)

    def shards() -> Iterator[Done]:
        for _ in range(4):
            time.sleep(0.1)
            yield Done(clips=5, failures=1)

    ProgressBar(20).follow(shards())
    said = capsys.readouterr()
    assert not said.out
    assert re.search(
        r"^decoded 15 of 20 clips, 3 failed, about 0:00:0\d left$", said.err, re.MULTILINE
    )
