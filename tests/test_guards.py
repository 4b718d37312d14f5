"""Safeguards in the sources that no other test would miss."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGE = {"ComparisonTable", "Progress", "RowStatistics", "Trial", "_Carve"}


def test_dataclasses_are_frozen_but_for_those_that_change_by_design() -> None:
    found = {
        name
        for room in ("stop_core", "pipelines", "sweeps")
        for path in (ROOT / room).rglob("*.py")
        for options, name in re.findall(r"@dataclass(.*)\nclass (\w+)", path.read_text())
        if "frozen=True" not in options
    }
    assert found == CHANGE
