"""Reads a search space from YAML. Every error names the file, the line and the remedy.

docs/sweeps.md explains the format. Both ends of a range are included, as in Optuna; Ray Tune leaves
out the upper end of a randint.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PositiveInt, StrictBool, StrictInt, model_validator

from stop_core.settings.experiment import setting_types

from ..cli.experiment_fields import build_experiment, closest, field_types, typed_value
from ..cli.yaml_document import Document, Section, Where
from .space import (
    SWEEP_COSTS,
    SWEEP_MEASURES,
    Algorithm,
    Asha,
    Condition,
    Distribution,
    SearchSpace,
    check_possible,
)

_LISTS = ("choice", "categorical", "grid")
_RANGES = ("uniform", "quniform", "loguniform", "randint", "qrandint", "lograndint")
_KINDS = (*_LISTS, *_RANGES, "float", "int")
_SIMPLE = str | int | float | bool | None


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number; YAML reads yes, no, on and off as true or false")
    return value


_Count = Annotated[PositiveInt, Field(strict=True)]
_Number = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
_Several = Annotated[list[Any], BeforeValidator(lambda v: v if isinstance(v, list) else [v])]


class _File(Section):
    algorithm: Algorithm = "random"
    trials: _Count | None = None
    objective: _Several = Field(default=["val/top1"])
    scheduler: Any = "none"
    seeds: _Count = 1
    startup_trials: _Count = 10
    fixed: dict[str, Any] = Field(default={})
    around: dict[str, Any] = Field(default={})
    search: dict[str, Any] = Field(default={})
    points_to_evaluate: list[dict[str, Any]] = Field(default=[])


class _Asha(Section):
    grace_period: _Count = 1
    reduction_factor: Annotated[int, Field(strict=True, ge=2)] = 3


class _Range(Section):
    low: _Number
    high: _Number
    step: _Number | None = None
    log: StrictBool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError("a range needs low < high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range needs bounds above 0, and takes no step")
        if self.step is not None and self.step <= 0:
            raise ValueError("a range needs a step above 0")
        return self


class _WholeRange(_Range):
    low: StrictInt
    high: StrictInt
    step: StrictInt | None = None


class _Bounds(Section):
    above: _Number | None = None
    below: _Number | None = None


class _When(Section):
    when: dict[str, Any] | None = None


def read_space(path: Path) -> SearchSpace:
    """Reads a search space.

    Raises:
        ValueError: if the file is not one; the message names the file, the line and the remedy.
        OSError: if it cannot be read.
    """
    return _Reader(Document(path)).space()


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.error = document.error
        content = document.content or {}
        if isinstance(content, dict):
            content = {name: value for name, value in content.items() if value is not None}
        self.file = document.validate(_File, (), content)
        self.algorithm = self.file.algorithm
        self.fixed = self._settings("fixed", self.file.fixed)
        self.around = self._settings("around", self.file.around)
        self.search = self._parents_first(
            {name: self._distribution(name, given) for name, given in self.file.search.items()}
        )

    def space(self) -> SearchSpace:
        """Returns the whole space, checked."""
        self._check_held()
        for name, distribution in self.search.items():
            self._check_conditions(name, distribution)
            for value in distribution.examples():
                self._check_point(("search", name), {name: value}, self.around, self.search)
        space = SearchSpace(
            objectives=self._objectives(),
            fixed=self.fixed,
            search=self.search,
            algorithm=self.algorithm,
            trials=self._trials(),
            scheduler=self._scheduler(),
            seeds=self.file.seeds,
            around=self.around,
            points_to_evaluate=self._points_to_evaluate(),
            startup_trials=self.file.startup_trials,
        )
        self._check_seeds(space)
        self._check_around()
        # Every point of a grid must be an experiment; other settings are drawn to fit.
        drawn = {} if self._lists_points else self.search
        for point in space.points():
            shown = ", ".join(f"{name} {value}" for name, value in point.items())
            self._check_point(
                ("search",), point, {}, drawn, f"the point {shown}: ", "; leave it out with `when`"
            )
        self._check_repeated(space)
        return space

    @property
    def _lists_points(self) -> bool:
        """Whether the algorithm tries every point, and draws none."""
        return self.algorithm in ("grid", "one-at-a-time")

    def _objectives(self) -> tuple[str, ...]:
        names, where = self.file.objective, ("objective",)
        measures = [name for task in SWEEP_MEASURES.values() for name in task]
        for name in names:
            if name not in (*measures, *SWEEP_COSTS):
                raise self.error(
                    where,
                    f"objective is {name!r}, but hyperparameters are chosen on validation data "
                    f"only; use {', '.join(measures)}; or, after one of them, "
                    f"{' or '.join(SWEEP_COSTS)}",
                )
        if not names or names[0] in SWEEP_COSTS or len(set(names)) < len(names):
            raise self.error(where, "give a validation measure first, and each objective once")
        return tuple(names)

    def _trials(self) -> int | None:
        if not self._lists_points:
            return self.file.trials or 1
        if self.file.trials:
            raise self.error(("trials",), f"{self.algorithm} tries every point; leave trials out")
        for name, distribution in self.search.items():
            if not distribution.listed():
                raise self.error(
                    ("search", name),
                    f"{self.algorithm} needs a list of values of {name}; use grid, choice, "
                    "quniform or qrandint",
                )
        return None

    def _scheduler(self) -> Asha | None:
        given = self.file.scheduler
        if given == "none":
            return None
        if self.fixed.get("steps") is not None or "steps" in self.search:
            raise self.error(
                ("scheduler",), "asha compares trials by epochs; leave scheduler out, or steps"
            )
        if given == "asha":
            return Asha()
        if not isinstance(given, dict) or list(given) != ["asha"]:
            raise self.error(
                ("scheduler",), f"scheduler must be none, asha or `asha: {{...}}`, got {given!r}"
            )
        asha = self.document.validate(_Asha, ("scheduler", "asha"), given["asha"] or {})
        return Asha(asha.grace_period, asha.reduction_factor)

    def _check_seeds(self, space: SearchSpace) -> None:
        if space.seeds > 1 and not self._lists_points:
            raise self.error(
                ("seeds",),
                f"seeds repeats the points of a grid, and {self.algorithm} draws new ones; leave "
                "it out, and retrain the best with --confirm",
            )
        if space.seeds > 1 and space.scheduler:
            raise self.error(
                ("seeds",),
                "asha would stop some seeds of a point and not others, and the remaining ones "
                "would be the lucky ones; leave scheduler out, or seeds",
            )

    def _check_around(self) -> None:
        if self.algorithm != "one-at-a-time":
            if self.around:
                raise self.error(
                    ("around",), f"around is for one-at-a-time; {self.algorithm} does not use it"
                )
            return
        for name in self.search:
            if name not in self.around:
                raise self.error(
                    ("search", name), f"around must give {name} a value while other settings vary"
                )
        for name in self.around:
            if name not in self.search:
                raise self.error(("around", name), f"{name} is not searched; move it to fixed")

    def _settings(self, part: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._value(name, value, (part, name)) for name, value in given.items()}

    def _value(self, name: str, value: Any, where: Where) -> Any:
        """Returns the value in the type of the setting.

        A single text of a setting that holds several stays a text, as Optuna wants it.
        """
        self._check_name(name, where)
        try:
            typed = typed_value(name, value)
        except ValueError as problem:
            raise self.error(where, str(problem)) from None
        return typed[0] if isinstance(typed, tuple) and len(typed) == 1 else typed

    def _check_name(self, name: str, where: Where) -> None:
        if name not in setting_types():
            hint = closest(name, setting_types())
            raise self.error(where, f"there is no setting {name!r}; {hint}")
        if name == "seed":
            raise self.error(where, "the seed is an option of the sweep; use --seed")

    def _distribution(self, name: str, given: Any) -> Distribution:
        where: Where = ("search", name)
        if name in self.fixed:
            raise self.error(where, f"{name} is both fixed and searched; keep one")
        self._check_name(name, where)
        kinds = [key for key in given if key != "when"] if isinstance(given, dict) else []
        if len(kinds) != 1 or kinds[0] not in _KINDS:
            raise self.error(
                where, f"{name} must be drawn by one of {', '.join(_KINDS)}, got {given!r}"
            )
        kind, inner = kinds[0], (*where, kinds[0])
        read = self._list if kind in _LISTS else self._range
        when = self.document.validate(_When, where, {"when": given.get("when")}).when or {}
        if when and self.algorithm == "one-at-a-time":
            raise self.error(
                (*where, "when"), "one-at-a-time varies a setting whatever the others are"
            )
        conditions = tuple(self._condition(name, other, value) for other, value in when.items())
        return replace(read(name, kind, given[kind], inner), when=conditions)

    def _list(self, name: str, kind: str, values: Any, where: Where) -> Distribution:
        if kind == "grid" and self.algorithm == "tpe":
            raise self.error(where, "tpe draws, and tries no grid; use choice")
        if not isinstance(values, list) or not values:
            raise self.error(where, f"{kind} needs a list of values, got {values!r}")
        if not all(isinstance(value, _SIMPLE) for value in values):
            raise self.error(where, f"{kind} needs texts or numbers, got {values!r}")
        values = [self._value(name, one, (*where, number)) for number, one in enumerate(values)]
        if len(set(values)) < len(values):
            raise self.error(where, f"{kind} has a value twice: {values!r}")
        return Distribution(values=tuple(values), is_grid=kind == "grid")

    def _range(self, name: str, kind: str, given: Any, where: Where) -> Distribution:
        is_whole = "int" in kind
        if not _is_number(name):
            raise self.error(where, f"{name} is not a number; draw it by choice")
        if float not in field_types(name) and not is_whole:
            raise self.error(
                where, f"{name} is a whole number; draw it by randint, lograndint or choice"
            )
        if kind in _RANGES:
            ends = ["low", "high", "step"] if kind.startswith("q") else ["low", "high"]
            if not isinstance(given, list) or len(given) != len(ends):
                raise self.error(where, f"{kind} needs [{', '.join(ends)}], got {given!r}")
            given = dict(zip(ends, given, strict=True)) | {"log": kind.startswith("log")}
        drawn = self.document.validate(_WholeRange if is_whole else _Range, where, given)
        return Distribution(**drawn.model_dump(), is_whole=is_whole)

    def _condition(self, name: str, other: str, value: Any) -> Condition:
        where: Where = ("search", name, "when", other)
        others = [one for one in (*self.fixed, *self.file.search) if one != name]
        if other not in others:
            raise self.error(
                where,
                f"when: {other!r} is no other setting of this space; {closest(other, others)}",
            )
        if not isinstance(value, dict):
            values = value if isinstance(value, list) else [value]
            return Condition(other, tuple(self._value(other, one, where) for one in values))
        self._check_name(other, where)
        bounds = self.document.validate(_Bounds, where, value)
        if not _is_number(other):
            raise self.error(
                where, f"{other} is no number and has no bounds; give its values instead"
            )
        if bounds.above is None and bounds.below is None:
            raise self.error(where, f"give a number that {other} must be above or below")
        return Condition(other, above=bounds.above, below=bounds.below)

    def _parents_first(self, search: dict[str, Distribution]) -> dict[str, Distribution]:
        """Orders the settings so that each follows those that its conditions ask for."""
        if not search:
            raise self.error(("search",), "search is empty; give at least one setting")
        ordered: dict[str, Distribution] = {}
        while waiting := {name: d for name, d in search.items() if name not in ordered}:
            ready = {
                name: distribution
                for name, distribution in waiting.items()
                if not any(one.setting in waiting for one in distribution.when)
            }
            if not ready:
                names = list(waiting)
                raise self.error(
                    ("search", names[0]),
                    f"the conditions of {' and '.join(names)} depend on each other in a cycle",
                )
            ordered |= ready
        return ordered

    def _check_conditions(self, name: str, distribution: Distribution) -> None:
        """Refuses a condition that cannot hold, and a grid whose points are not known before."""
        where = ("search", name, "when")
        for condition in distribution.when:
            other = self.search.get(condition.setting)
            if other is None and not condition.holds(self.fixed):
                raise self.error(
                    where, f"{condition.setting} is fixed, and {name} would never be drawn"
                )
            if other and not condition.can_hold(other):
                raise self.error(
                    where, f"{condition.setting} never fits, so {name} would never be drawn"
                )
            if distribution.is_grid and other and not other.is_grid and self.algorithm == "random":
                raise self.error(
                    where, f"{name} is a grid, so {condition.setting} must be a grid as well"
                )

    def _points_to_evaluate(self) -> tuple[dict[str, Any], ...]:
        points = []
        if self.file.points_to_evaluate and (
            self._lists_points or any(d.is_grid for d in self.search.values())
        ):
            raise self.error(("points_to_evaluate",), "a grid has its own points; leave this out")
        for number, given in enumerate(self.file.points_to_evaluate):
            where: Where = ("points_to_evaluate", number)
            point = {}
            for name, value in given.items():
                if name not in self.search:
                    raise self.error(
                        (*where, name), f"{name!r} is not searched; {closest(name, self.search)}"
                    )
                point[name] = self._value(name, value, (*where, name))
                if not self.search[name].contains(point[name]):
                    raise self.error(
                        (*where, name), f"{name} is {value!r}, which `search` cannot draw"
                    )
            self._check_point(where, point, {}, self.search)
            points.append(point)
        return tuple(points)

    def _check_repeated(self, space: SearchSpace) -> None:
        """Refuses a point that is listed twice: it would be tried once."""
        before: list[dict[str, Any]] = []
        for number, point in enumerate(space.points_to_evaluate):
            deciding = space.deciding(point)
            if deciding in before:
                raise self.error(
                    ("points_to_evaluate", number),
                    f"this is point {before.index(deciding) + 1} of the list again (a setting "
                    "whose `when` does not hold makes no difference); keep one of them",
                )
            before.append(deciding)

    def _check_held(self) -> None:
        """Refuses values of `fixed` and `around` from which no trial can be made."""
        held = {("fixed", name): value for name, value in self.fixed.items()}
        held |= {("around", name): value for name, value in self.around.items()}
        try:
            check_possible(self._build, {}, self.around, self.search)
        except ValueError as problem:
            where: Where = ("around",) if self.around else ("fixed",)
            for (part, name), value in held.items():  # one of them may be wrong by itself
                try:
                    build_experiment({name: value})
                except ValueError as own:
                    if str(own) == str(problem):
                        where = (part, name)
                        break
            raise self.error(where, str(problem)) from problem

    def _check_point(
        self,
        where: Where,
        point: Mapping[str, Any],
        around: Mapping[str, Any],
        search: Mapping[str, Distribution],
        before: str = "",
        after: str = "",
    ) -> None:
        try:
            check_possible(self._build, point, around, search)
        except ValueError as problem:
            raise self.error(where, f"{before}{problem}{after}") from problem

    def _build(self, point: Mapping[str, Any]) -> None:
        build_experiment({**self.fixed, **point})


def _is_number(name: str) -> bool:
    return float in field_types(name) or int in field_types(name)
