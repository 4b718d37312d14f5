"""Reads settings and tables from the YAML files of this folder, and checks every name and value.

Search spaces are read by pipelines/sweeping/read_space.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stop_core.storage.documents import MOST_YAML, parse_yaml, read_text, shown

from ..cli.experiment_fields import build_experiment
from ..cli.folders import SWEEPS


@dataclass(frozen=True)
class Table:
    """The rows of a comparison: the settings of each by its title."""

    rows: dict[str, dict[str, Any]]
    common: dict[str, Any]
    """What all rows have, unless a row says otherwise."""
    baseline: str
    """The row that the others are compared with."""


def read_table(path: Path, base: Mapping[str, Any] | None = None) -> Table:
    """Reads the rows of a comparison table.

    A row may say `n_s: all`, the number of patches of its tower, and `static_prompts: matched`, as
    many as have the trainable parameters of STOP with the row's other settings.

    Args:
        path: of the file.
        base: settings below those that the file has in common: what an ablation starts from.

    Raises:
        ValueError: if the file is not one; the message names the file, the row and the remedy.
        OSError: if it cannot be read.
    """
    content = _read(path, {"common", "rows", "baseline"})
    common = {**(base or {}), **_mapping(content.get("common", {}), f"{path}: common")}
    rows = _mapping(content.get("rows", {}), f"{path}: rows")
    if not rows:
        raise ValueError(f"{path}: rows is empty; give at least one row")
    full = {}
    for title, values in rows.items():
        where = f"{path}: row {title!r}"
        full[title] = _resolved({**common, **_mapping(values or {}, where)}, where)
        build_experiment(full[title], where)
    baseline = content.get("baseline", next(iter(full)))
    if baseline not in full:
        raise ValueError(f"{path}: baseline is {baseline!r}, but the rows are {', '.join(full)}")
    return Table(full, common, baseline)


def _resolved(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Puts numbers in the place of what follows from a row's tower and other settings."""
    if values.get("n_s") == "all":
        from stop_core.clip.loading import tower_shape

        tower = build_experiment({**values, "n_s": 1, "static_prompts": 1}, where).tower
        shape = tower_shape(tower)
        if shape is None:
            raise ValueError(f"{where}: the patches of {tower} are not known; give n_s as a number")
        values = {**values, "n_s": shape.patches}
    if values.get("static_prompts") == "matched":
        from stop_core.model.methods import matched_static_prompts

        one = build_experiment({**values, "static_prompts": 1}, where)
        values = {**values, "static_prompts": matched_static_prompts(one)}
    return values


def _read(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(path, MOST_YAML))
    except OSError as problem:
        raise OSError(
            f"{path} cannot be read ({problem.strerror}); the files below {SWEEPS} are examples"
        ) from problem
    except ValueError as problem:
        raise ValueError(f"{path}, {problem}") from problem
    content = _mapping(content, str(path))
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"{path}: {unknown[0]!r} is not one of {', '.join(sorted(known))}")
    return content


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where} must be `name: value` lines, got {shown(value)}")
    return value
