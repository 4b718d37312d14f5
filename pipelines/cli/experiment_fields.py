"""Builds an experiment from settings by name, as in YAML files."""

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
    """Builds an experiment from settings by name, those of STOP and the others in one mapping.

    Raises:
        ValueError: if a name is unknown or a value is out of range; names `origin`.
    """
    for name in values:
        if name not in FIELDS:
            raise ValueError(f"{origin}: there is no setting {name!r}; {closest(name, FIELDS)}")
    try:
        refuse_unlisted_tower(values.get("tower"), "the file")
        settings = {name: typed(name, value) for name, value in values.items()}
        return ExperimentConfig.from_parameters(settings)
    except ValueError as problem:
        raise ValueError(f"{origin}: {problem}") from problem


def typed(name: str, value: Any) -> Any:
    """Returns a value as the type of its setting: 4 as 4.0, and the text 1e-3 as a number.

    Raises:
        ValueError: if it has another type.
    """
    kinds = get_args(_HINTS[name]) or (_HINTS[name],)  # `int | None` has two
    if value is None and type(None) in kinds:
        return None
    if get_origin(_HINTS[name]) is tuple:
        texts = tuple(value) if isinstance(value, list) else (value,)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a text or a list of texts, got {shown(value)}")
        return texts
    if float in kinds and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except (TypeError, ValueError):
            pass
    elif any(isinstance(kind, type) and type(value) is kind for kind in kinds):
        return value
    elif get_origin(_HINTS[name]) is Literal and isinstance(value, str):
        return value  # the dataclass checks its value
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def field_type(name: str) -> Any:
    """Returns the annotated type of a setting."""
    return _HINTS[name]


def closest(name: str, known: Iterable[str]) -> str:
    """Returns a hint: the most similar of the known names, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
