"""Escapes text from untrusted sources, with one function for each output medium.

Names of classes and videos, captions, titles of rows, paths and messages can contain anything:
control sequences of a terminal, mathematics, links, formulas.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the import takes half a second
    import pandas as pd


# Control characters except tab and newline; direction of writing; line separators; tags; halves of
# surrogate pairs, which cannot be written to a file.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
# Underscores inside a word need no escape; of the colons only those of addresses do.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~#&$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def visible(text: str) -> str:
    """Returns the text with control characters as JSON escapes; newlines stay."""
    return _UNSEEN.sub(lambda found: _escaped(found[0]), text)


def in_line(text: str) -> str:
    """Returns a name for use in a line: newlines are escaped as well."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def in_figure(text: str) -> str:
    """Returns the text for matplotlib, which reads text between dollars as mathematics."""
    return in_line(text).replace("$", r"\$")


def in_markdown(text: str) -> str:
    """Returns the text for Markdown: it makes no link, table cell, code or HTML tag."""
    return _MARKDOWN.sub(r"\\\g<0>", in_line(text))


def csv_text(frame: pd.DataFrame) -> str:
    """Returns a table as CSV; texts like a formula get an apostrophe, which spreadsheets hide."""
    safe = frame.map(lambda value: _in_csv(value) if isinstance(value, str) else value)
    return safe.rename(columns=_in_csv).to_csv(index=False)


def _in_csv(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
