"""Prevents an encoder from making this process and its later children real-time processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Restores the scheduling of the calling thread after the body.

    SVT-AV1 sets the encoding thread to SCHED_FIFO, priority 99, if it is allowed to, and leaves it
    so. Processes that are started from there inherit it, such as Ray or a browser. If one of them
    spins on each processor, nothing else runs on the machine.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)
