"""Ending as other programs do when nobody reads the output any more, as in `stop --help | head`."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNREAD = 128 + signal.SIGPIPE
"""The exit code, which is that of a program that SIGPIPE ends."""


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """Exits quietly, with `UNREAD`, if the reader of stdout or stderr closes it inside the body.

    Not SIGPIPE's default action, which would also end a process whose network connection breaks.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # `>&-` leaves none
                sys.stdout.flush()
    except BrokenPipeError:
        streams = filter(None, (sys.stdout, sys.stderr))
        unread = [stream for stream in streams if _is_unread(stream.fileno())]
        if not unread:  # another pipe or a socket has broken: a failure like any other
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:  # Python flushes both once more as it ends
            os.dup2(nowhere, stream.fileno())
        sys.exit(UNREAD)


def _is_unread(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
