"""Renders a sheet for the terminal, and as Markdown, HTML and LaTeX by the templates here.

pandas' `Styler` is not used: it has no terminal or Markdown output, does not escape all that
a title can contain, and has no groups of rows.
"""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import csv_text, in_markdown

from ..cli.templates import rendered
from .latex import escape
from .sheet import ON_PAPER, ON_SCREEN, PUBLISHED_NOTE, Sheet
from .table import ComparisonTable

_STYLES = {"": "", "best": "bold", "second": "underline"}
_WIDEST_METHOD = 36  # characters; a longer title takes two lines
_PAPER = 120  # characters of scriptsize in the width of a page of two columns
_SPREAD = re.compile(r"([\d.]+) ± ([\d.]+)")


def write_files(table: ComparisonTable, sheet: Sheet) -> list[Path]:
    """Writes the table in every format, and returns the files.

    `table.csv` has every number, unrounded; the other formats are for readers.
    """
    label = re.sub(r"[^a-z0-9]+", "-", f"{table.name}-{table.dataset}".lower())
    texts = {
        "table.csv": csv_text(table.frame()),
        "table.md": markdown(sheet),
        "table.tex": latex(sheet, label),
        "table.html": page(sheet),
    }
    table.folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(table.folder / name, text)
    return [table.folder / name for name in texts]


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Prints a sheet, without the columns that do not fit into the console."""
    unbounded = console.options.update_width(10_000)

    def fits(sheet: Sheet) -> bool:
        return console.measure(_rich(sheet), options=unbounded).maximum <= console.width

    narrow = sheet.narrowed(ON_SCREEN, fits)
    console.print(_rich(narrow))
    notes = [note.text for note in narrow.notes]
    if omitted := [h for name, h in sheet.columns.items() if name not in narrow.columns]:
        notes.append(f"Not shown, because the terminal is too narrow: {', '.join(omitted)}.")
    for note in notes:
        console.print(note, style="dim")


def _rich(sheet: Sheet) -> RichTable:
    shown = RichTable(
        title=sheet.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, show_edge=False,
    )  # fmt: skip
    method, *numbers = sheet.columns.values()
    shown.add_column(method, max_width=_WIDEST_METHOD)
    for heading in numbers:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in sheet.ours:
        shown.add_row(*(Text(row[n].text, style=_STYLES[row[n].mark]) for n in sheet.columns))
    if sheet.published:
        shown.add_section()
        shown.add_row(Text(PUBLISHED_NOTE, style="italic"))
        for row in sheet.published:
            shown.add_row(*(Text(row[name].text, style="dim") for name in sheet.columns))
    return shown


def markdown(sheet: Sheet) -> str:
    """Renders Markdown: best in bold, second in italics, because Markdown cannot underline."""
    return _by_template("md", in_markdown, sheet)


def page(sheet: Sheet) -> str:
    """Renders a page of HTML that needs no other file."""
    return _by_template("html", html.escape, sheet)


def latex(sheet: Sheet, label: str) -> str:
    r"""Renders a float over both columns of a page, for which \usepackage{booktabs} is enough.

    Columns that do not fit are omitted in the order of ON_PAPER; `table.csv` has them.
    """
    sheet = sheet.narrowed(ON_PAPER, lambda sheet: _paper_width(sheet) <= _PAPER)
    text = _by_template("tex", escape, sheet, label=label, parts=_parts)
    # LaTeX would read them as an option of the rule or row above.
    return re.sub(r"^(?= *[\[*])", "{}", text, flags=re.MULTILINE)


def _by_template(kind: str, escape: Callable[[str], str], sheet: Sheet, **values: Any) -> str:
    template = Path(__file__).with_name(f"table.{kind}.jinja")
    return rendered(template, escape, sheet=sheet, published=PUBLISHED_NOTE, **values)


def _parts(text: str) -> tuple[str, str]:
    """Returns the mean and the spread of a cell; for other cells, the whole text and nothing."""
    found = _SPREAD.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def _paper_width(sheet: Sheet) -> float:
    """Returns the approximate width of the table, in characters."""
    rows = [*sheet.ours, *sheet.published]
    texts = {n: [h, *(row[n].text for row in rows)] for n, h in sheet.columns.items()}
    return sum(1.7 + max(len(t.replace(" ± ", "")) for t in column) for column in texts.values())
