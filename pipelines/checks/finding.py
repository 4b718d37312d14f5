"""What a check of the doctor finds: in words, with what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from stop_core.storage.private import without_password

Status = Literal["ok", "warning", "failure"]
MARKS: dict[Status, str] = {"ok": "ok", "warning": "warn", "failure": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    status: Status
    found: str
    advice: str = ""
    """What to do, in a sentence; empty where all is well."""


def ok(about: str, found: str) -> Finding:
    """All is well."""
    return Finding(about, "ok", found)


def warning(about: str, found: str, advice: str) -> Finding:
    """It works, but not as it could."""
    return Finding(about, "warning", found, advice)


def failure(about: str, found: str, advice: str) -> Finding:
    """Something will not work."""
    return Finding(about, "failure", found, advice)


def examined(about: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an error that it did not foresee is a finding too."""
    try:
        yield from check()
    except Exception as problem:  # a broken installation breaks anywhere, and in any way
        yield failure(
            about,
            f"{type(problem).__name__}: {one_line(problem)}",
            "this check itself failed: install the pinned packages again "
            "(pip install --constraint constraints.txt --editable .), and run the doctor again",
        )


def one_line(problem: object, longest: int = 300) -> str:
    """A long error as one line."""
    text = " ".join(without_password(str(problem)).split()) or type(problem).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."
