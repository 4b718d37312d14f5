"""LaTeX compiles for every title that a user can give to a row."""

import html
import re
import shutil
import string
import subprocess
import unicodedata
from pathlib import Path

import pytest

from pipelines.tables.formats import MATHS, in_latex, latex, write_files
from pipelines.tables.sheet import Cell, Sheet, make_sheet
from tests.pipelines.tables.test_formats import recognition, retrieval

TITLES = (
    "α = 0", "W ≥ 2 → 3 × T", "[frame] attention", "*", "naïve Łódź, é", "x² with N₂", "A ± B_1",
    "two\n\nlines", "✓ all", "\\input{x} ~^|<> 50% & $5 #1", "中文, 😀", "“q” – …",
)  # fmt: skip


def _sheet() -> Sheet:
    rows = [{"method": Cell(title, mark), "test_top1": Cell("80.0 ± 7.1", mark)}
            for title in TITLES for mark in ("", "best", "second")]  # fmt: skip
    published = {"method": Cell("[1]\u00a0†"), "test_top1": Cell("")}
    return Sheet("α ≤ 2", {"method": "method", "test_top1": "[%]"}, rows, [published])


def test_maths_commands_show_their_characters() -> None:
    mathml = pytest.importorskip("latex2mathml.converter")
    alike = {"∼": "~", "⋅": "·"}
    for letter, source in MATHS.items():
        text = html.unescape(re.sub("<[^>]+>", "", mathml.convert(source)))
        assert text == alike.get(letter, letter), source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("α = 0", r"$\alpha$ = 0"),
        ("naïve Łódź", r"na\"{\i}ve \L{}\'{o}d\'{z}"),
        ("nai\u0308ve", r"na\"{\i}ve"),
        ("x² with N₂", "x$^{2}$ with N$_{2}$"),
        ("two\n\nlines", "two  lines"),
        ("中 only", "[U+4E2D] only"),
        ("a_b {c} \\d", r"a\_b \{c\} \textbackslash{}d"),
    ],
)
def test_characters_are_written_as_commands_or_numbers(text: str, expected: str) -> None:
    assert in_latex(text) == expected


def test_every_character_becomes_ascii_and_none_a_command_of_the_user() -> None:
    plain = set(string.ascii_letters + string.digits + " .,;:!?()[]*+-/='\"`@")
    everything = [chr(number) for number in range(0x3000) if not 0xD800 <= number < 0xE000]
    for letter in everything:
        composed, written = unicodedata.normalize("NFC", letter), in_latex(letter)
        assert written.isascii(), letter
        assert (written == composed) == (composed in plain), letter
        braces = re.sub(r"\\[{}]", "", written)
        assert braces.count("{") == braces.count("}"), letter


def test_no_row_is_read_as_an_option_of_the_row_above(tmp_path: Path) -> None:
    lines = latex(_sheet(), "x").splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 1 + 3 * len(TITLES) + 2
    assert not [row for row in rows if row.startswith(("[", "*"))]
    assert r"{}[frame] attention & 80.0\,{\tiny$\pm$ 7.1} \\" in rows
    assert r"\textbf{A $\pm$ B\_1} & \textbf{80.0}\,{\tiny$\pm$ 7.1} \\" in rows


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
@pytest.mark.slow
def test_latex_compiles_within_the_page(tmp_path: Path) -> None:
    tables = [recognition(tmp_path / "a"), retrieval(tmp_path / "b")]
    files = [write_files(table, make_sheet(table))[2] for table in tables]
    (tmp_path / "titles.tex").write_text(latex(_sheet(), "titles"))
    letters = " ".join(in_latex(letter) for letter in [*MATHS, *map(chr, range(32, 0x250))])
    document = [
        r"\documentclass[10pt,twocolumn]{article}\usepackage[margin=0.8in]{geometry}",
        r"\usepackage{booktabs}\begin{document}",
        *(rf"\input{{{file}}}" for file in (*files, "titles.tex")),
        rf"\begin{{raggedright}}{letters}\end{{raggedright}}",
        r"\end{document}",
    ]
    (tmp_path / "paper.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
