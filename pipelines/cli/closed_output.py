"""Quiet exit of a command whose output is closed, as in `stop --help | head`."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNREAD = 128 + signal.SIGPIPE
"""The exit code of a program that is terminated by SIGPIPE."""


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
        streams = filter(None, (sys.stdout, sys.stderr))
        unread = [stream for stream in streams if _is_unread(stream.fileno())]
        if not unread:  # another pipe or a socket broke: a failure like any other
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:  # Python flushes both again when it exits
            os.dup2(nowhere, stream.fileno())
        sys.exit(UNREAD)


def _is_unread(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
