"""Installs a package of somebody else for a test: a module and its metadata in a folder."""

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from stop_core.clip.registry import TOWERS
from stop_core.datasets import DATASETS
from stop_core.settings.methods import METHODS


def install(folder: Path, package: str, module: str, text: str, points: Mapping[str, str]) -> None:
    """Writes a module and its dist-info, as pip does.

    Args:
        folder: of the installed packages, on `sys.path`.
        package: the name of the distribution.
        module: the name of the module.
        text: its source.
        points: the objects of the entry points by "group/name".
    """
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    lines = [
        f"[{key.split('/')[0]}]\n{key.split('/')[1]} = {value}\n" for key, value in points.items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))


def install_project(folder: Path, project: str, text: str) -> None:
    """Installs a module with the name and the entry points of a pyproject.toml."""
    read = tomllib.loads(project)
    points = {
        f"{group}/{name}": value
        for group, own in read["project"]["entry-points"].items()
        for name, value in own.items()
    }
    (module,) = read["tool"]["setuptools"]["py-modules"]
    install(folder, read["project"]["name"], module, text, points)


def see(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Lets the registries of this process find the packages in a folder, for one test."""
    patch.syspath_prepend(str(folder))
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)  # of another test
    for registry in (METHODS, DATASETS, TOWERS):
        patch.setattr(registry, "_entries", dict(registry._entries))
        patch.setattr(registry, "_is_complete", False)
