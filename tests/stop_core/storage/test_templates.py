"""Every value of a template is escaped once, in loops and macros as well."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from stop_core.storage.templates import rendered


def test_values_are_escaped_once_and_the_text_of_a_template_is_not(tmp_path: Path) -> None:
    template = tmp_path / "text.jinja"
    template.write_text(
        "{% macro row(cells) %}*{% for one in cells %}{{ one }},{% endfor %}{% endmacro %}"
        "* {{ title }} {{ row(cells) }} {{ title | safe }} {{ cells | join('/') }}\n"
    )
    text = rendered(template, lambda text: text.replace("*", r"\*"), title="a*", cells=["*", 3])
    assert text == "* a\\* *\\*,3, a* \\*/3\n"
    with pytest.raises(UndefinedError, match="title"):
        rendered(template, str, cells=[])
