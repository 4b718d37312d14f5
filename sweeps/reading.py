"""Reads settings and tables from the YAML files of this folder, and checks every name and value.

Search spaces are read by sweeps/space_reading.py.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stop_core.config import StopConfig
from stop_core.documents import MOST_YAML, parse_yaml, read_text, shown
from stop_core.experiment import ExperimentConfig, refuse_unlisted_tower

FOLDER = Path(__file__).resolve().parent
FIELDS = {f.name for kind in (StopConfig, ExperimentConfig) for f in fields(kind)} - {"stop"}
_HINTS = {**get_type_hints(StopConfig), **get_type_hints(ExperimentConfig)}


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
    try:
        right = {name: typed(name, value) for name, value in values.items()}
        stop = {name: value for name, value in right.items() if name in own}
        others = {name: value for name, value in right.items() if name not in own}
        refuse_unlisted_tower(others.get("tower"), "the file")
        return ExperimentConfig(stop=StopConfig(**stop), **others)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{origin}: {problem}") from problem


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


def typed(name: str, value: Any) -> Any:
    """The value as the setting's type: 4 is 4.0 where a number is wanted, and 1e-3 no text.

    Raises:
        ValueError: if it is of another type.
    """
    kinds = get_args(_HINTS[name]) or (_HINTS[name],)  # of `int | None`, both
    if value is None and type(None) in kinds:
        return None
    if get_origin(_HINTS[name]) is tuple:
        return _texts(name, value)
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
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def field_type(name: str) -> Any:
    """The type of a setting, as it is annotated."""
    return _HINTS[name]


def closest(name: str, known: Iterable[str]) -> str:
    """A hint at what may have been meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """The value of a setting that holds texts; a single one need not be a list."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a text or a list of texts, got {shown(value)}")
    return tuple(texts)


def _read(path: Path, known: set[str]) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(path, MOST_YAML))
    except OSError as problem:
        raise OSError(
            f"{path} cannot be read ({problem.strerror}); the files below {FOLDER} are examples"
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


def _check_names(values: Mapping[str, Any], origin: str) -> None:
    for name in values:
        if name not in FIELDS:
            raise ValueError(f"{origin}: there is no setting {name!r}; {closest(name, FIELDS)}")
