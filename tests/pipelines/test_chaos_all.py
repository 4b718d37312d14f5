"""The report counts the kills that were made, and tells of a part that ended otherwise."""

import sys

from tests.pipelines.chaos_all import _run


def _script(text: str, code: int) -> list[str]:
    return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]


def test_kills_are_counted_by_what_a_part_says() -> None:
    assert _run("a", _script("in all          7  in 2 trainings", 0), 7, 1).kills == 7
    assert _run("a", _script("5 kills ({'driver': 5}), every cache the same", 0), 7, 1).kills == 5
    assert _run("a", _script("nothing", 0), 7, 1).kills == 0


def test_a_part_that_ends_otherwise_is_told() -> None:
    part = _run("train", _script("FAULT", 1), 3, 1)
    assert part.exit_code == 1
    assert "OTHERWISE" in part.line()
