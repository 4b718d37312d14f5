"""Reads how one setting is drawn, in Ray Tune's terms or in Optuna's.

Tune leaves out the upper end of a randint, Optuna keeps it; here both ends are always kept.
"""

import math
from typing import Any, get_args

from ..cli.experiment_fields import FIELDS, closest, field_type, typed
from ..cli.yaml_document import Document, Where
from .space import Algorithm, Distribution

_LISTS = ("choice", "grid", "categorical")
_RANGES = {
    "uniform": ("low", "high"),
    "quniform": ("low", "high", "step"),
    "loguniform": ("low", "high"),
    "randint": ("low", "high"),
    "qrandint": ("low", "high", "step"),
    "lograndint": ("low", "high"),
}
_OPTUNA = ("float", "int")  # {low: ..., high: ..., step: ..., log: ...}
_SIMPLE = (str, int, float, bool, type(None))


def read_distribution(
    document: Document, name: str, where: Where, algorithm: Algorithm
) -> Distribution:
    """Reads `{kind: values}`, beside which a `when` may stand.

    Raises:
        ValueError: if it is something else or does not suit the setting; names file and line.
    """
    _check_name(document, name, where)
    kinds = (*_LISTS, *_RANGES, *_OPTUNA)
    given = document.at(where)
    named = [key for key in given if key != "when"] if isinstance(given, dict) else []
    if len(named) != 1 or named[0] not in kinds:
        raise document.error(
            where, f"{name} must be drawn by one of {', '.join(kinds)}, got {given!r}"
        )
    (kind,) = named
    inner = (*where, kind)
    if kind not in _LISTS:
        return _read_range(document, name, kind, inner)
    if kind == "grid" and algorithm == "tpe":
        raise document.error(inner, "tpe tries no grid, it draws; use choice")
    return Distribution(values=_read_list(document, name, kind, inner), is_grid=kind == "grid")


def read_value(document: Document, name: str, value: Any, where: Where) -> Any:
    """The value as the setting's type; refuses an unknown setting, and the seed.

    A single text of a setting that holds texts stays a text, as Optuna wants it.

    Raises:
        ValueError: which names file and line.
    """
    _check_name(document, name, where)
    try:
        right = typed(name, value)
    except ValueError as problem:
        raise document.error(where, str(problem)) from None
    return right[0] if isinstance(right, tuple) and len(right) == 1 else right


def read_bounds(document: Document, name: str, where: Where) -> tuple[float | None, float | None]:
    """Reads `{above: number, below: number}`, of which one may be left out.

    Raises:
        ValueError: if it is something else or the setting is no number; names file and line.
    """
    _check_name(document, name, where)
    given = document.mapping(where, {"above", "below"})
    if not _is_number(name):
        raise document.error(
            where, f"{name} is no number, so nothing is above or below it; give its values instead"
        )
    above, below = (
        _read_number(document, given.get(key), where, key) for key in ("above", "below")
    )
    if above is None and below is None:
        raise document.error(where, f"give a number that {name} must be above or below")
    return above, below


def _is_number(name: str) -> bool:
    kinds = _kinds(name)
    return float in kinds or int in kinds


def _kinds(name: str) -> tuple[Any, ...]:
    """Of `int | None`, both."""
    return get_args(field_type(name)) or (field_type(name),)


def _read_number(document: Document, value: Any, where: Where, what: str) -> float | None:
    """A finite number, or None for None; YAML takes 1e-3 for a text.

    Raises:
        ValueError: which names file and line.
    """
    if value is None:
        return None
    try:
        number = float("no" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise document.error(where, f"{what} must be a number, got {value!r}")
    return number


def _check_name(document: Document, name: str, where: Where) -> None:
    if name not in FIELDS:
        raise document.error(where, f"there is no setting {name!r}; {closest(name, FIELDS)}")
    if name == "seed":
        raise document.error(where, "the seed is an option of the sweep; give --seed instead")


def _read_list(document: Document, name: str, kind: str, where: Where) -> tuple[Any, ...]:
    values = document.at(where)
    if not isinstance(values, list) or not values:
        raise document.error(where, f"{kind} needs a list of values, got {values!r}")
    if not all(isinstance(value, _SIMPLE) for value in values):
        raise document.error(where, f"{kind} needs texts or numbers, got {values!r}")
    values = [
        read_value(document, name, value, (*where, number)) for number, value in enumerate(values)
    ]
    if len(set(values)) < len(values):
        raise document.error(where, f"{kind} has a value twice: {values!r}")
    return tuple(values)


def _read_range(document: Document, name: str, kind: str, where: Where) -> Distribution:
    given = document.at(where)
    if kind in _OPTUNA:
        numbers = document.mapping(where, {"low", "high", "step", "log"})
        is_log, is_whole = numbers.get("log", False), kind == "int"
    else:
        names = _RANGES[kind]
        if not isinstance(given, list) or len(given) != len(names):
            raise document.error(where, f"{kind} needs [{', '.join(names)}], got {given!r}")
        numbers = dict(zip(names, given, strict=True))
        is_log, is_whole = kind.startswith("log"), "randint" in kind
    if not _is_number(name):
        raise document.error(where, f"{name} is no number; draw it by choice")
    if float not in _kinds(name) and not is_whole:
        raise document.error(
            where, f"{name} is a whole number; draw it by randint, lograndint or choice"
        )
    low, high, step = (
        _read_bound(document, numbers.get(key), where, f"{kind}: {key}", is_whole)
        for key in ("low", "high", "step")
    )
    if low is None or high is None or not low < high:
        raise document.error(where, f"{kind} needs low < high, got {given!r}")
    if is_log and (low <= 0 or step is not None):
        raise document.error(
            where, f"{kind} needs bounds above 0, and takes no step; got {given!r}"
        )
    if step is not None and step <= 0:
        raise document.error(where, f"{kind} needs a step above 0, got {step}")
    return Distribution(low=low, high=high, step=step, log=bool(is_log), is_whole=is_whole)


def _read_bound(
    document: Document, value: Any, where: Where, what: str, is_whole: bool
) -> float | None:
    if not is_whole or value is None:
        return _read_number(document, value, where, what)
    if not isinstance(value, int) or isinstance(value, bool):
        raise document.error(where, f"{what} must be a whole number, got {value!r}")
    return value
