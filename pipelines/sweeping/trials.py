"""The trials of a sweep, on disk: what the sweep knows, and all that it needs after a kill.

<sweep>/trials/trial-0007.json    written when the trial is drawn, after each epoch, and at its end

The process that drives the sweep alone writes them. A trial is numbered in the order in which it
is drawn, and keeps its number, its settings and its MLflow run whatever is killed.
"""

import itertools
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from stop_core.storage.atomic import write_whole
from stop_core.storage.documents import Number, Whole, build, parse_json, read_text
from stop_core.storage.names import inside

from .space import SWEEP_COSTS, is_minimised

State = Literal["running", "finished", "stopped early", "failed"]


@dataclass
class Trial:
    """One trial, however far it is."""

    number: Whole
    drawn: dict[str, Any]
    """The searched settings; one whose conditions do not hold is left out."""
    seed: Whole
    state: State = "running"
    curve: list[dict[str, Number]] = field(default_factory=list)
    """What was measured after each epoch."""
    measures: dict[str, Number] = field(default_factory=dict)
    """Of the chosen epoch, once the training is finished."""
    reason: str = ""
    """Of a failure."""
    run: str = ""
    """Name of the training, whose folder is <output>/runs/<run>."""

    @property
    def name(self) -> str:
        """What it is called everywhere."""
        return f"trial-{self.number:04d}"

    @property
    def epochs(self) -> int:
        """Epochs that it has trained."""
        return int(self.curve[-1]["epoch"]) if self.curve else 0

    @property
    def noted(self) -> int:
        """Epochs that are noted from the first without a gap; those after it are to be told."""
        known = {row["epoch"] for row in self.curve}
        return next(count for count in itertools.count() if count + 1 not in known)

    def value(self, objective: str) -> float | None:
        """What it reached: at the chosen epoch, or for a trial without one at its best so far."""
        if objective in self.measures:
            return self.measures[objective]
        found = [row[objective] for row in self.curve if objective in row]
        if not found:
            return None
        if objective in SWEEP_COSTS:  # of a step: the machine may have been busy for a while
            return statistics.median(found)
        return min(found) if is_minimised(objective) else max(found)

    def add_epoch(self, row: Mapping[str, float]) -> None:
        """Notes an epoch; one that is told of again after a kill changes nothing.

        A kill may also have lost one, which is then told of after later ones.
        """
        if row["epoch"] not in [one["epoch"] for one in self.curve]:
            self.curve.append(dict(row))
            self.curve.sort(key=lambda one: one["epoch"])


@dataclass(frozen=True)
class TriedSettings:
    """Settings that were tried, with a training for every seed that the space asks for."""

    trials: tuple[Trial, ...]
    """By seed."""

    @property
    def first(self) -> Trial:
        """The training of the first seed: it stands for the others where there can be only one."""
        return self.trials[0]

    @property
    def name(self) -> str:
        """What it is called everywhere: as its first training."""
        return self.first.name

    @property
    def drawn(self) -> dict[str, Any]:
        """The searched settings."""
        return self.first.drawn

    def value(self, objective: str) -> float | None:
        """The mean over the seeds: the best of them would be the luckiest, not the settings'."""
        values = [one.value(objective) for one in self.trials]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None


class Trials:
    """All trials of a sweep, those of earlier runs of the same command among them.

    Args:
        folder: of the sweep.
        seeds: trainings of every point.
    """

    def __init__(self, folder: Path, seeds: int = 1) -> None:
        self.seeds = seeds
        self.folder = inside(folder, "trials")
        self.folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self.folder.glob("trial-*.json"))
        self.all = [build(Trial, parse_json(read_text(path)), path) for path in files]

    def add(self, drawn: dict[str, Any], seed: int, run: str = "") -> Trial:
        """Takes down a new trial, before it starts."""
        trial = Trial(len(self.all), drawn, seed, run=run)
        self.all.append(trial)
        self.save(trial)
        return trial

    def save(self, trial: Trial) -> None:
        """Writes what is known of one."""
        write_whole(self.folder / f"{trial.name}.json", json.dumps(asdict(trial), indent=1))

    def unfinished(self) -> list[Trial]:
        """Those that have begun and not ended."""
        return [trial for trial in self.all if trial.state == "running"]

    def ended(self) -> list[Trial]:
        """Those that have ended, in whatever way."""
        return [trial for trial in self.all if trial.state != "running"]

    def points(self) -> list[TriedSettings]:
        """The points that have finished with all their seeds, in the order of the draws."""
        alike: dict[str, list[Trial]] = {}
        for trial in self.all:
            if trial.state == "finished":
                key = json.dumps(trial.drawn, sort_keys=True) if self.seeds > 1 else trial.name
                alike.setdefault(key, []).append(trial)
        return [
            TriedSettings(tuple(sorted(some, key=lambda one: one.seed)))
            for some in alike.values()
            if len(some) == self.seeds
        ]

    def ranked(self, objective: str) -> list[TriedSettings]:
        """The finished points, best first; of equals, the one that was drawn first."""
        found = [(value, p) for p in self.points() if (value := p.value(objective)) is not None]
        sign = 1 if is_minimised(objective) else -1
        found.sort(key=lambda one: (sign * one[0], one[1].first.number))
        return [point for _, point in found]

    def front(self, objectives: tuple[str, ...]) -> list[TriedSettings]:
        """The finished points that no other beats in every objective: the Pareto front."""
        ranked = self.ranked(objectives[0])
        return [one for one in ranked if not any(_dominates(o, one, objectives) for o in ranked)]


def _dominates(better: TriedSettings, worse: TriedSettings, objectives: tuple[str, ...]) -> bool:
    """Whether one is nowhere worse than the other, and somewhere better."""
    gains = []
    for objective in objectives:
        first, second = better.value(objective), worse.value(objective)
        if first is None or second is None:
            return False
        gains.append((second - first) if is_minimised(objective) else (first - second))
    return min(gains) >= 0 and max(gains) > 0
