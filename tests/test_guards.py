"""Safeguards in the sources that no other test would miss."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAX_ZIPS = {
    "zip(sorted(set(shown)), names,",  # more marks than values
    "zip(text.transformer.resblocks[1:], deeper,",  # more blocks than prompts
}
CHANGE = {"ComparisonTable", "RunProgress", "Trial", "DecodeProcess"}


def test_dataclasses_are_frozen_but_for_those_that_change_by_design() -> None:
    found = {
        name
        for room in ("stop_core", "pipelines")
        for path in (ROOT / room).rglob("*.py")
        for options, name in re.findall(r"@dataclass(.*)\nclass (\w+)", path.read_text())
        if "frozen=True" not in options
    }
    assert found == CHANGE


def test_a_zip_of_different_lengths_is_an_error_but_where_it_is_meant() -> None:
    found = {
        zipped
        for room in ("stop_core", "pipelines")
        for path in (ROOT / room).rglob("*.py")
        for zipped in re.findall(r"(zip\(.*,) strict=False\)", path.read_text())
    }
    assert found == LAX_ZIPS


def test_a_message_names_a_command_as_stop_and_never_as_a_file() -> None:
    """A wheel has no file `pipelines/train.py`."""
    from pipelines.cli.commands import commands

    named = set()
    for path in (ROOT / "stop_core").rglob("*.py"):
        found = re.findall(rf"pipelines/|\b(?:{'|'.join(commands())})\.py\b", path.read_text())
        assert not found, path
        named |= set(re.findall(r"`stop (\w+)", path.read_text()))
    assert {"preprocess", "train", "index"} <= named <= commands().keys()
    for path in (ROOT / "pipelines").rglob("*.py"):
        files = re.findall(r"(?<!-- )(?<!  # )(?<!`)python pipelines/", path.read_text())
        assert not files, path


def test_a_method_without_a_body_is_abstract() -> None:
    """Otherwise a subclass that lacks it would be accepted, and return None."""
    found = {
        f"{path.stem}.{owner.name}.{method.name}"
        for room in ("stop_core", "pipelines")
        for path in (ROOT / room).rglob("*.py")
        for owner in ast.walk(ast.parse(path.read_text()))
        if isinstance(owner, ast.ClassDef) and "ABC" in map(ast.unparse, owner.bases)
        for method in owner.body
        if isinstance(method, ast.FunctionDef) and len(method.body) == 1
        if ast.get_docstring(method)
        and "abstractmethod" not in map(ast.unparse, method.decorator_list)
    }
    assert found == {"video_model.VideoModel.end_step"}  # does nothing by default
