"""A YAML file with the line number of each value."""

from pathlib import Path
from typing import Any

import yaml

from stop_core.storage.documents import (
    MOST_YAML,
    compose_yaml,
    parse_yaml,
    read_text,
    shown,
    shown_text,
)

Where = tuple[str | int, ...]
"""Path to a value: names of mappings and numbers of lists, from the outermost to the innermost."""


class Document:
    """The content of a YAML file, and the lines of its values.

    Raises:
        ValueError: if the file is not YAML or has a duplicate name; the message names the line.
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[Where, int] = {}
        text = read_text(path, MOST_YAML)
        try:
            root = compose_yaml(text)
            self.content: Any = parse_yaml(text)
        except ValueError as problem:
            raise ValueError(f"{path}, {problem}") from problem
        if root is not None:
            self._walk(root, ())

    def error(self, where: Where, message: str) -> ValueError:
        """Returns an error that names the file and the line of the value, or of its container."""
        while where not in self._lines and where:
            where = where[:-1]
        return ValueError(f"{self.path}, line {self._lines.get(where, 1)}: {shown_text(message)}")

    def mapping(self, where: Where, known: set[str] | None = None) -> dict[str, Any]:
        """Returns the mapping at `where`; empty if it is absent.

        Raises:
            ValueError: if it is not a mapping, or has a name that is not in `known`, if given.
        """
        value = self.at(where)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            name = " of ".join(map(repr, reversed(where))) or "the file"
            raise self.error(where, f"{name} must be `name: value` lines, got {shown(value)}")
        for name in value:
            if known is not None and name not in known:
                raise self.error((*where, name), f"{name!r} is not one of {', '.join(known)}")
        return value

    def at(self, where: Where) -> Any:
        """Returns the value at `where`; None if there is none."""
        value = self.content
        for step in where:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

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
