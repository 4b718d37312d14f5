"""What a sweep leaves for a person and for `train.py`: its table and its best settings."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.table import Table

from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import csv_text

from ..cli.console import console
from ..cli.experiment_fields import build_experiment
from ..tracking.queued_run import QueuedRun
from .search import Search
from .space import SWEEP_COSTS, is_minimised
from .trials import Trial, Trials, TriedSettings
from .wording import short

TRIALS = "trials.csv"
BEST = "best.yaml"
PARETO = "pareto"


@dataclass(frozen=True)
class SweepResult:
    """What a search found."""

    trials: pd.DataFrame
    """A row a trial: those of the best point first, then those of points that did not finish."""
    best: TriedSettings
    best_file: Path
    """For `train.py --config`."""
    front: list[TriedSettings]
    """Of several objectives: the points that no other beats in all of them."""


def write_results(search: Search, trials: Trials) -> SweepResult:
    """Writes the table of the trials and the best settings."""
    objectives = search.space.objectives
    frame = table(search, trials)
    write_whole(search.folder / TRIALS, csv_text(frame))
    best = trials.ranked(objectives[0])[0]
    write_whole(search.folder / BEST, _as_yaml(search, best.first))
    front = trials.front(objectives) if len(objectives) > 1 else []
    _write_front(search, front)
    return SweepResult(frame, best, search.folder / BEST, front)


def _write_front(search: Search, front: list[TriedSettings]) -> None:
    """Leaves a file for each point of the front, and none of a point that has been beaten since."""
    folder = search.folder / PARETO
    if front:
        folder.mkdir(exist_ok=True)
    for point in front:
        write_whole(folder / f"{point.name}.yaml", _as_yaml(search, point.first))
    names = {f"{point.name}.yaml" for point in front}
    for path in folder.glob("trial-*.yaml"):
        if re.fullmatch(r"trial-\d{4,}\.yaml", path.name) and path.name not in names:
            path.unlink()


def table(search: Search, trials: Trials) -> pd.DataFrame:
    """A row a trial: its settings, what it reached, or why it failed."""
    objective = search.space.objectives[0]
    ranked = [trial for point in trials.ranked(objective) for trial in point.trials]
    others = [trial for trial in trials.all if trial not in ranked]
    sign = 1 if is_minimised(objective) else -1
    others.sort(key=lambda one: (one.state, sign * (one.value(objective) or 0.0), one.number))
    # As objects: a column of numbers would turn None and whole numbers into floats.
    return pd.DataFrame([_row(search, trial) for trial in [*ranked, *others]], dtype=object)


def experiment_of(search: Search, trial: Trial) -> ExperimentConfig:
    """The whole experiment of a trial."""
    settings = {**search.space.complete(trial.drawn), "seed": trial.seed}
    return build_experiment(settings, trial.name)


def print_trials(search: Search, result: SweepResult) -> None:
    """Prints the table, best first."""
    frame = result.trials
    seeds = search.space.seeds
    names = ["trial", "state", *search.space.objectives, *search.space.search, "epochs", "failure"]
    if seeds > 1:
        names.insert(1, "seed")
    if not (frame["failure"] != "").any():
        names.remove("failure")
    order = f"by the mean of {seeds} seeds, " if seeds > 1 else ""
    shown = Table(title=f"trials, {order}best first (validation data)", title_justify="left")
    for name in names:
        shown.add_column(name, justify="right", overflow="fold")
    for row in frame.to_dict("records"):
        shown.add_row(*("" if row[name] != row[name] else short(row[name]) for name in names))
    console(160).print(shown)


def _row(search: Search, trial: Trial) -> dict[str, Any]:
    settings = experiment_of(search, trial).parameters()
    # A setting whose conditions do not hold was not searched in this trial.
    drawn = {name: settings[name] if name in trial.drawn else "-" for name in search.space.search}
    measured = {**(trial.curve[-1] if trial.curve else {}), **trial.measures}
    values = {name: measured[name] for name in sorted(measured) if name.startswith("val/")}
    values |= {o: trial.value(o) for o in (*search.space.objectives, *SWEEP_COSTS)}
    folder = search.output / "runs" / trial.run
    return {
        "trial": trial.name,
        "state": trial.state,
        **values,
        **drawn,
        "seed": trial.seed,
        "epochs": trial.epochs,
        "failure": trial.reason,
        "mlflow_run_id": QueuedRun(folder, "").run_id if trial.run else "",
    }


def _as_yaml(search: Search, trial: Trial) -> str:
    settings = {"cache": str(search.cache), **experiment_of(search, trial).parameters()}
    return yaml.safe_dump(settings, sort_keys=False)
