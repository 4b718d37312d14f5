"""A finding of `stop doctor`: its status, a description, and advice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from stop_core.storage.documents import shown_text
from stop_core.storage.private import without_password

Status = Literal["ok", "warning", "failure"]
MARKS: dict[Status, str] = {"ok": "ok", "warning": "warn", "failure": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    about: str
    status: Status
    found: str
    advice: str = ""
    """A sentence; empty if the status is ok."""


def ok(about: str, found: str) -> Finding:
    """Returns a finding without a problem."""
    return Finding(about, "ok", found)


def warning(about: str, found: str, advice: str) -> Finding:
    """Returns a finding about something that works, but not well."""
    return Finding(about, "warning", found, advice)


def warn_if(problem: bool, about: str, found: str, advice: str) -> Finding:
    """Returns a warning if there is a problem, else a finding without one."""
    return warning(about, found, advice) if problem else ok(about, found)


def failure(about: str, found: str, advice: str) -> Finding:
    """Returns a finding about something that will not work."""
    return Finding(about, "failure", found, advice)


def examined(about: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yields the findings of a check; an unexpected error of the check is a finding too."""
    try:
        yield from check()
    except Exception as problem:  # a broken installation can raise anything
        yield failure(
            about,
            f"{type(problem).__name__}: {one_line(problem)}",
            "this check itself failed: install the pinned packages again "
            "(make setup, or pip install 'stop-video[pipelines]'), and run the doctor again",
        )


def one_line(problem: object, longest: int = 300) -> str:
    """Returns a long error as one line, without passwords."""
    return shown_text(without_password(str(problem)) or type(problem).__name__, longest)
