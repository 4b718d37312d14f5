"""Laws of output: results on stdout, everything else on stderr, as much of it as is wanted."""

import logging
import time
from io import StringIO

import pytest

from pipelines.cli import console
from pipelines.cli.console import print_result, reporting, say, set_verbosity

QUIET = ["a warning", "an error", "note: look", "warning (library): of a library"]
NORMAL = ["a warning", "an error", "note: look", "progress", "warning (library): of a library"]
VERBOSE = [*NORMAL, "a detail", "a detail of the core", "info (library): of a library"]


@pytest.mark.parametrize(
    ("level", "shown"),
    [(logging.WARNING, QUIET), (logging.INFO, NORMAL), (logging.DEBUG, VERBOSE)],
)
def test_verbosity_selects_the_messages_and_never_the_results(
    level: int, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_verbosity(level)
    set_verbosity(level)  # prints nothing twice
    ours, core = logging.getLogger("pipelines.some.module"), logging.getLogger("stop_core.module")
    library = logging.getLogger("library")
    print_result("a result")
    say("progress")
    say("note: look")
    ours.debug("a detail")
    ours.warning("a %s", "warning")
    ours.error("an error")
    core.debug("a detail of the core")
    library.debug("never shown")
    library.info("of a library")
    library.warning("of a library")
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert sorted(captured.err.splitlines()) == sorted(shown)


def test_messages_of_libraries_show_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    set_verbosity(logging.DEBUG)
    logging.getLogger("library").info("connecting to http://me:secret@host/mlflow")
    assert capsys.readouterr().err == "info (library): connecting to http://me:***@host/mlflow\n"


def test_messages_go_to_the_present_stderr_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    stream = StringIO()
    monkeypatch.setattr(stream, "write", written.append)
    monkeypatch.setattr("sys.stderr", stream)
    say("100% of \x1b[1m the clips\nare done")
    assert written == ["100% of \\u001b[1m the clips\nare done\n"]
    monkeypatch.setattr("sys.stderr", None)
    say("nobody reads this")


def test_a_closed_stderr_is_an_error_of_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError

    stream = StringIO()
    monkeypatch.setattr(stream, "write", closed)
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(BrokenPipeError):
        say("progress")


def test_progress_is_on_stderr_and_the_last_event_is_not_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LOOKS", 0.01)
    events = [["first"], ["second", "third"]]
    with reporting(lambda: "a line", lambda: events.pop(0) if len(events) > 1 else []):
        time.sleep(0.2)
        events.append([])
    say("end")
    captured = capsys.readouterr()
    assert not captured.out
    lines = captured.err.splitlines()
    assert lines[-1] == "end"
    assert lines.count("a line") == 1  # it does not change
    assert [line for line in lines if line != "a line"] == ["first", "second", "third", "end"]
