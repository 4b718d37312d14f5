"""Keeps an encoder from making this process, and so all that it starts later, a real-time one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def same_scheduling() -> Iterator[None]:
    """Gives the calling thread back the scheduling that it had before the body.

    SVT-AV1 sets the thread that encodes to SCHED_FIFO, priority 99, where it is allowed to, and
    leaves it so. Whatever is started from there inherits it: a Ray, a browser. As soon as one of
    them spins on each processor, nothing else on the machine runs any more.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)
