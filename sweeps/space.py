"""A search space: what is fixed, what is drawn and how, and what is to be made best."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, get_args

from stop_core.datasets import Task
from stop_core.experiment import ExperimentConfig

Algorithm = Literal["grid", "random", "tpe", "one-at-a-time"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
Scheduler = Literal["asha", "none"]

MEASURES: dict[Task, tuple[str, ...]] = {
    "recognition": ("val/top1", "val/top5", "val/mean_class"),
    "retrieval": tuple(
        f"val/{direction}_{measure}"
        for direction in ("t2v", "v2t")
        for measure in ("r1", "r5", "r10", "median_rank", "mean_rank")
    ),
}
"""What the validation split tells of a training, by the task of the cache."""
COSTS = ("step_seconds", "trainable_parameters")
"""What a training costs: the median time of a step, and the number of trained weights."""


def is_minimised(objective: str) -> bool:
    """Whether less of it is better."""
    return objective in COSTS or objective.endswith("_rank")


@dataclass(frozen=True)
class Condition:
    """Holds where another setting has one of `values`, or lies strictly between two bounds."""

    setting: str
    values: tuple[Any, ...] = ()
    above: float | None = None
    below: float | None = None

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether it holds; never where the other setting is itself left out."""
        if self.setting not in settings:
            return False
        value = settings[self.setting]
        if self.values:
            return value in self.values
        if not isinstance(value, int | float):  # depth and frames may be empty
            return False
        return (self.above is None or value > self.above) and (
            self.below is None or value < self.below
        )


@dataclass(frozen=True)
class Distribution:
    """How one setting is drawn: from a list, or from a range whose ends are both included."""

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
    """All of them must hold, or the setting is left at its default."""

    def examples(self) -> tuple[Any, ...]:
        """Every value of a list, the two ends of a range."""
        return self.values or (self.low, self.high)

    def contains(self, value: Any) -> bool:
        """Whether it can be drawn."""
        if self.values:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.is_whole and not isinstance(value, int):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9

    def listed(self) -> tuple[Any, ...]:
        """All values, of a list or of a range in steps; empty for a range that has no end of them.

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
    """Refuses a point from which no trial can come.

    A setting may need another: segment_jitter needs frames. So where the others are drawn, the
    point is tried with their defaults first, and then beside each value of each other setting.

    Args:
        build: raises a ValueError for settings that do not hold together.
        point: settings of a trial by name.
        around: what the others are, if they are not drawn.
        search: what is searched.

    Raises:
        ValueError: what `build` says of the point beside the defaults.
    """
    try:
        build({**around, **point})
    except ValueError:
        others = [name for name in search if name not in point and not around]
        beside = ({**point, name: value} for name in others for value in search[name].examples())
        if not any(_builds(build, one) for one in beside):
            raise


def _builds(build: Callable[[dict[str, Any]], object], point: dict[str, Any]) -> bool:
    try:
        build(point)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving: of the trials at a rung, the best share goes on."""

    grace_period: int = 1
    """Epochs that every trial may train."""
    reduction_factor: int = 3
    """One in so many goes on to the next rung, which is so many times as high."""


@dataclass(frozen=True)
class SearchSpace:
    """A sweep. Nothing in it depends on the machine."""

    objectives: tuple[str, ...]
    """Measured on the validation split, or a cost; several make a Pareto front."""
    fixed: dict[str, Any]
    search: dict[str, Distribution]
    """In an order in which a setting follows those that its conditions ask for."""
    algorithm: Algorithm = "random"
    trials: int | None = None
    """Draws; with grids, draws of every point of the grid; None: the grid once."""
    scheduler: Asha | None = None
    seeds: int = 1
    """Trainings of every point, of a grid or one at a time, each with a seed of its own."""
    around: dict[str, Any] = field(default_factory=dict)
    """The point that is held while one setting at a time leaves it."""
    points_to_evaluate: tuple[dict[str, Any], ...] = ()
    """What is tried first; what a point does not say is drawn."""
    startup_trials: int = 10
    """Random draws before TPE begins to model."""

    @property
    def longest(self) -> int:
        """Epochs of the longest training that can be drawn."""
        return int(max(self.possible("epochs")))

    @property
    def grace_period(self) -> int | None:
        """Epochs that ASHA lets every trial train; None where no trial is stopped."""
        return min(self.scheduler.grace_period, self.longest) if self.scheduler else None

    def possible(self, name: str) -> tuple[Any, ...]:
        """What a setting of an experiment may be: every value of a list, the ends of a range."""
        if name in self.search:
            return self.search[name].examples()
        return (self.fixed.get(name, getattr(ExperimentConfig, name)),)

    def complete(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial by name: the fixed ones and those that were drawn."""
        return {**self.fixed, **drawn}

    def active(self, name: str, drawn: Mapping[str, Any]) -> bool:
        """Whether the setting is to be drawn, beside those that have been."""
        settings = self.complete(drawn)
        return all(condition.holds(settings) for condition in self.search[name].when)

    def deciding(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What of a point makes a difference: not a setting whose conditions cannot hold."""
        found: dict[str, Any] = {}
        idle = set()
        for name, distribution in self.search.items():
            known = self.complete(found)
            if any(
                one.setting in idle or (one.setting in known and not one.holds(known))
                for one in distribution.when
            ):
                idle.add(name)
            elif name in point:
                found[name] = point[name]
        return found

    def points(self) -> list[dict[str, Any]]:
        """The points that are certain before anything is drawn, each once, in their order."""
        if self.algorithm == "one-at-a-time":
            return self._one_at_a_time()
        if self.algorithm == "grid":
            return list(self._grid({name: d.listed() for name, d in self.search.items()}))
        return list(self._grid({n: d.values for n, d in self.search.items() if d.is_grid}))

    def _one_at_a_time(self) -> list[dict[str, Any]]:
        found = [dict(self.around)]
        for name, distribution in self.search.items():
            for value in distribution.listed():
                point = {**self.around, name: value}
                if point not in found:
                    found.append(point)
        return found

    def _grid(self, lists: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """All combinations; a setting whose conditions do not hold is not multiplied by."""
        seen = []
        for values in itertools.product(*lists.values()):
            point: dict[str, Any] = {}
            for name, value in zip(lists, values, strict=True):
                if self.active(name, point):
                    point[name] = value
            if point not in seen:
                seen.append(point)
                yield point
