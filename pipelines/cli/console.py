"""Output of the commands: results on stdout; progress and diagnostics by `logging` on stderr.

With --json, the result is one JSON document on stdout, for scripts. A failure that is reported by
its message only is a `RunError`.
"""

import json
import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from stop_core.storage.escaping import visible
from stop_core.storage.private import without_password

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_PAUSED = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes
EXIT_INTERRUPTED = 130


class RunError(RuntimeError):
    """A failure whose message says what happened and what to do next."""

    exit_code = EXIT_FAILURE


class Paused(RunError):
    """Work that was saved before its end, because the machine is about to go."""

    exit_code = EXIT_PAUSED


if TYPE_CHECKING:
    from rich.console import Console

_DOCUMENT: ContextVar[dict[str, Any] | None] = ContextVar("document", default=None)
UNREAD = 128 + signal.SIGPIPE
"""The exit code of a program that is terminated by SIGPIPE."""
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0
_LEVELS = {"note:": logging.WARNING, "warning:": logging.WARNING, "error:": logging.ERROR}
_LOG = logging.getLogger(__name__)
_PACKAGE = logging.getLogger(__name__.partition(".")[0])  # a wheel installs it under another name
_OURS = (_PACKAGE.name, "stop_core")


class _StderrHandler(logging.Handler):
    """Writes messages to stderr: ours as they are, those of other libraries with their origin.

    `sys.stderr` is looked up for each message, as notebooks and tests replace it. A write that
    fails raises, so that a command whose stderr is closed ends (`ending_with_reader`).
    """

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.name.partition(".")[0] not in _OURS:
            text = f"{record.levelname.lower()} ({record.name}): {without_password(text)}"
        if sys.stderr is not None:  # `2>&-` leaves none
            sys.stderr.write(f"{visible(text)}\n")
            sys.stderr.flush()


_PACKAGE.addHandler(_StderrHandler())
_PACKAGE.setLevel(logging.INFO)
_OTHERS = _StderrHandler()  # for the root logger, which receives the messages of this package too
_OTHERS.addFilter(lambda record: record.name.partition(".")[0] != _PACKAGE.name)


def set_verbosity(level: int) -> None:
    """Sets which messages of this project a process shows on stderr.

    DEBUG also shows INFO of other libraries, of which only warnings and errors are shown otherwise.
    """
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    root = logging.getLogger()
    root.setLevel(logging.INFO if level == logging.DEBUG else logging.WARNING)
    root.addHandler(_OTHERS)


@contextmanager
def pausing_on_sigterm(pause: Callable[[], None]) -> Iterator[None]:
    """Calls `pause` when SIGTERM comes, which schedulers send before they end a process.

    A second SIGTERM has its previous effect.
    """

    def handle(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        pause()
        say("SIGTERM: the training is saved after this step, and then ends")

    before = signal.signal(signal.SIGTERM, handle) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_verbose() -> bool:
    """Returns whether debug messages are shown."""
    return _LOG.isEnabledFor(logging.DEBUG)


def is_quiet() -> bool:
    """Returns whether progress is not shown."""
    return not _LOG.isEnabledFor(logging.INFO)


def show_debug() -> None:
    """Shows all messages. Ray calls it in each worker that starts, for a driver with --verbose."""
    set_verbosity(logging.DEBUG)


def say(text: str) -> None:
    """Logs progress; as a warning or error if the text begins with "note:" or the like."""
    # Escaped here as well: a log file of the user must not receive control characters.
    _LOG.log(_LEVELS.get(text.partition(" ")[0], logging.INFO), visible(text))


def warn(text: str) -> None:
    """Logs a problem that does not end the command; shown with --quiet as well."""
    _LOG.warning("%s", visible(text))


def print_result(text: str = "") -> None:
    """Prints part of a command's result on stdout; escapes control characters in it."""
    print(visible(text), flush=True)


@contextmanager
def reporting(
    describe: Callable[[], str | None], events: Callable[[], Sequence[str]] = tuple
) -> Iterator[None]:
    """Logs progress while the body of the `with` runs.

    `describe` returns a line, which is logged every few seconds if it has changed; `events` the
    lines that are new since its last call, which are logged at once.
    """
    stop = threading.Event()

    def report() -> None:
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

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for event in events():
            say(event)


def console(width: int | None = None, *, stderr: bool = False) -> "Console":
    """Returns a terminal for tables, `width` characters wide if the output is no terminal.

    Markup, links and control sequences in a text are shown, not obeyed.
    """
    from rich.console import Console
    from rich.text import Text

    class Literal(Console):
        def __init__(self, width: int | None = None) -> None:
            super().__init__(markup=False, emoji=False, highlight=False, stderr=stderr, width=width)

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

    terminal = Literal()
    return terminal if terminal.is_terminal else Literal(width)


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """Exits with `UNREAD` and no message if stdout or stderr is closed by its reader.

    The default action of SIGPIPE is not used: it would also terminate a process whose network
    connection breaks.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # `>&-` leaves none
                sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            poll.register(stream.fileno(), 0)  # errors and hang-ups are always reported
        closed = select.POLLERR | select.POLLHUP
        unread = [descriptor for descriptor, event in poll.poll(0) if event & closed]
        if not unread:  # another pipe or a socket broke: a failure like any other
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in unread:  # Python flushes both again when it exits
            os.dup2(nowhere, descriptor)
        sys.exit(UNREAD)


def wants_json() -> bool:
    """Returns whether the running command prints its result as JSON."""
    return _DOCUMENT.get() is not None


def add_result(**fields: Any) -> None:
    """Adds fields to the document, if one is printed; a list is appended to an earlier one.

    Fields that were added before a failure are printed, too.
    """
    document = _DOCUMENT.get()
    if document is not None:
        for name, value in fields.items():
            earlier = document.get(name)
            if isinstance(value, list) and isinstance(earlier, list):
                value = [*earlier, *value]
            document[name] = value


@contextmanager
def printing_json() -> Iterator[None]:
    """Prints the document and the exit code after the body, also if it fails.

    Meanwhile all output on stdout goes to stderr, also that of other libraries and child processes.
    """
    document: dict[str, Any] = {}
    token = _DOCUMENT.set(document)
    is_own = sys.stdout is sys.__stdout__ and None not in (sys.stdout, sys.stderr)
    if is_own:  # not if a test or a notebook has replaced it
        stdout = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as end:
        document["exit_code"] = end.code or 0
        if end.code and len(document) == 1:
            document["error"] = "the command has failed, and stderr has the reason"
        raise
    except BaseException as problem:
        document["error"] = without_password(f"{type(problem).__name__}: {problem}")
        document["exit_code"] = EXIT_FAILURE
        raise
    finally:
        _DOCUMENT.reset(token)
        if is_own:
            os.dup2(stdout, 1)
            os.close(stdout)
        # Not `print_result`: every character beyond ASCII is escaped here.
        print(json.dumps(_plain(document), default=str, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """Returns a value in types of JSON; `None` for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
