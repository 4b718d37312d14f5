"""Renders Jinja templates whose values are escaped for their medium."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup


def rendered(
    template: Path, escape: Callable[[str], str], *, trim: bool = False, **values: Any
) -> str:
    """Returns the text of a template. Each of its values is escaped, except those with `| safe`.

    `trim` leaves out the end of a line after a statement.
    """
    return _compiled(template.read_text(encoding="utf-8"), escape, trim).render(values)


@lru_cache(maxsize=8)
def _compiled(text: str, escape: Callable[[str], str], trim: bool) -> Template:
    def escaped(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(escape(str(value)))

    environment = Environment(
        autoescape=True,
        finalize=escaped,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=trim,
    )
    return environment.from_string(text)
