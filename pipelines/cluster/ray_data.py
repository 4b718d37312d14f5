"""Settings of Ray Data."""

import logging
from typing import Any


def quiet(context: Any) -> None:
    """Turns off the output of Ray Data about its executions; `ProgressBar` shows progress."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It warns that the bars are off, and reports the end of every execution.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
