"""Builds an experiment from settings by name, as YAML files give them."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stop_core.settings.experiment import ExperimentConfig, refuse_unlisted_tower
from stop_core.settings.stop import StopConfig
from stop_core.storage.documents import shown

FIELDS = {f.name for kind in (StopConfig, ExperimentConfig) for f in fields(kind)} - {"stop"}


_HINTS = {**get_type_hints(StopConfig), **get_type_hints(ExperimentConfig)}


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


def _check_names(values: Mapping[str, Any], origin: str) -> None:
    for name in values:
        if name not in FIELDS:
            raise ValueError(f"{origin}: there is no setting {name!r}; {closest(name, FIELDS)}")
