"""Reads the rows of a comparison table from a YAML file, and checks every name and value."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli.experiment_fields import build_experiment
from ..cli.yaml_document import Document, Section


class _File(Section):
    common: dict[str, Any] | None = None
    rows: dict[str, dict[str, Any] | None] | None = None
    baseline: Any = None


@dataclass(frozen=True)
class Table:
    """The rows of a comparison: title and settings of each."""

    rows: dict[str, dict[str, Any]]
    common: dict[str, Any]
    """Settings of all rows, unless a row overrides them."""
    baseline: str
    """Title of the row that the others are compared with."""


def read_table(path: Path, base: Mapping[str, Any] | None = None) -> Table:
    """Reads the rows of a comparison table; a ValueError names the file, and the line or row.

    A row can have `n_s: all` (the number of patches of its tower) and `static_prompts: matched` (as
    many as have the trainable parameters of STOP with the row's other settings).

    `base` has defaults for the common settings of the file; an ablation gets the row of STOP.
    """
    document = Document(path)
    file = document.validate(_File, document.content or {})
    common = {**(base or {}), **(file.common or {})}
    rows = {}
    for title, own in (file.rows or {}).items():
        where = f"{path}: row {title!r}"
        rows[title] = _resolved({**common, **(own or {})}, where)
        build_experiment(rows[title], where)
    with document.at("rows"):
        if not rows:
            raise ValueError("rows is empty; give at least one row")
    baseline = file.baseline if "baseline" in file.model_fields_set else next(iter(rows))
    with document.at("baseline"):
        if not isinstance(baseline, str) or baseline not in rows:
            raise ValueError(f"baseline is {baseline!r}, but the rows are {', '.join(rows)}")
    return Table(rows, common, baseline)


def _resolved(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Replaces `all` and `matched` by the numbers that follow from a row's other settings."""
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
