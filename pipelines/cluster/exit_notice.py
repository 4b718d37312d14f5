"""A message on stderr if the process is terminated without one.

If its node is lost, Ray ends a driver from native code by `_exit`: no exception, no message.
Another process waits for the end of this one, and prints a message if it was not announced.
"""

import atexit
import subprocess
from contextlib import suppress
from functools import cache

_MESSAGE = (
    "error: the process was ended from outside of Python: it was killed, or Ray on this machine "
    "was (its log is in {}/session_latest/logs; a machine that is short of memory is the "
    "usual reason). Finished work is kept; run the same command again to resume"
)


@cache
def notify_of_exit(sessions: str) -> None:
    """Starts a process that prints a message if this one ends without running its exit handlers.

    Args:
        sessions: the folder of Ray's sessions, which contains the logs.
    """
    # It reads until a line comes or this process is gone; an interrupt does not reach it.
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", 'read line || echo "$0" >&2', _MESSAGE.format(sessions)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        assert watcher.stdin is not None
        with suppress(OSError):
            watcher.stdin.write(b"a clean end\n")
            watcher.stdin.close()
        watcher.wait()

    atexit.register(end)
