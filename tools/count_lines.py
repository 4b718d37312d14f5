"""Counts the lines of Python by room and kind: code, docstrings, comments, imports, blank lines.

    python tools/count_lines.py

A test is a function whose name begins with `test_`; pytest collects more, one per parameter.
"""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("stop_core", "pipelines", "tests", "benchmarks", "tools")
KINDS = ("files", "lines", "code", "docstring", "comment", "import", "blank", "tests")


def kinds_of_lines(source: str) -> list[str]:
    """Returns the kind of each line; a text that is a statement counts as a docstring."""
    kinds: dict[int, str] = {}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import() | ast.ImportFrom():
                kind = "import"
            case ast.Expr(value=ast.Constant(value=str())):
                kind = "docstring"
            case _:
                continue
        kinds |= dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), kind)
    return [
        kinds.get(number)
        or ("blank" if not line.strip() else "comment" if line.lstrip()[0] == "#" else "code")
        for number, line in enumerate(source.splitlines(), 1)
    ]


def count(path: Path) -> Counter[str]:
    """Returns the counts of one file, by `KINDS`."""
    source = path.read_text(encoding="utf-8")
    kinds = kinds_of_lines(source)
    is_test = path.name.startswith("test_")
    tests = len(re.findall(r"^ *def test_", source, re.MULTILINE)) if is_test else 0
    return Counter(kinds) + Counter(files=1, lines=len(kinds), tests=tests)


def main() -> None:
    """Prints a row per room, and the sum of each package and of the source."""
    print(f"{'':26}", *(f"{kind:>9}" for kind in KINDS))
    sums: dict[str, Counter[str]] = {}
    for package in PACKAGES:
        rooms: dict[str, Counter[str]] = {}
        for path in sorted((ROOT / package).rglob("*.py")):
            inner = path.relative_to(ROOT).parts[:2]
            room = "/".join(inner) if len(path.relative_to(ROOT).parts) > 2 else package
            rooms[room] = rooms.get(room, Counter()) + count(path)
        sums[package] = sum(rooms.values(), Counter())
        for room, counts in rooms.items():
            _print_row(room, counts)
        if len(rooms) > 1:
            _print_row(f"{package}, all", sums[package])
    _print_row("stop_core and pipelines", sums["stop_core"] + sums["pipelines"])


def _print_row(name: str, counts: Counter[str]) -> None:
    print(f"{name:26}", *(f"{counts[kind]:9,}" for kind in KINDS))


if __name__ == "__main__":
    main()
