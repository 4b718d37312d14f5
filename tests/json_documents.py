"""The documents of --json, compared with the fields that docs/using.md lists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "using.md"
_PART = re.compile(r"\([^)]*(?:\([^)]*\)[^)]*)*\)")  # an explanation, also with a link in it


def fields(command: str) -> set[str]:
    """The documented fields of a command's document, without those of a dry run or a check."""
    (cell,) = re.findall(rf"^\| `{command}` \| (`.*) \|$", PAGE.read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", _PART.sub("", cell.partition("; with `--")[0])))


def documented(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Returns the document on stdout; it has the documented fields."""
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document.keys() - {"exit_code", "error"} == fields(command)
    return document
