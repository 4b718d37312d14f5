"""Settings, and how they are drawn, in words: for tables, reports and names of runs."""

from typing import Any

from .space import Condition, Distribution


def describe_settings(drawn: dict[str, Any]) -> str:
    """The settings of a trial in one line."""
    return ", ".join(f"{name} {short(value)}" for name, value in drawn.items())


def short(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def terms(distribution: Distribution) -> str:
    """A distribution as the YAML says it."""
    if distribution.values:
        kind = "grid" if distribution.is_grid else "choice"
        return f"{kind} {', '.join(short(value) for value in distribution.values)}"
    scale = " on a logarithmic scale" if distribution.log else ""
    step = f" in steps of {distribution.step:g}" if distribution.step else ""
    whole = "a whole number " if distribution.is_whole else ""
    return f"{whole}from {distribution.low:g} to {distribution.high:g}{step}{scale}"


def condition(one: Condition) -> str:
    """When a setting is drawn."""
    if one.values:
        return f"{one.setting} in {list(one.values)}"
    bounds = (("above", one.above), ("below", one.below))
    words = (f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    return f"{one.setting} {' and '.join(words)}"
