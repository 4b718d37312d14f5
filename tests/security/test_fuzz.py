"""Damaged untrusted folders are read or refused; see fuzz.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.security.fuzz import fuzz
from tests.security.strangers import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutant_is_read_or_refused_and_nothing_else_happens(
    kind: str, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    make, _ = KINDS[kind]
    (tmp_path / "made").mkdir()
    (tmp_path / "run").mkdir()
    make(tmp_path / "made" / "thing", *([write_video] if kind in ("manifest", "job") else []))
    ends, faults = fuzz(kind, tmp_path / "run", tmp_path / "made", mutants=30, seed=0)
    assert faults == []
    assert set(ends) == {"read", "refused"}
