"""Text from outside, written so that each medium shows it and obeys none of it.

Names of classes and videos, captions, titles of rows, paths and the messages of files can hold
anything: control sequences of a terminal, mathematics, links, formulas. One function a medium.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # half a second, which what only prints a line need not take
    import pandas as pd


# Controls of the terminal but tab and newline; of the direction of writing; line separators; tags;
# halves of characters, which no file can hold.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
# Of the underscores, those within a word are only underscores; of the colons, those of addresses.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~#&$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def visible(text: str) -> str:
    """Returns the text with every control character as its JSON escape; newlines stay."""
    return _UNSEEN.sub(lambda found: _escaped(found[0]), text)


def in_line(text: str) -> str:
    """Returns a name as a part of one line: newlines are escaped as well."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def in_figure(text: str) -> str:
    """Returns the text for matplotlib, which takes what is between dollars for mathematics."""
    return in_line(text).replace("$", r"\$")


def in_markdown(text: str) -> str:
    """Returns the text for Markdown and the HTML in it: no link, table cell, code or tag."""
    return _MARKDOWN.sub(r"\\\g<0>", in_line(text))


def csv_text(frame: pd.DataFrame) -> str:
    """Returns a table as CSV in which no text is a formula to a spreadsheet.

    Such texts begin with an apostrophe, which spreadsheets do not show. Numbers stay numbers.
    """
    safe = frame.map(lambda value: _in_csv(value) if isinstance(value, str) else value)
    return safe.rename(columns=_in_csv).to_csv(index=False)


def _in_csv(text: str) -> str:
    shown = visible(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
