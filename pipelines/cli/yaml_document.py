"""A YAML file that remembers the line of each of its values."""

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

from .folders import SWEEPS

Where = tuple[str | int, ...]
"""The path of a value: names in mappings and positions in lists, from the outside in."""


class Section(BaseModel):
    """Base of a mapping in a YAML file whose names are known."""

    model_config = ConfigDict(extra="forbid")


_S = TypeVar("_S", bound=Section)


class Document:
    """The content of a YAML file, and the lines of its values.

    Raises OSError if it cannot be read, ValueError with the line if it is not YAML.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Where, int] = {}
        try:
            text = read_text(path, MOST_YAML)
        except OSError as problem:
            raise OSError(
                f"{path} cannot be read ({problem.strerror}); the files below {SWEEPS} are examples"
            ) from problem
        try:
            root = compose_yaml(text)
            self.content: Any = parse_yaml(text)
        except ValueError as problem:
            raise ValueError(f"{path}, {problem}") from problem
        if root is not None:
            self._walk(root, ())

    def error(self, where: Where, message: str) -> ValueError:
        """Returns an error that names the file and the line of the value, or of its parent."""
        while where not in self._lines and where:
            where = where[:-1]
        return ValueError(f"{self.path}, line {self._lines.get(where, 1)}: {shown_text(message)}")

    def validate(self, kind: type[_S], where: Where, value: Any) -> _S:
        """Returns the value at `where` as a model.

        Raises ValueError with file, line, value and the expected values if it does not fit.
        """
        try:
            return kind.model_validate(value)
        except ValidationError as problem:
            first = problem.errors(include_url=False)[0]
        where = (*where, *first["loc"])
        names = [step for step in where if isinstance(step, str) and step != "[key]"]
        reason = first["msg"].removeprefix("Value error, ")
        reason = f"{reason[:1].lower()}{reason[1:]}, got {shown(first['input'])}"
        if first["type"] == "extra_forbidden":
            raise self.error(where, f"{names[-1]!r} is not one of {', '.join(kind.model_fields)}")
        if first["type"] in ("model_type", "dict_type"):
            reason = f"must be `name: value` lines, got {shown(first['input'])}"
        raise self.error(where, f"{names[-1] if names else 'the file'}: {reason}")

    def _walk(self, node: yaml.Node, where: Where) -> None:
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
