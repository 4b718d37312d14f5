"""A sentence on stderr for a process that comes to its end without one.

Ray ends a driver whose node is lost from native code, by `_exit`: no exception, no message. Another
process waits for the end, and speaks if it was not announced.
"""

import atexit
import subprocess
from contextlib import suppress
from functools import cache

_SENTENCE = (
    "error: the process was ended from outside of Python: it was killed, or Ray on this machine "
    "was (its log is in {}/session_latest/logs; a machine that is short of memory is the "
    "usual reason). What is complete stays; run the same command again to go on"
)


@cache
def notify_of_exit(sessions: str) -> None:
    """Has another process print what happened, should this one end without cleaning up.

    Args:
        sessions: the folder of Ray's sessions, which have its logs.
    """
    # It reads until a line comes or this process is gone; an interrupt is not meant for it.
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", 'read line || echo "$0" >&2', _SENTENCE.format(sessions)],
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
