"""Shows a comparison table, writes it in every format, and hands it to MLflow."""

import re
from pathlib import Path

from rich.console import Console

from pipelines.table import ComparisonTable
from pipelines.table_formats import markdown, page, show
from pipelines.table_latex import latex
from pipelines.table_sheet import Sheet, make_sheet
from pipelines.table_tracking import record
from pipelines.tracked_run import TrackedRun
from stop_core.cache.files import write_whole

_WIDTH = 120  # of what is printed to a file or a pipe


def publish(table: ComparisonTable, tracked: TrackedRun) -> None:
    """Prints the table, writes its files, and stores all of it in its MLflow run."""
    sheet = make_sheet(table)
    print()
    show(sheet, Console(width=None if Console().is_terminal else _WIDTH))
    print()
    files = write_files(table, sheet)
    record(table, sheet, files, tracked)
    print(f"the table in {', '.join(file.name for file in files)}: {table.folder}")


def write_files(table: ComparisonTable, sheet: Sheet) -> list[Path]:
    """Writes the table in every format; returns the files.

    `table.csv` has every number, unrounded; the others are for people.
    """
    label = re.sub(r"[^a-z0-9]+", "-", f"{table.name}-{table.dataset}".lower())
    texts = {
        "table.csv": table.frame().to_csv(index=False),
        "table.md": markdown(sheet),
        "table.tex": latex(sheet, label),
        "table.html": page(sheet),
    }
    table.folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(table.folder / name, text)
    return [table.folder / name for name in texts]
