"""Renders Jinja templates whose values are escaped for their medium."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def rendered(template: Path, escape: Callable[[str], str], **values: Any) -> str:
    """Returns the text of a template. Each of its values is escaped, except those with `| safe`."""

    def escaped(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(escape(str(value)))

    environment = Environment(
        autoescape=True, finalize=escaped, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
