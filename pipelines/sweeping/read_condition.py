"""Reads when a setting is drawn: only where other settings have certain values."""

from collections.abc import Mapping
from typing import Any

from ..cli.experiment_fields import closest
from ..cli.yaml_document import Document, Where
from .read_distribution import read_bounds, read_value
from .space import Algorithm, Condition, Distribution


def read_conditions(
    document: Document, name: str, where: Where, algorithm: Algorithm
) -> tuple[Condition, ...]:
    """Reads `{setting: value, a list of values, or bounds}`, which may be absent.

    Raises:
        ValueError: if it is something else or asks for no other setting; names file and line.
    """
    given = document.mapping(where)
    if given and algorithm == "one-at-a-time":
        raise document.error(where, "one-at-a-time varies a setting whatever the others")
    return tuple(_condition(document, where, other, name) for other in given)


def _condition(document: Document, where: Where, other: str, name: str) -> Condition:
    inner = (*where, other)
    known = {**document.mapping(("fixed",)), **document.mapping(("search",))}
    if other not in known or other == name:
        hint = closest(other, [one for one in known if one != name])
        raise document.error(inner, f"when: {other!r} is no other setting of this space; {hint}")
    value = document.at(inner)
    if isinstance(value, dict):
        above, below = read_bounds(document, other, inner)
        return Condition(other, above=above, below=below)
    values = value if isinstance(value, list) else [value]
    return Condition(other, tuple(read_value(document, other, one, inner) for one in values))


def parents_first(
    document: Document, search: Mapping[str, Distribution]
) -> dict[str, Distribution]:
    """Orders the settings so that a condition asks for what is drawn already.

    Raises:
        ValueError: if conditions go in a circle; names file and line.
    """
    ordered: dict[str, Distribution] = {}
    waiting = dict(search)
    while waiting:
        ready = [
            name
            for name, distribution in waiting.items()
            if not any(one.setting in waiting for one in distribution.when)
        ]
        if not ready:
            names = " and ".join(waiting)
            raise document.error(
                ("search", next(iter(waiting))), f"the conditions of {names} go in a circle"
            )
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered


def check_conditions(
    document: Document,
    search: Mapping[str, Distribution],
    fixed: Mapping[str, Any],
    algorithm: Algorithm,
) -> None:
    """Every condition must be able to hold, and a grid must know its points beforehand.

    Raises:
        ValueError: which names file and line.
    """
    for name, distribution in search.items():
        where = ("search", name, "when")
        for condition in distribution.when:
            other = search.get(condition.setting)
            if other is None and not condition.holds(fixed):
                raise document.error(
                    where, f"{condition.setting} is fixed, and {name} would never be drawn"
                )
            if other and not _can_hold(condition, other):
                raise document.error(
                    where, f"{condition.setting} never fits, so {name} would never be drawn"
                )
            if distribution.is_grid and other and not other.is_grid and algorithm == "random":
                raise document.error(
                    where, f"{name} is a grid, so {condition.setting} must be a grid as well"
                )


def _can_hold(condition: Condition, other: Distribution) -> bool:
    """Whether what the other setting is drawn from has a value that fits."""
    if condition.values:
        return any(other.contains(value) for value in condition.values)
    return any(condition.holds({condition.setting: value}) for value in other.examples())
