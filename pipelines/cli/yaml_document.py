"""A YAML file that remembers on which line each of its values stands."""

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
"""The way to a value: names of mappings and numbers of lists, from the outside in."""


class Document:
    """The content of a YAML file, and the lines of its values.

    Raises:
        ValueError: if the file is not YAML or has a name twice; the message names file and line.
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
        """An error that names the file and the line of the value, or of what holds it."""
        while where not in self._lines and where:
            where = where[:-1]
        return ValueError(f"{self.path}, line {self._lines.get(where, 1)}: {shown_text(message)}")

    def mapping(self, where: Where, known: set[str] | None = None) -> dict[str, Any]:
        """The mapping at `where`, which may be absent; of the names `known`, if they are given.

        Raises:
            ValueError: if it is something else, or has a name that is not known.
        """
        value = self.at(where)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            what = " of ".join(map(repr, reversed(where))) or "the file"
            raise self.error(where, f"{what} must be `name: value` lines, got {shown(value)}")
        for name in value:
            if known is not None and name not in known:
                raise self.error((*where, name), f"{name!r} is not one of {', '.join(known)}")
        return value

    def at(self, where: Where) -> Any:
        """The value at `where`; None if there is none."""
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
                        f"{self.path}, line {line}: {key.value!r} stands on line "
                        f"{seen[key.value]} already; keep one of them"
                    )
                seen[key.value] = line
                self._lines[(*where, key.value)] = line
                self._walk(value, (*where, key.value))
