"""Equations between dollar signs become MathML when the site is built: no script, no network."""

import re

from latex2mathml.converter import convert

# Code is left alone: fenced blocks, and what stands in backticks.
_CODE_OR_EQUATION = re.compile(r"(```.*?^```|`[^`\n]+`)|\$([^$\n]+)\$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs for every page, before it is made HTML."""
    return _CODE_OR_EQUATION.sub(_rendered, markdown)


def _rendered(found: re.Match[str]) -> str:
    return found[1] or convert(found[2])
