"""Settings and errors of Ray Data."""

import logging
from typing import Any


def quiet(context: Any) -> None:
    """Turns off what Ray Data prints about its executions; progress is told by `Progress`."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It warns that the bars are off, and reports the end of every execution.
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def error_line(error: Exception) -> str:
    """What can be shown of an error of a worker."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), "no reason given"
    )
