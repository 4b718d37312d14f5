"""A YAML file that remembers the line of each of its values."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stop_core.storage.documents import (
    MOST_YAML,
    compose_yaml,
    parse_yaml,
    read_text,
    shown,
    shown_text,
)

from .experiment_fields import closest
from .folders import SWEEPS


class PlacedError(ValueError):
    """A value in a file is wrong; the message names file and line."""


class Section(BaseModel):
    """Base of a mapping in a YAML file whose names are known."""

    model_config = ConfigDict(extra="forbid")


_S = TypeVar("_S", bound=Section)


class Document:
    """The content of a YAML file, and the lines of its values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[tuple[str | int, ...], int] = {}
        try:
            text = read_text(path, MOST_YAML)
        except OSError as problem:
            known = {file.stem for file in SWEEPS.rglob("*.yaml")}
            hint = closest(path.name, known, 3, f"examples are in {SWEEPS}")
            raise OSError(f"{path} cannot be read ({problem.strerror}); {hint}") from problem
        try:
            root = compose_yaml(text)
            self.content: Any = parse_yaml(text)
        except ValueError as problem:
            raise ValueError(f"{path}, {problem}") from problem
        if root is not None:
            self._walk(root, ())

    @contextmanager
    def at(self, *where: str | int) -> Iterator[None]:
        """Makes a ValueError in the body name the file, and the line of this value or its parent.

        `where` has names in mappings and positions in lists. The innermost place of an error holds.
        """
        try:
            yield
        except PlacedError:
            raise
        except ValueError as problem:
            while where not in self._lines and where:
                where = where[:-1]
            line = self._lines.get(where, 1)
            raise PlacedError(f"{self.path}, line {line}: {shown_text(problem)}") from problem

    def validate(self, kind: type[_S], value: Any, *where: str | int) -> _S:
        """Returns the value at `where` as a model; a ValueError names the expected values."""
        try:
            return kind.model_validate(value)
        except ValidationError as problem:
            first = problem.errors(include_url=False)[0]
        where = (*where, *first["loc"])
        names = [step for step in where if isinstance(step, str) and step != "[key]"]
        name, got = names[-1] if names else "the file", shown(first["input"])
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{name}: {reason[:1].lower()}{reason[1:]}, got {got}"
        if first["type"] == "extra_forbidden":
            message = f"{name!r} is not one of {', '.join(kind.model_fields)}"
        if first["type"] in ("model_type", "dict_type", "invalid_key") or where[-1:] == ("[key]",):
            message = f"{name} must be `name: value` lines, got {got}"
        with self.at(*where):
            raise ValueError(message)

    def _walk(self, node: yaml.Node, where: tuple[str | int, ...]) -> None:
        self._lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._walk(item, (*where, number))
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.value in seen and key.value != "<<":
                    raise ValueError(
                        f"{self.path}, line {line}: {key.value!r} is already on line "
                        f"{seen[key.value]}; keep one of them"
                    )
                seen[key.value] = line
                self._lines[(*where, key.value)] = line
                self._walk(value, (*where, key.value))
