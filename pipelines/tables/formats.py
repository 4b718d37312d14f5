"""Renders a sheet for the terminal, as Markdown and as HTML.

pandas' `Styler` is not used here: it has no terminal or Markdown output, does not escape all that
a title can contain, and has no groups of rows.
"""

import html
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from stop_core.storage.escaping import in_markdown

from .sheet import ON_SCREEN, PUBLISHED_NOTE, Cell, Column, Sheet

_STYLES = {"": "", "best": "bold", "second": "underline"}
OURS = ", among our rows only."
_WIDEST_METHOD = 36  # characters; a longer title takes two lines
_STYLE_SHEET = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem; }
th, td { padding: .25rem .55rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid; font-weight: 600; }
.text { text-align: left; position: sticky; left: 0; background: inherit; }
tr { background: #fff; }
tr.block td { text-align: left; font-style: italic; border-top: 1px solid; color: #555; }
tr.published td { color: #555; }
tbody tr:hover { background: #f3f5f8; }
.notes { max-width: 60rem; color: #444; font-size: 13px; }
""".strip()


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Prints a sheet, without the columns that do not fit into the console."""
    unbounded = console.options.update_width(10_000)

    def fits(sheet: Sheet) -> bool:
        return console.measure(_rich(sheet), options=unbounded).maximum <= console.width

    narrow = sheet.narrowed(ON_SCREEN, fits)
    console.print(_rich(narrow))
    notes = [note.text for note in narrow.notes]
    if omitted := [one.heading for one in sheet.columns if one not in narrow.columns]:
        notes.append(f"Not shown, because the terminal is too narrow: {', '.join(omitted)}.")
    for note in notes:
        console.print(note, style="dim")


def _rich(sheet: Sheet) -> RichTable:
    shown = RichTable(
        title=sheet.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, show_edge=False,
    )  # fmt: skip
    for column in sheet.columns:
        shown.add_column(
            column.heading,
            justify="left" if column.is_text else "right",
            no_wrap=not column.is_text,
            max_width=_WIDEST_METHOD if column.is_text else None,
        )
    for cells in sheet.ours:
        shown.add_row(*(Text(cell.text, style=_STYLES[cell.mark]) for cell in cells))
    if sheet.published:
        shown.add_section()
        shown.add_row(Text(PUBLISHED_NOTE, style="italic"))
        for cells in sheet.published:
            shown.add_row(*(Text(cell.text, style="dim") for cell in cells))
    return shown


def markdown(sheet: Sheet) -> str:
    """Renders Markdown: best in bold, second in italics, because Markdown cannot underline."""
    around = {"": "", "best": "**", "second": "*"}

    def line(cells: Sequence[Cell]) -> str:
        texts = (in_markdown(cell.text) for cell in cells)
        marked = (f"{around[c.mark]}{t}{around[c.mark]}" for c, t in zip(cells, texts, strict=True))
        return "| " + " | ".join(marked) + " |"

    lines = [
        f"**{in_markdown(sheet.title)}**",
        "",
        line([Cell(column.heading) for column in sheet.columns]),
    ]
    lines.append("|" + "|".join("---" if c.is_text else "---:" for c in sheet.columns) + "|")
    lines += [line(cells) for cells in sheet.ours]
    if sheet.published:
        lines.append(line([Cell(PUBLISHED_NOTE, "second"), *[Cell("")] * (len(sheet.columns) - 1)]))
        lines += [line(cells) for cells in sheet.published]
    notes = [
        *(in_markdown(note.text) for note in sheet.notes),
        f"Best in bold, second in italics{OURS}",
    ]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes), ""])


def page(sheet: Sheet) -> str:
    """Renders a page of HTML that needs no other file."""
    columns = sheet.columns
    body = [_html_row(cells, columns, "ours") for cells in sheet.ours]
    if sheet.published:
        across = f'<td colspan="{len(columns)}">{html.escape(PUBLISHED_NOTE)}</td>'
        body.append(f'<tr class="block">{across}</tr>')
        body += [_html_row(cells, columns, "published") for cells in sheet.published]
    head = "".join(f"<th{_class(c)}>{html.escape(c.heading)}</th>" for c in columns)
    notes = [*(note.text for note in sheet.notes), f"Best in bold, second underlined{OURS}"]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(sheet.title)}</title>",
            f"<style>{_STYLE_SHEET}</style></head><body>",
            f"<table><caption>{html.escape(sheet.title)}</caption>",
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *body,
            "</tbody></table>",
            '<div class="notes">',
            *(f"<p>{html.escape(note)}</p>" for note in notes),
            "</div></body></html>",
            "",
        ]
    )


def _html_row(cells: Sequence[Cell], columns: Sequence[Column], kind: str) -> str:
    around: dict[str, Callable[[str], str]] = {
        "": str, "best": lambda text: f"<b>{text}</b>", "second": lambda text: f"<u>{text}</u>"
    }  # fmt: skip
    texts = "".join(
        f"<td{_class(column)}>{around[cell.mark](html.escape(cell.text))}</td>"
        for cell, column in zip(cells, columns, strict=True)
    )
    return f'<tr class="{kind}">{texts}</tr>'


def _class(column: Column) -> str:
    return ' class="text"' if column.is_text else ""
