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
from ..cli.yaml_document import Document, Section
from .space import (
    LISTED,
    SWEEP_COSTS,
    SWEEP_MEASURES,
    Algorithm,
    Asha,
    Condition,
    Distribution,
    SearchSpace,
    check_possible,
    describe_settings,
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
    when: dict[str, Any] = Field(default={})


def read_space(path: Path) -> SearchSpace:
    """Reads a search space; raises OSError if the file cannot be read, ValueError if it is none."""
    return _Reader(Document(path)).space()


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document, self.at = document, document.at
        content = document.content or {}
        if isinstance(content, dict):
            content = {name: value for name, value in content.items() if value is not None}
        self.file = document.validate(_File, content)
        self.algorithm = self.file.algorithm
        self.fixed = self._settings("fixed", self.file.fixed)
        self.around = self._settings("around", self.file.around)
        self.search = self._parents_first(
            {name: self._distribution(name, given) for name, given in self.file.search.items()}
        )

    def space(self) -> SearchSpace:
        self._check_held()
        for name, distribution in self.search.items():
            self._check_conditions(name, distribution)
            with self.at("search", name):
                for value in distribution.examples():
                    check_possible(self._build, {name: value}, self.around, self.search)
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
        drawn = {} if space.is_listed else self.search
        for point in space.points():
            with self.at("search"):
                try:
                    check_possible(self._build, point, {}, drawn)
                except ValueError as problem:
                    shown = describe_settings(point)
                    message = f"the point {shown}: {problem}; leave it out with `when`"
                    raise ValueError(message) from problem
        self._check_repeated(space)
        return space

    def _objectives(self) -> tuple[str, ...]:
        names = self.file.objective
        measures = [name for task in SWEEP_MEASURES.values() for name in task]
        with self.at("objective"):
            for name in names:
                if name not in (*measures, *SWEEP_COSTS):
                    raise ValueError(
                        f"objective is {name!r}, but hyperparameters are chosen on validation data "
                        f"only; use {', '.join(measures)}; or, after one of them, "
                        f"{' or '.join(SWEEP_COSTS)}"
                    )
            if not names or names[0] in SWEEP_COSTS or len(set(names)) < len(names):
                raise ValueError("give a validation measure first, and each objective once")
        return tuple(names)

    def _trials(self) -> int | None:
        if self.algorithm not in LISTED:
            return self.file.trials or 1
        with self.at("trials"):
            if self.file.trials:
                raise ValueError(f"{self.algorithm} tries every point; leave trials out")
        for name, distribution in self.search.items():
            with self.at("search", name):
                if not distribution.listed():
                    raise ValueError(
                        f"{self.algorithm} needs a list of values of {name}; use grid, choice, "
                        "quniform or qrandint"
                    )
        return None

    def _scheduler(self) -> Asha | None:
        given = self.file.scheduler
        if given == "none":
            return None
        with self.at("scheduler"):
            if self.fixed.get("steps") is not None or "steps" in self.search:
                raise ValueError("asha compares trials by epochs; leave scheduler out, or steps")
            if given == "asha":
                return Asha()
            if not isinstance(given, dict) or list(given) != ["asha"]:
                raise ValueError(f"scheduler must be none, asha or `asha: {{...}}`, got {given!r}")
        asha = self.document.validate(_Asha, given["asha"] or {}, "scheduler", "asha")
        return Asha(asha.grace_period, asha.reduction_factor)

    def _check_seeds(self, space: SearchSpace) -> None:
        with self.at("seeds"):
            if space.seeds > 1 and not space.is_listed:
                raise ValueError(
                    f"seeds repeats the points of a grid, and {self.algorithm} draws new ones; "
                    "leave it out, and retrain the best with --confirm"
                )
            if space.seeds > 1 and space.scheduler:
                raise ValueError(
                    "asha would stop some seeds of a point and not others, and the remaining ones "
                    "would be the lucky ones; leave scheduler out, or seeds"
                )

    def _check_around(self) -> None:
        varies_one = self.algorithm == "one-at-a-time"
        with self.at("around"):
            if self.around and not varies_one:
                raise ValueError(f"around is for one-at-a-time; {self.algorithm} does not use it")
        for name in self.search:
            with self.at("search", name):
                if varies_one and name not in self.around:
                    raise ValueError(f"around must give {name} a value while other settings vary")
        for name in self.around:
            with self.at("around", name):
                if name not in self.search:
                    raise ValueError(f"{name} is not searched; move it to fixed")

    def _settings(self, part: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._value(name, value, part, name) for name, value in given.items()}

    def _value(self, name: str, value: Any, *where: str | int) -> Any:
        with self.at(*where):
            _check_name(name)
            typed = typed_value(name, value)
        # A single text of a setting that holds several stays a text, as Optuna wants it.
        return typed[0] if isinstance(typed, tuple) and len(typed) == 1 else typed

    def _distribution(self, name: str, given: Any) -> Distribution:
        with self.at("search", name):
            if name in self.fixed:
                raise ValueError(f"{name} is both fixed and searched; keep one")
            _check_name(name)
            kinds = [key for key in given if key != "when"] if isinstance(given, dict) else []
            if len(kinds) != 1 or kinds[0] not in _KINDS:
                raise ValueError(
                    f"{name} must be drawn by one of {', '.join(_KINDS)}, got {given!r}"
                )
        when = self.document.validate(_When, {"when": given.get("when") or {}}, "search", name).when
        with self.at("search", name, "when"):
            if when and self.algorithm == "one-at-a-time":
                raise ValueError("one-at-a-time varies a setting whatever the others are")
            conditions = [self._condition(name, other, value) for other, value in when.items()]
        with self.at("search", name, kinds[0]):
            read = self._list if kinds[0] in _LISTS else self._range
            return replace(read(name, kinds[0], given[kinds[0]]), when=tuple(conditions))

    def _list(self, name: str, kind: str, values: Any) -> Distribution:
        if kind == "grid" and self.algorithm == "tpe":
            raise ValueError("tpe draws, and tries no grid; use choice")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{kind} needs a list of values, got {values!r}")
        if not all(isinstance(value, _SIMPLE) for value in values):
            raise ValueError(f"{kind} needs texts or numbers, got {values!r}")
        places = enumerate(values)
        values = [self._value(name, one, "search", name, kind, number) for number, one in places]
        if len(set(values)) < len(values):
            raise ValueError(f"{kind} has a value twice: {values!r}")
        return Distribution(values=tuple(values), is_grid=kind == "grid")

    def _range(self, name: str, kind: str, given: Any) -> Distribution:
        is_whole = "int" in kind
        if not _is_number(name):
            raise ValueError(f"{name} is not a number; draw it by choice")
        if float not in field_types(name) and not is_whole:
            raise ValueError(f"{name} is a whole number; draw it by randint, lograndint or choice")
        if kind in _RANGES:
            ends = ["low", "high", "step"] if kind.startswith("q") else ["low", "high"]
            if not isinstance(given, list) or len(given) != len(ends):
                raise ValueError(f"{kind} needs [{', '.join(ends)}], got {given!r}")
            given = dict(zip(ends, given, strict=True)) | {"log": kind.startswith("log")}
        model = _WholeRange if is_whole else _Range
        drawn = self.document.validate(model, given, "search", name, kind)
        return Distribution(**drawn.model_dump(), is_whole=is_whole)

    def _condition(self, name: str, other: str, value: Any) -> Condition:
        where = ("search", name, "when", other)
        others = [one for one in (*self.fixed, *self.file.search) if one != name]
        with self.at(*where):
            if other not in others:
                hint = closest(other, others)
                raise ValueError(f"when: {other!r} is no other setting of this space; {hint}")
            if not isinstance(value, dict):
                values = value if isinstance(value, list) else [value]
                return Condition(other, tuple(self._value(other, one, *where) for one in values))
            _check_name(other)
            bounds = self.document.validate(_Bounds, value, *where)
            if not _is_number(other):
                raise ValueError(f"{other} is no number and has no bounds; give its values instead")
            if bounds.above is None and bounds.below is None:
                raise ValueError(f"give a number that {other} must be above or below")
        return Condition(other, above=bounds.above, below=bounds.below)

    def _parents_first(self, search: dict[str, Distribution]) -> dict[str, Distribution]:
        """Orders the settings so that each follows those that its conditions ask for."""
        with self.at("search"):
            if not search:
                raise ValueError("search is empty; give at least one setting")
        ordered: dict[str, Distribution] = {}
        while waiting := {name: d for name, d in search.items() if name not in ordered}:
            ready = {
                name: distribution
                for name, distribution in waiting.items()
                if not any(one.setting in waiting for one in distribution.when)
            }
            with self.at("search", next(iter(waiting))):
                if not ready:
                    names = " and ".join(waiting)
                    raise ValueError(f"the conditions of {names} depend on each other in a cycle")
            ordered |= ready
        return ordered

    def _check_conditions(self, name: str, distribution: Distribution) -> None:
        """Refuses a condition that cannot hold, and a grid whose points are not known before."""
        for condition in distribution.when:
            other, setting = self.search.get(condition.setting), condition.setting
            with self.at("search", name, "when"):
                if other is None and not condition.holds(self.fixed):
                    raise ValueError(f"{setting} is fixed, and {name} would never be drawn")
                if other and not condition.can_hold(other):
                    raise ValueError(f"{setting} never fits, so {name} would never be drawn")
                is_known = not other or other.is_grid or self.algorithm != "random"
                if distribution.is_grid and not is_known:
                    raise ValueError(f"{name} is a grid, so {setting} must be a grid as well")

    def _points_to_evaluate(self) -> tuple[dict[str, Any], ...]:
        part, given = "points_to_evaluate", self.file.points_to_evaluate
        has_grid = self.algorithm in LISTED or any(d.is_grid for d in self.search.values())
        with self.at(part):
            if given and has_grid:
                raise ValueError("a grid has its own points; leave this out")
        points = []
        for number, values in enumerate(given):
            point = {}
            for name, value in values.items():
                with self.at(part, number, name):
                    if name not in self.search:
                        raise ValueError(f"{name!r} is not searched; {closest(name, self.search)}")
                    point[name] = self._value(name, value, part, number, name)
                    if not self.search[name].contains(point[name]):
                        raise ValueError(f"{name} is {value!r}, which `search` cannot draw")
            with self.at(part, number):
                check_possible(self._build, point, {}, self.search)
            points.append(point)
        return tuple(points)

    def _check_repeated(self, space: SearchSpace) -> None:
        """Refuses a point that is listed twice: it would be tried once."""
        before: list[dict[str, Any]] = []
        for number, point in enumerate(space.points_to_evaluate):
            deciding = space.deciding(point)
            with self.at("points_to_evaluate", number):
                if deciding in before:
                    raise ValueError(
                        f"this is point {before.index(deciding) + 1} of the list again (a setting "
                        "whose `when` does not hold makes no difference); keep one of them"
                    )
            before.append(deciding)

    def _check_held(self) -> None:
        """Refuses values of `fixed` and `around` from which no trial can be made."""
        try:
            check_possible(self._build, {}, self.around, self.search)
        except ValueError as problem:
            for part, held in (("fixed", self.fixed), ("around", self.around)):
                for name, value in held.items():  # one of them may be wrong by itself
                    with self.at(part, name):
                        try:
                            build_experiment({name: value})
                        except ValueError as own:
                            if str(own) == str(problem):
                                raise
            with self.at("around" if self.around else "fixed"):
                raise

    def _build(self, point: Mapping[str, Any]) -> None:
        build_experiment({**self.fixed, **point})


def _check_name(name: str) -> None:
    if name not in setting_types():
        raise ValueError(f"there is no setting {name!r}; {closest(name, setting_types())}")
    if name == "seed":
        raise ValueError("the seed is an option of the sweep; use --seed")


def _is_number(name: str) -> bool:
    return float in field_types(name) or int in field_types(name)
