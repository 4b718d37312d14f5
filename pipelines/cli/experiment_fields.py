"""Builds an experiment from settings by name, as YAML files give them."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from stop_core.settings.experiment import (
    ExperimentConfig,
    refuse_unlisted_tower,
    setting_types,
)
from stop_core.storage.documents import shown


def build_experiment(values: Mapping[str, Any], origin: str = "") -> ExperimentConfig:
    """Builds an experiment from settings by name; a ValueError about them names `origin`."""
    try:
        typed = {name: typed_value(name, value) for name, value in values.items()}
        refuse_unlisted_tower(typed.get("tower"), "the file")
        return ExperimentConfig.from_names(typed)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{origin}: {problem}".removeprefix(": ")) from problem


def typed_value(name: str, value: Any) -> Any:
    """Returns the value in the type of the setting, 4 as 4.0 for a float; raises ValueError."""
    types = setting_types()
    if name not in types:
        raise ValueError(f"there is no setting {name!r}; {closest(name, types)}")
    kinds, origin = get_args(types[name]) or (types[name],), get_origin(types[name])
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
    kind = setting_types()[name]
    return get_args(kind) or (kind,)


def closest(name: str, known: Iterable[str], most: int = 1, otherwise: str = "") -> str:
    """Returns a hint at the names that were probably meant; else `otherwise`, or all of them."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=most):
        return f"did you mean {' or '.join(close)}?"
    return otherwise or f"known: {', '.join(names)}"
