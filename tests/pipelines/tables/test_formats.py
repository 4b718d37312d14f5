"""All formats of a table have the same cells and the same marks, and fit their medium."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from pipelines.cli.folders import SWEEPS
from pipelines.tables.formats import latex, markdown, page, print_sheet, write_files
from pipelines.tables.published import read_published
from pipelines.tables.sheet import PUBLISHED_NOTE, Sheet, make_sheet
from pipelines.tables.table import ComparisonTable
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised, retrieved

STOP = ExperimentConfig()
VPT = ExperimentConfig(method="vpt-deep")


def recognition(folder: Path) -> ComparisonTable:
    rows = {
        "50% & more_of {it}": [VPT],
        "STOP": [replace(STOP, seed=seed) for seed in range(2)],
        "a | b": [replace(VPT, static_prompts=2)],
    }
    table = ComparisonTable("motion", 1, "d" * 64, rows, folder / "tables")
    right = [[True] * count + [False] * (40 - count) for count in (20, 30, 34, 12)]
    configs = [one for seeds in rows.values() for one in seeds]
    table.fill([recognised(c, r, folder) for c, r in zip(configs, right, strict=True)])
    return table


def retrieval(folder: Path) -> ComparisonTable:
    published = read_published(SWEEPS / "published" / "msrvtt_vit_b32.csv")
    rows = {"STOP": [replace(STOP, seed=seed) for seed in range(3)], "VPT": [VPT]}
    table = ComparisonTable(
        "msrvtt", 1, "d" * 64, rows, folder, task="retrieval", published=published
    )
    results = [
        retrieved(one, [1] * (30 - one.seed) + [7] * (20 + one.seed), folder)
        for one in rows["STOP"]
    ]
    table.fill([*results, retrieved(VPT, [2] * (50 - 2) + [1, 1], folder)])
    return table


def test_best_and_second_are_chosen_among_our_rows_by_rounded_numbers(tmp_path: Path) -> None:
    sheet = make_sheet(recognition(tmp_path))
    cells = [(row["test_top1"].text, row["test_top1"].mark) for row in sheet.ours]
    assert cells == [("50.0", "second"), ("80.0 ± 7.1", "best"), ("30.0", "")]
    assert {row["val_top1"].mark for row in sheet.ours} == {""}, "validation is not ranked"
    sheet = make_sheet(retrieval(tmp_path))
    assert {cell.mark for row in sheet.published for cell in row.values()} == {""}
    assert [row["test_t2v_mean_rank"].mark for row in sheet.ours] == ["second", "best"], (
        "a small rank is good"
    )


def test_published_rows_are_marked_in_every_format(tmp_path: Path) -> None:
    table = retrieval(tmp_path)
    sheet = make_sheet(table)
    for text in (_shown(sheet, 200), markdown(sheet), page(sheet), latex(sheet, "x")):
        flat = " ".join(text.replace("$\\dagger$", "†").replace("~", " ").split())
        assert flat.count("†") == len(table.published) + 1, "each row, and the note"
        assert "arXiv:2503.15973" in flat
        assert "published, not ours" in flat
    frame = table.frame()
    assert (frame["kind"] == "published").sum() == len(table.published)
    assert PUBLISHED_NOTE.startswith("published, not ours")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 140, 300])
def test_a_terminal_shows_whole_cells_and_names_the_omitted_columns(
    tmp_path: Path, width: int
) -> None:
    for table in (recognition(tmp_path), retrieval(tmp_path)):
        text = _shown(make_sheet(table), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert ("Not shown" in text) == (width < 180)
        assert "t2v R@1" in text or "test top-1" in text


def test_markdown_and_html_have_every_cell(tmp_path: Path) -> None:
    sheet = make_sheet(recognition(tmp_path))
    lines = [line for line in markdown(sheet).splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in cells} == {len(sheet.columns)}
    parser = _Cells()
    parser.feed(page(sheet))
    assert parser.cells == [cell.text for row in sheet.ours for cell in row.values()]
    assert "**80.0 ± 7.1**" in markdown(sheet)
    assert "<b>80.0 ± 7.1</b>" in page(sheet)
    assert r"\textbf{80.0}" in latex(sheet, "x")
    assert r"\underline{50.0}" in latex(sheet, "x")


def test_the_csv_has_every_number(tmp_path: Path) -> None:
    table = recognition(tmp_path)
    files = write_files(table, make_sheet(table))
    assert [file.name for file in files] == ["table.csv", "table.md", "table.tex", "table.html"]
    frame = table.frame()
    read = pd.read_csv(files[0], dtype={"seeds": str}, keep_default_na=True)
    for name in frame.select_dtypes("number"):
        assert read[name].tolist() == pytest.approx(frame[name].tolist(), nan_ok=True), name


def _shown(sheet: Sheet, width: int) -> str:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    print_sheet(sheet, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


class _Cells(HTMLParser):
    """Collects the texts of the cells of the body."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "td":
            self._open = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data
