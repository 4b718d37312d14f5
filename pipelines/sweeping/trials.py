"""The trials of a sweep, on disk: the state of the sweep, from which it resumes.

<sweep>/trials/trial-0007.json    written when the trial is drawn, after each epoch, and at its end

Only the driver of the sweep writes them. A trial is numbered in the order of the draws; its number,
its settings and its MLflow run survive any interruption.
"""

import itertools
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import Number, Whole, build, parse_json, read_text
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath, matches

from .space import SWEEP_COSTS, is_minimised

State = Literal["running", "finished", "stopped early", "failed"]
ENDS: tuple[State, ...] = ("finished", "stopped early", "failed")
"""States in which a trial has ended."""


@dataclass
class Trial:
    """One trial, in any state."""

    number: Whole
    drawn: dict[str, Any]
    """The searched settings, without those whose conditions do not hold."""
    seed: Whole
    state: State = "running"
    curve: list[dict[str, Number]] = field(default_factory=list)
    """Metrics after each epoch."""
    measures: dict[str, Number] = field(default_factory=dict)
    """Metrics of the chosen epoch, once the training has finished."""
    reason: str = ""
    run: str = ""
    """Name of the training, whose folder is <output>/runs/<run>."""

    @property
    def name(self) -> str:
        """Name of the trial in tables, files and MLflow."""
        return f"trial-{self.number:04d}"

    @property
    def epochs(self) -> int:
        """Number of trained epochs."""
        return int(self.curve[-1]["epoch"]) if self.curve else 0

    @property
    def noted(self) -> int:
        """Number of epochs recorded without a gap; later ones must be reported again."""
        known = {row["epoch"] for row in self.curve}
        return next(count for count in itertools.count() if count + 1 not in known)

    def value(self, objective: str) -> float | None:
        """Returns the value at the chosen epoch, or else the best so far; None if not measured."""
        if objective in self.measures:
            return self.measures[objective]
        values = [row[objective] for row in self.curve if objective in row]
        if not values:
            return None
        if objective in SWEEP_COSTS:  # the machine can be busy during a few steps
            return statistics.median(values)
        return min(values) if is_minimised(objective) else max(values)

    def add_epoch(self, row: Mapping[str, float]) -> None:
        """Records an epoch, unless it is recorded already.

        After an interruption, an epoch can be reported twice, or after later ones.
        """
        if row["epoch"] not in [one["epoch"] for one in self.curve]:
            self.curve.append(dict(row))
            self.curve.sort(key=lambda one: one["epoch"])


@dataclass(frozen=True)
class TriedSettings:
    """Settings that were tried, with one trial per seed of the space."""

    trials: tuple[Trial, ...]
    """Ordered by seed."""

    @property
    def first(self) -> Trial:
        """The trial of the first seed, which represents the others where only one can be shown."""
        return self.trials[0]

    @property
    def name(self) -> str:
        """Name of the first trial."""
        return self.first.name

    @property
    def drawn(self) -> dict[str, Any]:
        """The searched settings."""
        return self.first.drawn

    def value(self, objective: str) -> float | None:
        """Returns the mean over the seeds; None if a trial has not measured the objective."""
        values = [one.value(objective) for one in self.trials]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None


class Trials:
    """All trials of a sweep in its folder, including those of earlier runs of the same command.

    Every point has as many trainings as there are `seeds`.
    """

    def __init__(self, folder: StoragePath, seeds: int = 1) -> None:
        self.seeds = seeds
        self.folder = inside(folder, "trials")
        self.folder.mkdir(parents=True, exist_ok=True)
        files = matches(self.folder, "trial-*.json")
        self.all = [build(Trial, parse_json(read_text(path)), path) for path in files]

    def add(self, drawn: dict[str, Any], seed: int, run: str = "") -> Trial:
        """Records a new trial, before it starts."""
        trial = Trial(len(self.all), drawn, seed, run=run)
        self.all.append(trial)
        self.save(trial)
        return trial

    def save(self, trial: Trial) -> None:
        """Writes the state of a trial to disk."""
        write_whole(self.folder / f"{trial.name}.json", json.dumps(asdict(trial), indent=1))

    def in_state(self, *states: State) -> list[Trial]:
        """Returns the trials in any of the states."""
        return [trial for trial in self.all if trial.state in states]

    def measured(self, objective: str) -> list[Trial]:
        """Returns the trials that have measured the objective, in any state."""
        return [trial for trial in self.all if trial.value(objective) is not None]

    def points(self) -> list[TriedSettings]:
        """Returns the settings that have finished with all their seeds, in order of the draws."""
        alike: dict[str, list[Trial]] = {}
        for trial in self.in_state("finished"):
            key = json.dumps(trial.drawn, sort_keys=True) if self.seeds > 1 else trial.name
            alike.setdefault(key, []).append(trial)
        return [
            TriedSettings(tuple(sorted(some, key=lambda one: one.seed)))
            for some in alike.values()
            if len(some) == self.seeds
        ]

    def ranked(self, objective: str) -> list[TriedSettings]:
        """Returns the finished settings, best first; of equals, the one that was drawn first."""
        scored = [(value, p) for p in self.points() if (value := p.value(objective)) is not None]
        sign = 1 if is_minimised(objective) else -1
        scored.sort(key=lambda one: (sign * one[0], one[1].first.number))
        return [point for _, point in scored]

    def front(self, objectives: tuple[str, ...]) -> list[TriedSettings]:
        """Returns the Pareto front: the finished settings that no others dominate.

        Settings dominate others if they are worse in no objective, and better in at least one.
        """
        ranked = self.ranked(objectives[0])
        signs = [1 if is_minimised(objective) else -1 for objective in objectives]
        # A missing measurement is NaN, which is neither worse nor better.
        values = [[one.value(o) for o in objectives] for one in ranked]
        losses_PO = np.array(values, dtype=float).reshape(-1, len(objectives)) * signs
        worse_PPO = losses_PO[:, None] - losses_PO
        dominated_P = ((worse_PPO >= 0).all(-1) & (worse_PPO > 0).any(-1)).any(-1)
        return [ranked[number] for number in np.flatnonzero(~dominated_P)]
