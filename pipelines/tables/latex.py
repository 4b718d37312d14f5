"""Renders a sheet as LaTeX, in characters that every LaTeX can typeset."""

import re
import unicodedata
from collections.abc import Sequence

from .formats import OURS
from .sheet import ON_PAPER, PUBLISHED_NOTE, Cell, Sheet

_PAPER = 120  # characters of scriptsize in the width of a page of two columns
_SPREAD = re.compile(r"([\d.]+) ± ([\d.]+)")
MATHS = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon",
    "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "ι": r"\iota", "κ": r"\kappa", "λ": r"\lambda",
    "μ": r"\mu", "ν": r"\nu", "ξ": r"\xi", "π": r"\pi", "ρ": r"\rho", "ς": r"\varsigma",
    "σ": r"\sigma", "τ": r"\tau", "υ": r"\upsilon", "φ": r"\varphi", "χ": r"\chi", "ψ": r"\psi",
    "ω": r"\omega", "ϑ": r"\vartheta", "ϕ": r"\phi", "ϵ": r"\epsilon",
    "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Ξ": r"\Xi", "Π": r"\Pi",
    "Σ": r"\Sigma", "Υ": r"\Upsilon", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega",
    "≤": r"\le", "≥": r"\ge", "≠": r"\ne", "≈": r"\approx", "≪": r"\ll", "≫": r"\gg",
    "∼": r"\sim", "≡": r"\equiv", "∝": r"\propto", "±": r"\pm", "∓": r"\mp", "×": r"\times",
    "÷": r"\div", "·": r"\cdot", "⋅": r"\cdot", "∘": r"\circ", "⊕": r"\oplus", "⊗": r"\otimes",
    "←": r"\leftarrow", "→": r"\rightarrow", "↔": r"\leftrightarrow", "⇒": r"\Rightarrow",
    "↑": r"\uparrow", "↓": r"\downarrow", "∞": r"\infty", "∈": r"\in", "∪": r"\cup", "∩": r"\cap",
    "⊂": r"\subset", "⊆": r"\subseteq", "∅": r"\emptyset", "∀": r"\forall", "∃": r"\exists",
    "∂": r"\partial", "∇": r"\nabla", "∑": r"\sum", "∏": r"\prod", "∫": r"\int", "√": r"\surd",
    "†": r"\dagger", "‡": r"\ddagger", "•": r"\bullet", "<": "<", ">": ">", "|": "|", "−": "-",
}  # fmt: skip
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


def latex(sheet: Sheet, label: str) -> str:
    r"""Renders a float over both columns of a page, for which \usepackage{booktabs} is enough.

    Columns that do not fit are omitted in the order of ON_PAPER; `table.csv` has them.
    """
    sheet = sheet.narrowed(ON_PAPER, lambda sheet: _paper_width(sheet) <= _PAPER)
    rows = [_row(cells) for cells in sheet.ours]
    if sheet.published:
        across = (
            rf"\multicolumn{{{len(sheet.columns)}}}{{l}}{{\emph{{{escape(PUBLISHED_NOTE)}}}}} \\"
        )
        rows += [r"\midrule", across, *(_row(cells) for cells in sheet.published)]
    notes = " ".join(
        [*(note.text for note in sheet.notes), f"Best in bold, second underlined{OURS}"]
    )
    headings = [Cell(column.heading) for column in sheet.columns]
    alignment = "".join("l" if column.is_text else "r" for column in sheet.columns)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{escape(sheet.title)}. {escape(notes)}}}",
            rf"\label{{tab:{label}}}",
            r"\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
            r"\toprule",
            _row(headings),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def escape(text: str) -> str:
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
    """Returns the LaTeX of a superscript or subscript letter or digit."""
    kind, _, number = unicodedata.decomposition(letter).partition(" ")
    place = {"<super>": "^", "<sub>": "_"}.get(kind)
    if place is None or " " in number or not chr(int(number, 16)).isalnum():
        return ""
    inner = chr(int(number, 16))
    return f"${place}{{{MATHS.get(inner, inner)}}}$" if inner.isascii() or inner in MATHS else ""


def _paper_width(sheet: Sheet) -> float:
    """Returns the approximate width of the table, in characters."""
    rows = [[column.heading for column in sheet.columns]]
    rows += [[cell.text for cell in cells] for cells in (*sheet.ours, *sheet.published)]
    widths = [
        max(len(text.replace(" ± ", "")) for text in column) for column in zip(*rows, strict=True)
    ]
    return sum(width + 1.7 for width in widths)


def _row(cells: Sequence[Cell]) -> str:
    around = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
    texts = []
    for cell in cells:
        measured = _SPREAD.fullmatch(cell.text)
        mean = measured[1] if measured else cell.text
        small = rf"\,{{\tiny$\pm$ {measured[2]}}}" if measured else ""
        texts.append(around[cell.mark].format(escape(mean)) + small)
    line = " & ".join(texts)
    # LaTeX would read them as an option of the rule or row above.
    guard = "{}" if line.lstrip().startswith(("[", "*")) else ""
    return rf"{guard}{line} \\"
