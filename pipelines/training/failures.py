"""What a failed training says: one sentence to the user, and the whole of it to MLflow."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..cli.errors import RunError
from ..cli.output import is_full
from ..tracking.queued_run import QueuedRun

FAILURE_TAG = "failure"
"""The tag with the reason of a failure, until the training succeeds."""


@contextmanager
def ends_with_reason(tracked: QueuedRun, name: str) -> Iterator[None]:
    """Turns a failed training into one sentence, and tells MLflow of it."""
    try:
        yield
    except SystemExit:  # whoever watches has ended it, and says why
        raise
    except BaseException as problem:
        reason = root_cause(problem)
        if is_full(reason):
            reason = (
                f"a disk is full ({reason}); make room (`df -h {tracked.folder}` is the first "
                "place to look), and the same command goes on from the last checkpoint"
            )
        with suppress(OSError):  # the outbox may be on the disk that is full
            _tell(tracked, problem, reason)
        if not isinstance(problem, Exception) or isinstance(problem, RunError):
            raise
        raise RunError(f"the training {name} failed: {reason}") from problem


def _tell(tracked: QueuedRun, problem: BaseException, reason: str) -> None:
    tracked.set_tags({FAILURE_TAG: reason})
    when = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    trace = "".join(traceback.format_exception(problem))
    tracked.log_text(trace, f"failures/{when}.txt")  # of an attempt: the next may succeed
    tracked.finish("FAILED" if isinstance(problem, Exception) else "KILLED")
    tracked.deliver()


def root_cause(problem: BaseException) -> str:
    """The reason of a failure that has come through Ray, in one line.

    Only Ray's wrappings are taken off: what our own code raised explains itself.
    """
    failures = getattr(problem, "worker_failures", None)
    if failures:
        return root_cause(next(iter(failures.values())))
    for inner in (getattr(problem, "controller_failure", None), getattr(problem, "cause", None)):
        if isinstance(inner, BaseException):
            return root_cause(inner)
    text = " ".join(str(problem).split()) or type(problem).__name__
    explained = isinstance(problem, ValueError | OSError | RunError | ArithmeticError)
    # Ray's own texts end with the error itself, behind pages of trace.
    return text if explained else (str(problem).strip().splitlines() or [text])[-1]
