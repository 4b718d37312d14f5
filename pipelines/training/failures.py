"""Failures of a training or an evaluation: one sentence for the user, the traceback for MLflow."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..cli.console import Paused, RunError
from ..cli.folders import is_full
from ..tracking.queued_run import QueuedRun

FAILURE_TAG = "failure"
"""MLflow tag with the reason of the last failure; it is removed when the training succeeds."""


@contextmanager
def failures_recorded(tracked: QueuedRun, what: str) -> Iterator[None]:
    """Records a failure of the body in MLflow, and raises it as a RunError of one sentence."""
    try:
        yield
    except SystemExit:  # the caller's `on_report` stopped the training, and reports why
        raise
    except Paused:
        with suppress(OSError):
            tracked.finish("KILLED")
            tracked.deliver()
        raise
    except BaseException as problem:
        reason = root_cause(problem)
        if is_full(reason):
            reason = (
                f"a disk is full ({reason}); free some space (begin with `df -h {tracked.folder}`) "
                "and run the same command to resume from the last checkpoint"
            )
        with suppress(OSError):  # the outbox may be on the full disk
            tracked.set_tags({FAILURE_TAG: reason})
            # One file per attempt: the next attempt may succeed.
            when = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
            trace = "".join(traceback.format_exception(problem))
            tracked.log_text(trace, f"failures/{when}.txt")
            tracked.finish("FAILED" if isinstance(problem, Exception) else "KILLED")
            tracked.deliver()
        if not isinstance(problem, Exception) or isinstance(problem, RunError):
            raise
        raise RunError(f"{what} failed: {reason}") from problem


def root_cause(problem: BaseException) -> str:
    """Returns the reason of a failure in one line, without the exceptions that Ray wraps around it.

    Exceptions of this project explain themselves. Of any other, only the last line is returned:
    Ray's messages end with the error, after pages of traceback.
    """
    if failures := getattr(problem, "worker_failures", None):
        return root_cause(next(iter(failures.values())))
    for inner in (getattr(problem, "controller_failure", None), getattr(problem, "cause", None)):
        if isinstance(inner, BaseException):
            return root_cause(inner)
    text = " ".join(str(problem).split()) or type(problem).__name__
    is_ours = isinstance(problem, ValueError | OSError | RunError | ArithmeticError)
    return text if is_ours else (str(problem).strip().splitlines() or [text])[-1]
