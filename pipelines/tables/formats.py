"""Renders a sheet for the terminal, and as Markdown, HTML and LaTeX by the templates here.

pandas' `Styler` is not used: it has no terminal or Markdown output, does not escape all that
a title can contain, and has no groups of rows.
"""

import html
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import csv_text, in_markdown
from stop_core.storage.paths import StoragePath
from stop_core.storage.templates import rendered

from .sheet import ON_PAPER, ON_SCREEN, PUBLISHED_NOTE, Sheet
from .table import ComparisonTable

_STYLES = {"": "", "best": "bold", "second": "underline"}
_WIDEST_METHOD = 36  # characters; a longer title takes two lines
_PAPER = 120  # characters of scriptsize in the width of a page of two columns
_SPREAD = re.compile(r"([\d.]+) ± ([\d.]+)")


def write_files(table: ComparisonTable, sheet: Sheet) -> list[StoragePath]:
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
    text = _by_template("tex", in_latex, sheet, label=label, parts=_parts)
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


_NAMES = """
α alpha  β beta  γ gamma  δ delta  ε varepsilon  ζ zeta  η eta  θ theta  ι iota  κ kappa  λ lambda
μ mu  ν nu  ξ xi  π pi  ρ rho  ς varsigma  σ sigma  τ tau  υ upsilon  φ varphi  χ chi  ψ psi
ω omega  ϑ vartheta  ϕ phi  ϵ epsilon  Γ Gamma  Δ Delta  Θ Theta  Λ Lambda  Ξ Xi  Π Pi  Σ Sigma
Υ Upsilon  Φ Phi  Ψ Psi  Ω Omega  ≤ le  ≥ ge  ≠ ne  ≈ approx  ≪ ll  ≫ gg  ∼ sim  ≡ equiv  ∝ propto
± pm  ∓ mp  × times  ÷ div  · cdot  ⋅ cdot  ∘ circ  ⊕ oplus  ⊗ otimes  ← leftarrow  → rightarrow
↔ leftrightarrow  ⇒ Rightarrow  ↑ uparrow  ↓ downarrow  ∞ infty  ∈ in  ∪ cup  ∩ cap  ⊂ subset
⊆ subseteq  ∅ emptyset  ∀ forall  ∃ exists  ∂ partial  ∇ nabla  ∑ sum  ∏ prod  ∫ int  √ surd
† dagger  ‡ ddagger  • bullet
"""
MATHS = {letter: rf"\{name}" for letter, name in re.findall(r"(\S) (\w+)", _NAMES)}
MATHS |= {"<": "<", ">": ">", "|": "|", "−": "-"}
"""Characters that are written as mathematics, between dollars."""
_TEXT = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "✓": r"$\surd$", "✗": r"$\times$",
    "µ": r"$\mu$", "°": r"$^{\circ}$", "§": r"\S{}", "…": r"\dots{}", "–": "--", "—": "---",
    "‘": "`", "’": "'", "“": "``", "”": "''",
    "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,", "\u2011": "-", "\u200b": "",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}",
    "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


def in_latex(text: str) -> str:
    """Returns a text in ASCII that LaTeX typesets without further packages.

    A character without a LaTeX name is written as its number, [U+4E2D]: the table of a long run is
    not lost, and its reader sees which character to replace.
    """
    return "".join(_letter(letter) for letter in unicodedata.normalize("NFC", text))


def _letter(letter: str) -> str:
    if letter in MATHS:
        return f"${MATHS[letter]}$"
    if letter in _TEXT:
        return _TEXT[letter]
    if letter.isspace():
        return " "  # an empty line would end the paragraph
    if letter.isascii() and letter.isprintable():
        return letter
    return _accented(letter) or _raised(letter) or f"[U+{ord(letter):04X}]"


def _accented(letter: str) -> str:
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if len(marks) != 1 or marks[0] not in _ACCENTS or not base.isascii():
        return ""
    dotless = rf"\{base}" if base in "ij" and marks[0] != "\u0327" else base
    return rf"\{_ACCENTS[marks[0]]}{{{dotless}}}"


def _raised(letter: str) -> str:
    kind, _, number = unicodedata.decomposition(letter).partition(" ")
    place = {"<super>": "^", "<sub>": "_"}.get(kind)
    if place is None or " " in number or not chr(int(number, 16)).isalnum():
        return ""
    inner = chr(int(number, 16))
    return f"${place}{{{MATHS.get(inner, inner)}}}$" if inner.isascii() or inner in MATHS else ""
