"""Builds an experiment from settings by name, as YAML files give them."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stop_core.settings.experiment import ExperimentConfig, refuse_unlisted_tower
from stop_core.settings.stop import StopConfig
from stop_core.storage.documents import shown

_HINTS = {**get_type_hints(StopConfig), **get_type_hints(ExperimentConfig)}
FIELDS = {f.name for kind in (StopConfig, ExperimentConfig) for f in fields(kind)} - {"stop"}


def build_experiment(values: Mapping[str, Any], origin: str = "") -> ExperimentConfig:
    """Builds an experiment from settings by name, those of STOP among the others.

    Raises:
        ValueError: if a name is unknown or a value is out of range; names `origin`, if given.
    """
    own = {f.name for f in fields(StopConfig)}
    try:
        typed = {name: typed_value(name, value) for name, value in values.items()}
        others = {name: value for name, value in typed.items() if name not in own}
        refuse_unlisted_tower(others.get("tower"), "the file")
        stop = StopConfig(**{name: value for name, value in typed.items() if name in own})
        return ExperimentConfig(stop=stop, **others)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{origin}: {problem}".removeprefix(": ")) from problem


def typed_value(name: str, value: Any) -> Any:
    """Returns the value in the type of the setting: 4 becomes 4.0 for a float.

    Raises:
        ValueError: if there is no such setting, or the value has another type.
    """
    if name not in FIELDS:
        raise ValueError(f"there is no setting {name!r}; {closest(name, FIELDS)}")
    kinds, origin = field_types(name), get_origin(_HINTS[name])
    if value is None and type(None) in kinds:
        return None
    if origin is tuple:  # of texts; a single one need not be a list
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a text or a list of texts, got {shown(value)}")
        return tuple(texts)
    if float in kinds and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a text
        except (TypeError, ValueError):
            pass
    elif any(isinstance(kind, type) and type(value) is kind for kind in kinds):
        return value
    elif origin is Literal and isinstance(value, str):
        return value  # the dataclass checks which one
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ValueError(f"{name} must be {wanted}, got {value!r}")


def field_types(name: str) -> tuple[Any, ...]:
    """Returns the types that a setting can have; two for `int | None`."""
    return get_args(_HINTS[name]) or (_HINTS[name],)


def closest(name: str, known: Iterable[str]) -> str:
    """Returns a hint at the name that was probably meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
