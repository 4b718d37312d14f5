"""Progress of long work: from workers through a small file, to the terminal's stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stop_core.storage.escaping import visible

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0


@contextmanager
def reporting(
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
