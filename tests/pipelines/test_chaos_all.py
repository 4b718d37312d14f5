"""The report counts the kills, and names a part whose result differs."""

import sys

from tests.pipelines.chaos_all import _run


def _script(text: str, code: int) -> list[str]:
    return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]


def test_kills_are_counted_by_the_output_of_a_part() -> None:
    assert _run("a", _script("in all          7  in 2 trainings", 0)).kills == 7
    assert _run("a", _script("5 kills ({'driver': 5}), every cache the same", 0)).kills == 5
    assert _run("a", _script("nothing", 0)).kills == 0


def test_part_with_another_result_is_reported() -> None:
    part = _run("train", _script("FAULT", 1))
    assert part.exit_code == 1
    assert "OTHERWISE" in part.line()
