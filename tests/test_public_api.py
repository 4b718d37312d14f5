"""The promised API is on docs/api.md, and the examples of the documentation use only that."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebooks.run import NOTEBOOKS, page_text

ROOT = Path(__file__).resolve().parents[1]
PROMISED = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)


def _examples() -> Iterator[tuple[str, str, str]]:
    """Yields page, module and name of each import of stop_core in a block of Python."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *NOTEBOOKS):
        for block in re.findall(
            r"^```python\n(.*?)^```", page_text(page), re.MULTILINE | re.DOTALL
        ):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stop_core"):
                    for alias in node.names:
                        yield page.name, node.module or "", alias.name


@pytest.mark.parametrize(("page", "module", "name"), sorted(set(_examples())))
def test_an_example_uses_only_promised_names(page: str, module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)
    defined_in = getattr(found, "__module__", module)
    promised = {module, defined_in, f"{module}.{name}", f"{defined_in}.{name}"}
    assert promised & set(PROMISED), f"{page} imports {name}, which docs/api.md does not list"


@pytest.mark.parametrize("path", PROMISED)
def test_a_promised_name_exists_and_is_documented(path: str) -> None:
    assert pkgutil.resolve_name(path).__doc__
