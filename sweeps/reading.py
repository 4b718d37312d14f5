"""Reads the YAML files of this folder and checks every name and value in them."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from stop_core.config import StopConfig
from stop_core.datasets import Task
from stop_core.experiment import ExperimentConfig

FOLDER = Path(__file__).resolve().parent
FIELDS = {f.name for kind in (StopConfig, ExperimentConfig) for f in fields(kind)} - {"stop"}
_HINTS = {**get_type_hints(StopConfig), **get_type_hints(ExperimentConfig)}
OBJECTIVES: dict[Task, tuple[str, ...]] = {
    "recognition": ("val/top1", "val/top5", "val/mean_class"),
    "retrieval": ("val/t2v_r1", "val/t2v_r5", "val/v2t_r1"),
}
"""What a sweep may maximise, by the task of its cache."""
_RANGES = ("uniform", "loguniform", "randint")
_LISTS = ("choice", "grid")


@dataclass(frozen=True)
class Distribution:
    """How one setting of a sweep is drawn."""

    kind: str  # choice, grid, uniform, loguniform or randint
    values: tuple[Any, ...]  # the choices, or the two bounds


@dataclass(frozen=True)
class SearchSpace:
    """A sweep: what is fixed, what is drawn and how often, and what is to be maximised."""

    trials: int  # draws; with grids, draws of every point of the grid
    objective: str  # a validation measure, for example val/top1
    fixed: dict[str, Any]
    search: dict[str, Distribution]


@dataclass(frozen=True)
class Table:
    """The rows of a comparison: the settings of each by its title."""

    rows: dict[str, dict[str, Any]]
    common: dict[str, Any]
    """What all rows have, unless a row says otherwise."""
    baseline: str
    """The row that the others are compared with."""


def build_experiment(values: Mapping[str, Any], origin: str) -> ExperimentConfig:
    """Builds an experiment from settings by name, those of STOP beside the others.

    Raises:
        ValueError: if a name is unknown or a value out of range; names `origin`.
    """
    _check_names(values, origin)
    own = {f.name for f in fields(StopConfig)}
    typed = {name: _typed(name, value, origin) for name, value in values.items()}
    stop = {name: value for name, value in typed.items() if name in own}
    others = {name: value for name, value in typed.items() if name not in own}
    try:
        return ExperimentConfig(stop=StopConfig(**stop), **others)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{origin}: {problem}") from problem


def read_space(path: Path) -> SearchSpace:
    """Reads a search space.

    Raises:
        ValueError: if the file is not one; the message names the file, the line and the remedy.
        OSError: if it cannot be read.
    """
    content = _read(path, {"trials", "objective", "fixed", "search"})
    trials, objective = content.get("trials", 1), content.get("objective", "val/top1")
    if not isinstance(trials, int) or trials < 1:
        raise ValueError(f"{path}: trials must be a whole number of at least 1, got {trials!r}")
    known = [measure for measures in OBJECTIVES.values() for measure in measures]
    if objective not in known:
        raise ValueError(
            f"{path}: objective is {objective!r}, but hyper-parameters are chosen on validation "
            f"data only; use one of {', '.join(known)}"
        )
    fixed = _mapping(content.get("fixed", {}), f"{path}: fixed")
    drawn = _mapping(content.get("search", {}), f"{path}: search")
    if not drawn:
        raise ValueError(f"{path}: search is empty; give at least one distribution")
    if both := sorted(fixed.keys() & drawn.keys()):
        raise ValueError(f"{path}: {', '.join(both)} is both fixed and searched; keep one")
    _check_names(drawn, f"{path}: search")
    build_experiment(fixed, f"{path}: fixed")
    if "seed" in fixed or "seed" in drawn:
        raise ValueError(f"{path}: the seed is an option of the sweep; give --seed instead")
    search = {name: _distribution(value, f"{path}: {name}") for name, value in drawn.items()}
    _check_ends(fixed, search, path)
    return SearchSpace(trials, objective, fixed, search)


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
        from stop_core.clip import tower_shape

        tower = build_experiment({**values, "n_s": 1, "static_prompts": 1}, where).tower
        shape = tower_shape(tower)
        if shape is None:
            raise ValueError(f"{where}: the patches of {tower} are not known; give n_s as a number")
        values = {**values, "n_s": shape.patches}
    if values.get("static_prompts") == "matched":
        from stop_core.methods import matched_static_prompts

        one = build_experiment({**values, "static_prompts": 1}, where)
        values = {**values, "static_prompts": matched_static_prompts(one)}
    return values


def _typed(name: str, value: Any, origin: str) -> Any:
    """The value as the setting's type: 4 is 4.0 where a number is wanted, and 1e-3 no text."""
    kinds = get_args(_HINTS[name]) or (_HINTS[name],)  # of `int | None`, both
    if value is None and type(None) in kinds:
        return None
    if get_origin(_HINTS[name]) is tuple:
        return _texts(name, value, origin)
    if float in kinds and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-3 for a text
        except (TypeError, ValueError):
            pass
    elif any(isinstance(kind, type) and type(value) is kind for kind in kinds):
        return value
    elif get_origin(_HINTS[name]) is Literal and isinstance(value, str):
        return value  # which one, the dataclass checks
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ValueError(f"{origin}: {name} must be {wanted}, got {value!r}")


def _texts(name: str, value: Any, origin: str) -> tuple[str, ...]:
    """The value of a setting that holds texts; a single one need not be a list."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{origin}: {name} must be a text or a list of texts, got {value!r}")
    return tuple(texts)


def _read(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise OSError(
            f"{path} cannot be read ({problem.strerror}); the files below {FOLDER} are examples"
        ) from problem
    except yaml.YAMLError as problem:  # its text names the line and the column
        raise ValueError(f"{path} is not YAML: {' '.join(str(problem).split())}") from problem
    content = _mapping(content, str(path))
    if unknown := sorted(content.keys() - known):
        raise ValueError(f"{path}: {unknown[0]!r} is not one of {', '.join(sorted(known))}")
    return content


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where} must be `name: value` lines, got {value!r}")
    return value


def _check_names(values: Mapping[str, Any], origin: str) -> None:
    for name in values:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(FIELDS))}"
            raise ValueError(f"{origin}: there is no setting {name!r}; {hint}")


def _distribution(value: Any, where: str) -> Distribution:
    """Reads `{kind: [values]}`."""
    kinds = _LISTS + _RANGES
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in kinds:
        raise ValueError(f"{where} must be one of {', '.join(kinds)} with a list, got {value!r}")
    kind, values = next(iter(value.items()))
    if not isinstance(values, list) or not values:
        raise ValueError(f"{where}: {kind} needs a list of values, got {values!r}")
    if kind in _RANGES:
        _check_range(kind, values, where)
    return Distribution(kind, tuple(values))


def _check_range(kind: str, values: list[Any], where: str) -> None:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not numbers or not values[0] < values[1]:
        raise ValueError(f"{where}: {kind} needs [low, high] with low < high, got {values}")
    if kind == "loguniform" and values[0] <= 0:
        raise ValueError(f"{where}: loguniform needs bounds above 0, got {values}")
    if kind == "randint" and not all(isinstance(v, int) for v in values):
        raise ValueError(f"{where}: randint needs whole numbers, got {values}")


def _check_ends(fixed: dict[str, Any], search: dict[str, Distribution], path: Path) -> None:
    """Every listed value, and both ends of a range, must be a valid setting."""
    for name, distribution in search.items():
        if distribution.kind in ("uniform", "loguniform") and _HINTS[name] is not float:
            raise ValueError(f"{path}: {name} is a whole number; draw it by randint or choice")
        for value in distribution.values:
            build_experiment({**fixed, name: value}, f"{path}: {name}")
