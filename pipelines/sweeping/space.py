"""A search space: the fixed settings, the distributions of the others, and the objectives."""

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from stop_core.datasets import Task
from stop_core.settings.experiment import ExperimentConfig

from ..cli.experiment_fields import build_experiment

Algorithm = Literal["grid", "random", "tpe", "one-at-a-time"]
LISTED: tuple[Algorithm, ...] = ("grid", "one-at-a-time")
"""Algorithms that try every point, and draw none."""

BASE_MEASURE = "val/base_top1"
"""The only measure of trainings with `classes` base."""
SWEEP_MEASURES: dict[Task, tuple[str, ...]] = {
    "recognition": ("val/top1", "val/top5", "val/mean_class", BASE_MEASURE),
    "retrieval": tuple(
        f"val/{direction}_{measure}"
        for direction in ("t2v", "v2t")
        for measure in ("r1", "r5", "r10", "median_rank", "mean_rank")
    ),
}
"""Measures of a training on the validation split, by the task of the cache."""
SWEEP_COSTS = ("step_seconds", "trainable_parameters")
"""Costs of a training: the median time of a step, and the number of trained weights."""


def is_minimised(objective: str) -> bool:
    """Returns whether a smaller value is better."""
    return objective in SWEEP_COSTS or objective.endswith("_rank")


def short(value: Any) -> str:
    """Returns a value with at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_settings(drawn: Mapping[str, Any]) -> str:
    """Returns the settings of a trial on one line."""
    return ", ".join(f"{name} {short(value)}" for name, value in drawn.items())


@dataclass(frozen=True)
class Condition:
    """Holds if another setting has one of `values`, or is strictly between two bounds."""

    setting: str
    values: tuple[Any, ...] = ()
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        if self.values:
            return f"{self.setting} in {list(self.values)}"
        bounds = (("above", self.above), ("below", self.below))
        words = (f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{self.setting} {' and '.join(words)}"

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Returns whether it holds; it never does if the other setting is itself left out."""
        if self.setting not in settings:
            return False
        value = settings[self.setting]
        if self.values:
            return value in self.values
        if not isinstance(value, int | float):  # depth and frames can be None
            return False
        return (self.above is None or value > self.above) and (
            self.below is None or value < self.below
        )

    def can_hold(self, other: "Distribution") -> bool:
        """Returns whether the distribution of the other setting has a value that fits."""
        if self.values:
            return any(other.contains(value) for value in self.values)
        return any(self.holds({self.setting: value}) for value in other.examples())


@dataclass(frozen=True)
class Distribution:
    """How one setting is drawn: from a list, or from a range that includes both ends."""

    values: tuple[Any, ...] = ()
    """The list; empty for a range."""
    is_grid: bool = False
    """Every value of the list in turn, instead of one at random."""
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    is_whole: bool = False
    when: tuple[Condition, ...] = ()
    """All of them must hold, or the setting keeps its default."""

    def __str__(self) -> str:
        if self.values:
            return ("grid " if self.is_grid else "choice ") + ", ".join(map(short, self.values))
        whole = "a whole number " if self.is_whole else ""
        step = f" in steps of {self.step:g}" if self.step else ""
        scale = " on a logarithmic scale" if self.log else ""
        return f"{whole}from {self.low:g} to {self.high:g}{step}{scale}"

    def examples(self) -> tuple[Any, ...]:
        """Returns every value of a list, or the two ends of a range."""
        return self.values or (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Returns whether the value can be drawn."""
        if self.values:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9

    def listed(self) -> tuple[Any, ...]:
        """Returns all values of a list, or of a range with steps; () for a continuous range.

        The last step of a range does not go beyond its end.
        """
        if self.values or self.step is None:
            return self.values
        # In decimals: in binary, 7 steps of 0.1 are more than 0.7, which Optuna then refuses.
        low, high, step = (Decimal(str(x)) for x in (self.low, self.high, self.step))
        kind = int if self.is_whole else float
        return tuple(kind(low + number * step) for number in range(int((high - low) / step) + 1))


def check_possible(
    build: Callable[[dict[str, Any]], object],
    point: Mapping[str, Any],
    around: Mapping[str, Any],
    search: Mapping[str, Distribution],
) -> None:
    """Refuses a point from which no trial can be made.

    A setting can depend on another one: segment_jitter needs frames. So the point is built with the
    defaults of the settings that are drawn, and then with each value of each of them; a ValueError
    is that of the defaults. `around` has the values of the other settings if none are drawn.
    """
    try:
        build({**around, **point})
    except ValueError:
        others = [name for name in search if name not in point and not around]
        for other in ({name: value} for name in others for value in search[name].examples()):
            with suppress(ValueError):
                build({**point, **other})
                return
        raise


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving: only the best share of the trials continues at a rung."""

    grace_period: int = 1
    """Epochs that every trial can train."""
    reduction_factor: int = 3
    """One in N trials continues to the next rung, which is N times as high."""


@dataclass(frozen=True)
class SearchSpace:
    """A sweep, independent of the machine that runs it."""

    objectives: tuple[str, ...]
    """Measures on the validation split, or costs; several make a Pareto front."""
    fixed: dict[str, Any]
    search: dict[str, Distribution]
    """Ordered so that a setting follows those that its conditions ask for."""
    algorithm: Algorithm = "random"
    trials: int | None = None
    """Number of draws; with grids, per point of the grid; None: the grid once."""
    scheduler: Asha | None = None
    seeds: int = 1
    """Trainings of every listed point, each with its own seed."""
    around: dict[str, Any] = field(default_factory=dict)
    """The point from which one setting at a time is varied."""
    points_to_evaluate: tuple[dict[str, Any], ...] = ()
    """Points that are tried first; settings that a point leaves open are drawn."""
    startup_trials: int = 10
    """Random draws before TPE begins to model."""

    @property
    def is_listed(self) -> bool:
        """Whether every point is tried, and none is drawn."""
        return self.algorithm in LISTED

    @property
    def longest(self) -> int:
        """Epochs of the longest training that can be drawn."""
        return int(max(self.possible("epochs")))

    @property
    def grace_period(self) -> int | None:
        """Epochs that ASHA lets every trial train; None if no trial is stopped."""
        return min(self.scheduler.grace_period, self.longest) if self.scheduler else None

    def possible(self, name: str) -> tuple[Any, ...]:
        """Returns the values of a setting: all of a list, the ends of a range, or the fixed one."""
        if name in self.search:
            return self.search[name].examples()
        return (self.fixed.get(name, getattr(ExperimentConfig, name)),)

    def experiment(
        self, drawn: Mapping[str, Any], seed: int = 0, origin: str = "this trial"
    ) -> ExperimentConfig:
        """Returns the experiment of a trial; a ValueError about its settings names `origin`."""
        return build_experiment({**self.fixed, **drawn, "seed": seed}, origin)

    def active(self, name: str, drawn: Mapping[str, Any]) -> bool:
        """Returns whether the setting is drawn, given the settings that were drawn before."""
        settings = {**self.fixed, **drawn}
        return all(condition.holds(settings) for condition in self.search[name].when)

    def deciding(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of a point that matter: those whose conditions can hold."""
        matter: dict[str, Any] = {}
        idle = set()
        for name, distribution in self.search.items():
            known = {**self.fixed, **matter}
            if any(
                one.setting in idle or (one.setting in known and not one.holds(known))
                for one in distribution.when
            ):
                idle.add(name)
            elif name in point:
                matter[name] = point[name]
        return matter

    def points(self) -> list[dict[str, Any]]:
        """Returns the points that are known before any draw, each once, in order."""
        points: list[dict[str, Any]] = []
        if self.algorithm == "one-at-a-time":
            points.append(dict(self.around))
            for name, distribution in self.search.items():
                for value in distribution.listed():
                    if (point := {**self.around, name: value}) not in points:
                        points.append(point)
            return points
        lists = {name: d.values for name, d in self.search.items() if d.is_grid}
        if self.algorithm == "grid":
            lists = {name: d.listed() for name, d in self.search.items()}
        for values in itertools.product(*lists.values()):
            point = {}
            for name, value in zip(lists, values, strict=True):
                if self.active(name, point):  # otherwise it is left out
                    point[name] = value
            if point not in points:
                points.append(point)
        return points
