"""Imports point one way: between packages, between the rooms of a package, between modules."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ARROWS = {
    "stop_core": {
        "storage": "",
        "settings": "storage",
        "runtime": "settings storage",
        "decoding": "storage",
        "datasets": "settings storage",
        "tiny": "datasets storage",
        "cache": "datasets decoding storage",
        "clip": "settings storage tiny",
        "model": "clip datasets settings",
        "evaluation": "model runtime storage",
        "training": "cache datasets evaluation model runtime settings storage",
        "explain": "cache decoding evaluation model runtime settings storage",
        "trained_model": (
            "cache clip datasets decoding evaluation model runtime settings storage tiny"
        ),
    },
    "pipelines": {
        "ray_internals": "",
        "cli": "ray_internals",
        "cluster": "cli ray_internals",
        "tracking": "cli",
        "checks": "cli cluster tracking",
        "preprocessing": "cli cluster tracking",
        "training": "cli cluster ray_internals tracking",
        "serving": "cli ray_internals tracking",
        "sweeping": "cli cluster tracking training",
        "tables": "cli tracking training",
        "inference": "cli cluster tracking training",
    },
}
"""The rooms that each room may import, for each package. Entry points may import every room."""


def _modules(package: str) -> dict[str, Path]:
    """All modules by their dotted names."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return dict(zip((name.removesuffix(".__init__") for name in names), paths, strict=True))


MODULES = _modules("stop_core") | _modules("pipelines")


def _imports(module: str) -> set[str]:
    """Dotted names of everything that a module imports, wherever in the file."""
    found: set[str] = set()
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found


IMPORTS = {module: _imports(module) for module in MODULES}


def _room(module: str) -> str:
    """The folder below the package; "" for a module at its top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir() else ""


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_the_rooms_are_those_of_the_arrows(package: str) -> None:
    assert {_room(module) for module in _modules(package)} - {""} == ARROWS[package].keys()


@pytest.mark.parametrize(
    ("package", "room"), [(package, room) for package in ARROWS for room in ARROWS[package]]
)
def test_a_room_imports_only_the_rooms_below_it(package: str, room: str) -> None:
    allowed = {room, *ARROWS[package][room].split()}
    for module in _modules(package):
        if _room(module) == room:
            for name in IMPORTS[module]:
                if name.split(".")[0] == package and name != package:
                    assert _room(name) in allowed, f"{module} imports {name}"


def test_no_import_goes_in_a_circle() -> None:
    arrows = {module: names & MODULES.keys() for module, names in IMPORTS.items()}
    TopologicalSorter(arrows).prepare()  # raises CycleError


def test_the_science_needs_no_cluster() -> None:
    for module in _modules("stop_core"):
        assert not {name.split(".")[0] for name in IMPORTS[module]} & {"ray", "mlflow", "pipelines"}


def test_one_room_uses_internals_of_ray() -> None:
    for module, path in MODULES.items():
        if _room(module) == "ray_internals":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                assert not re.match(r"ray\b.*\._(?!_)", name), f"{module} uses {name}"


def test_only_entry_points_are_at_the_top() -> None:
    assert [module for module in _modules("stop_core") if not _room(module)] == ["stop_core"]
    from pipelines.cli.commands import commands

    top = {module.rpartition(".")[2] for module in _modules("pipelines") if not _room(module)}
    assert top == {"pipelines", "stop", *commands()}
    assert not list((ROOT / "sweeps").rglob("*.py"))


def test_the_modules_of_pipelines_have_no_absolute_name() -> None:
    """A wheel installs them under another one."""
    for module, path in _modules("pipelines").items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] != "pipelines", module


def test_a_public_name_is_defined_in_one_module() -> None:
    """`main`, which every command has, is the exception."""
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            names = [getattr(node, "name", None)]
            if isinstance(node, ast.Assign):
                names = [getattr(target, "id", None) for target in node.targets]
            elif isinstance(node, ast.AnnAssign):
                names = [getattr(node.target, "id", None)]
            for name in names:
                if name and not name.startswith("_") and name != "main":
                    homes.setdefault(name, []).append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


ACROSS = {
    "stop_core/cache": "cache remote_cache",
    "stop_core/datasets": "readers",
    "stop_core/decoding": "fuzz grid structures",
    "stop_core/settings": "ranges",
    "stop_core/training": "on_simulated_gpu",
    "pipelines": "chaos_all chaos_sweep chaos_train on_simulated_gpu ray_job ray_nodes",
}
"""Test files about several modules of a room."""


def test_tests_mirror_the_modules() -> None:
    """A test file in a mirrored folder is named after a module of that folder."""
    for package in ARROWS:
        for test in sorted((ROOT / "tests" / package).rglob("test_*.py")):
            folder = str(test.parent.relative_to(ROOT / "tests"))
            name = test.stem.removeprefix("test_")
            modules = {path.stem for path in (ROOT / folder).glob("*.py")}
            known = any(name == one or name.startswith(f"{one}_") for one in modules)
            assert known or name in ACROSS.get(folder, "").split(), test
