"""Prints a comparison table, writes it in every format, and records it in MLflow."""

import re
from pathlib import Path

from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import csv_text

from ..cli.console import console, print_result
from ..tracking.direct_run import TrackedRun
from .formats import markdown, page, print_sheet
from .latex import latex
from .mlflow_table import record
from .sheet import Sheet, make_sheet
from .table import ComparisonTable

_WIDTH = 120  # characters, where the output is a file or a pipe


def publish_table(table: ComparisonTable, tracked: TrackedRun) -> None:
    """Prints the table, writes its files, and records both in its MLflow run."""
    sheet = make_sheet(table)
    print_result()
    print_sheet(sheet, console(_WIDTH))
    print_result()
    files = write_files(table, sheet)
    record(table, sheet, files, tracked)
    print_result(f"the table in {', '.join(file.name for file in files)}: {table.folder}")


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
