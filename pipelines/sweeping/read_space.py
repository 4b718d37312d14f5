"""Reads a search space from YAML; every mistake is told with its file and line.

The format is explained in docs/sweeps.md.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..cli.experiment_fields import build_experiment, closest
from ..cli.folders import SWEEPS
from ..cli.yaml_document import Document, Where
from .read_condition import check_conditions, parents_first, read_conditions
from .read_distribution import read_distribution, read_value
from .space import (
    ALGORITHMS,
    SWEEP_COSTS,
    SWEEP_MEASURES,
    Algorithm,
    Asha,
    Distribution,
    SearchSpace,
    check_possible,
)

_KEYS = {
    "trials", "objective", "algorithm", "scheduler", "seeds", "startup_trials",
    "fixed", "search", "around", "points_to_evaluate",
}  # fmt: skip


def read_space(path: Path) -> SearchSpace:
    """Reads a search space.

    Raises:
        ValueError: if the file is not one; the message names the file, the line and the remedy.
        OSError: if it cannot be read.
    """
    try:
        document = Document(path)
    except OSError as problem:
        raise OSError(
            f"{path} cannot be read ({problem.strerror}); the files below {SWEEPS} are examples"
        ) from problem
    return _Reader(document).space()


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        document.mapping((), _KEYS)
        self.algorithm = self._algorithm()
        self.fixed = self._settings(("fixed",))

    def space(self) -> SearchSpace:
        """All of it, checked."""
        around = self._settings(("around",))
        search = self._search()
        self._check_values(around, search)
        space = SearchSpace(
            objectives=self._objectives(),
            fixed=self.fixed,
            search=search,
            algorithm=self.algorithm,
            trials=self._trials(search),
            scheduler=self._scheduler(),
            seeds=self._seeds(),
            around=around,
            points_to_evaluate=self._first(search),
            startup_trials=self._count(("startup_trials",), 10),
        )
        self._check_around(space)
        self._check_points(space)
        self._check_first(space)
        return space

    def _algorithm(self) -> Algorithm:
        name = self.document.at(("algorithm",)) or "random"
        if name not in ALGORITHMS:
            hint = closest(str(name), ALGORITHMS)
            raise self.document.error(("algorithm",), f"there is no algorithm {name!r}; {hint}")
        return cast(Algorithm, name)

    def _objectives(self) -> tuple[str, ...]:
        given = self.document.at(("objective",)) or "val/top1"
        names = given if isinstance(given, list) else [given]
        measures = [name for task in SWEEP_MEASURES.values() for name in task]
        for name in names:
            if name not in (*measures, *SWEEP_COSTS):
                raise self.document.error(
                    ("objective",),
                    f"objective is {name!r}, but hyper-parameters are chosen on validation data "
                    f"only; use {', '.join(measures)}; or, after one of them, "
                    f"{' or '.join(SWEEP_COSTS)}",
                )
        if names[0] in SWEEP_COSTS or len(set(names)) < len(names):
            raise self.document.error(
                ("objective",), "give a validation measure first, and each objective once"
            )
        return tuple(names)

    def _trials(self, search: dict[str, Distribution]) -> int | None:
        if self.algorithm in ("random", "tpe"):
            return self._count(("trials",), 1)
        if self.document.at(("trials",)) is not None:
            raise self.document.error(
                ("trials",), f"{self.algorithm} tries every point; leave trials out"
            )
        for name, distribution in search.items():
            if not distribution.listed():
                raise self.document.error(
                    ("search", name),
                    f"{self.algorithm} needs the values of {name} one by one; use grid, choice, "
                    "quniform or qrandint",
                )
        return None

    def _scheduler(self) -> Asha | None:
        where: Where = ("scheduler",)
        given = self.document.at(where)
        if given in (None, "none"):
            return None
        if given == "asha":
            return Asha()
        if not isinstance(given, dict) or list(given) != ["asha"]:
            raise self.document.error(
                where, f"scheduler must be none, asha or `asha: {{...}}`, got {given!r}"
            )
        inner = (*where, "asha")
        self.document.mapping(inner, {"grace_period", "reduction_factor"})
        return Asha(
            self._count((*inner, "grace_period"), 1),
            self._count((*inner, "reduction_factor"), 3, least=2),
        )

    def _seeds(self) -> int:
        seeds = self._count(("seeds",), 1)
        if seeds > 1 and self.algorithm in ("random", "tpe"):
            raise self.document.error(
                ("seeds",),
                f"seeds repeats the points of a grid, and {self.algorithm} draws new ones; leave "
                "it out, and retrain the best with --confirm",
            )
        if seeds > 1 and self._scheduler():
            raise self.document.error(
                ("seeds",),
                "asha would stop some seeds of a point and not others, and what is left would be "
                "the lucky ones; leave scheduler out, or seeds",
            )
        return seeds

    def _count(self, where: Where, default: int, least: int = 1) -> int:
        value = self.document.at(where)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.document.error(
                where, f"{where[-1]} must be a whole number of at least {least}, got {value!r}"
            )
        return value

    def _settings(self, where: Where) -> dict[str, Any]:
        """Settings by name."""
        return {
            name: read_value(self.document, name, value, (*where, name))
            for name, value in self.document.mapping(where).items()
        }

    def _build(self, point: dict[str, Any]) -> None:
        try:
            build_experiment({**self.fixed, **point}, "")
        except ValueError as problem:
            raise ValueError(str(problem).removeprefix(": ")) from problem

    def _check_values(self, around: dict[str, Any], search: dict[str, Distribution]) -> None:
        """What is held must hold together, and a trial must be possible with every value."""
        try:
            check_possible(self._build, {}, around, search)
        except ValueError as problem:
            where = self._to_blame(around, f": {problem}")
            raise self.document.error(where, str(problem)) from problem
        for name, distribution in search.items():
            for value in distribution.examples():
                self._check_point({name: value}, around, search, ("search", name))

    def _check_point(
        self,
        point: dict[str, Any],
        around: dict[str, Any],
        search: dict[str, Distribution],
        where: Where,
    ) -> None:
        try:
            check_possible(self._build, point, around, search)
        except ValueError as problem:
            raise self.document.error(where, str(problem)) from problem

    def _to_blame(self, around: dict[str, Any], message: str) -> Where:
        """The setting that is refused in the same words by itself, or else all of them."""
        for part, values in (("fixed", self.fixed), ("around", around)):
            for name, value in values.items():
                try:
                    build_experiment({name: value}, "")
                except ValueError as problem:
                    if str(problem) == message:
                        return part, name
        return ("around",) if around else ("fixed",)

    def _search(self) -> dict[str, Distribution]:
        given = self.document.mapping(("search",))
        if not given:
            raise self.document.error(("search",), "search is empty; give a distribution or more")
        found = {}
        for name in given:
            where = ("search", name)
            if name in self.fixed:
                raise self.document.error(where, f"{name} is both fixed and searched; keep one")
            drawn = read_distribution(self.document, name, where, self.algorithm)
            when = read_conditions(self.document, name, (*where, "when"), self.algorithm)
            found[name] = replace(drawn, when=when)
        found = parents_first(self.document, found)
        check_conditions(self.document, found, self.fixed, self.algorithm)
        return found

    def _first(self, search: dict[str, Distribution]) -> tuple[dict[str, Any], ...]:
        where: Where = ("points_to_evaluate",)
        given = self.document.at(where)
        if given is None:
            return ()
        grids = any(distribution.is_grid for distribution in search.values())
        if self.algorithm not in ("random", "tpe") or grids:
            raise self.document.error(where, "a grid has its own points; leave this out")
        if not isinstance(given, list):
            raise self.document.error(where, f"give a list of points, got {given!r}")
        return tuple(self._point((*where, number), search) for number in range(len(given)))

    def _check_first(self, space: SearchSpace) -> None:
        """What is listed twice would be tried once."""
        before: list[dict[str, Any]] = []
        for number, point in enumerate(space.points_to_evaluate):
            deciding = space.deciding(point)
            if deciding in before:
                raise self.document.error(
                    ("points_to_evaluate", number),
                    f"this is point {before.index(deciding) + 1} of the list again (a setting "
                    "whose `when` does not hold makes no difference); keep one of them",
                )
            before.append(deciding)

    def _point(self, where: Where, search: dict[str, Distribution]) -> dict[str, Any]:
        point = {}
        for name, value in self.document.mapping(where).items():
            if name not in search:
                hint = closest(name, search)
                raise self.document.error((*where, name), f"{name!r} is not searched; {hint}")
            point[name] = read_value(self.document, name, value, (*where, name))
            if not search[name].contains(point[name]):
                raise self.document.error(
                    (*where, name), f"{name} is {value!r}, which `search` cannot draw"
                )
        self._check_point(point, {}, search, where)
        return point

    def _check_around(self, space: SearchSpace) -> None:
        where: Where = ("around",)
        if space.algorithm != "one-at-a-time":
            if space.around:
                raise self.document.error(
                    where, f"around is for one-at-a-time; {space.algorithm} does not use it"
                )
            return
        for name in space.search:
            if name not in space.around:
                raise self.document.error(
                    ("search", name),
                    f"around must say what {name} is while another setting varies",
                )
        for name in space.around:
            if name not in space.search:
                raise self.document.error(
                    (*where, name), f"{name} is not searched; move it to fixed"
                )

    def _check_points(self, space: SearchSpace) -> None:
        """Every point that is certain must be a valid experiment."""
        for point in space.points():
            shown = ", ".join(f"{name} {value}" for name, value in point.items())
            drawn = {} if space.algorithm in ("grid", "one-at-a-time") else space.search
            try:
                check_possible(self._build, point, {}, drawn)
            except ValueError as problem:
                raise self.document.error(
                    ("search",), f"the point {shown}: {problem}; leave it out with `when`"
                ) from problem
