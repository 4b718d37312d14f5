"""Settings as text, and the tables of a sweep on the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..cli.console import console


def describe_settings(drawn: dict[str, Any]) -> str:
    """Returns the settings of a trial on one line."""
    return ", ".join(f"{name} {short(value)}" for name, value in drawn.items())


def short(value: Any) -> str:
    """Returns a value with at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(title: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table with a column for each of the names."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console(160).print(table)
