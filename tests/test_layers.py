"""The arrows between the packages point down only: pipelines -> sweeps -> stop_core."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "stop_core": {"ray", "mlflow", "pipelines", "sweeps"},
    "sweeps": {"pipelines", "mlflow"},
}


def _imported(source: Path) -> set[str]:
    """Top-level names of everything that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_a_package_imports_nothing_from_above(package: str) -> None:
    for source in sorted((ROOT / package).rglob("*.py")):
        assert not _imported(source) & FORBIDDEN[package], source
