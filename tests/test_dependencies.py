"""Every package that is imported is declared, in the core or in the extra that needs it."""

import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_layers import IMPORTS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
OURS = {"stop_core", "pipelines", "stop-video"}


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


CORE = _names(PROJECT["project"]["dependencies"])
VIDEO = CORE | _names(EXTRAS["video"])


@pytest.mark.parametrize(
    ("package", "declared"),
    [
        ("stop_core", VIDEO | _names(EXTRAS["export"])),
        (
            "pipelines",
            VIDEO
            | _names(EXTRAS["pipelines"])
            | _names(EXTRAS["export"])
            | _names(EXTRAS["serve"])
            | _names(EXTRAS["demo"]),
        ),
    ],
)
def test_imported_packages_are_declared(package: str, declared: set[str]) -> None:
    distributions = packages_distributions()
    for module, imports in IMPORTS.items():
        if module.partition(".")[0] != package:
            continue
        for name in {one.partition(".")[0] for one in imports} - set(sys.stdlib_module_names):
            if name not in OURS:
                known = {canonicalize_name(one) for one in distributions[name]}
                assert known & declared, f"{module} imports {name}"


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_a_dependency_is_pinned_in_the_constraints(extra: str) -> None:
    pins = _names([line for line in _constraints() if not line.startswith("#")])
    for text in EXTRAS[extra] if extra else PROJECT["project"]["dependencies"]:
        name = canonicalize_name(Requirement(text).name)
        assert name in pins | OURS | {"setuptools"} or extra == "bench", name


def test_pre_commit_installs_the_linter_of_the_constraints() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for hook in hooks:
        assert set(hook["additional_dependencies"]) <= set(_constraints())


def _constraints() -> list[str]:
    text = (ROOT / "constraints.txt").read_text()
    return [line for line in text.splitlines() if line.strip()]
