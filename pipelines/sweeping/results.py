"""The results of a sweep: the table of its trials, its best settings, and their confirmation."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import yaml

from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import csv_text
from stop_core.storage.paths import StoragePath, local_file

from ..cli.console import RunError, console, print_result, say
from ..cluster.session import start_ray
from ..tracking.queued_run import QueuedRun
from ..training.pool import Job, run_all
from ..training.result import TrainingResult
from ..training.run import TrainingRun
from .search import Search
from .space import SWEEP_COSTS, is_minimised, short
from .trials import Trial, Trials, TriedSettings

TRIALS = "trials.csv"
BEST = "best.yaml"
PARETO = "pareto"
CONFIRMATION = "confirmation.csv"


@dataclass(frozen=True)
class SweepResult:
    """The result of a search."""

    trials: pd.DataFrame
    """A row per trial: finished settings, best first, then the trials that did not finish."""
    best: TriedSettings
    best_file: StoragePath
    """For `stop train --config`."""
    front: list[TriedSettings]
    """The Pareto front of several objectives; empty for one objective."""


def write_results(search: Search, trials: Trials) -> SweepResult:
    """Writes the table of the trials, the best settings, and those of the Pareto front."""
    objectives = search.space.objectives
    ranked = trials.ranked(objectives[0])
    compared = [trial for point in ranked for trial in point.trials]
    others = [trial for trial in trials.all if trial not in compared]
    sign = 1 if is_minimised(objectives[0]) else -1
    others.sort(key=lambda one: (one.state, sign * (one.value(objectives[0]) or 0.0), one.number))
    # As objects: a column of numbers would turn None and whole numbers into floats.
    frame = pd.DataFrame([_row(search, trial) for trial in [*compared, *others]], dtype=object)
    write_whole(search.folder / TRIALS, csv_text(frame))
    write_whole(search.folder / BEST, _as_yaml(search, ranked[0].first))
    front = trials.front(objectives) if len(objectives) > 1 else []
    folder, names = search.folder / PARETO, {f"{point.name}.yaml" for point in front}
    if front:
        folder.mkdir(exist_ok=True)
    for point in front:
        write_whole(folder / f"{point.name}.yaml", _as_yaml(search, point.first))
    for path in folder.glob("trial-*.yaml"):  # a dominated point
        if re.fullmatch(r"trial-\d{4,}\.yaml", path.name) and path.name not in names:
            path.unlink()
    return SweepResult(frame, ranked[0], search.folder / BEST, front)


def print_trials(search: Search, result: SweepResult) -> None:
    """Prints the table of the trials, best first."""
    frame, seeds = result.trials, search.space.seeds
    names = ["trial", "state", *search.space.objectives, *search.space.search, "epochs", "failure"]
    if seeds > 1:
        names.insert(1, "seed")
    if not (frame["failure"] != "").any():
        names.remove("failure")
    order = f"by the mean of {seeds} seeds, " if seeds > 1 else ""
    rows = (
        ["" if row[name] != row[name] else short(row[name]) for name in names]
        for row in frame.to_dict("records")
    )
    title = f"trials, {order}best first (validation data)"
    print_table(title, names, rows, settings=list(search.space.search))


def print_table(
    title: str, names: Sequence[str], rows: Iterable[Sequence[str]], settings: Sequence[str]
) -> None:
    """Prints a table; if it is too wide, the columns of the settings are printed as one."""
    from rich.table import Table

    terminal, records = console(160), [dict(zip(names, row, strict=True)) for row in rows]
    width = sum(max(len(name), *(len(one[name]) for one in records)) + 3 for name in names) + 1
    if width > terminal.width:
        for one in records:
            one["settings"] = ", ".join(f"{name}={one[name]}" for name in settings if one[name])
        names = [*(name for name in names if name not in settings), "settings"]
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name == "settings" else "right", overflow="fold")
    for one in records:
        table.add_row(*(one[name] for name in names))
    terminal.print(table)


def _row(search: Search, trial: Trial) -> dict[str, Any]:
    settings = search.space.experiment(trial.drawn, trial.seed, trial.name).parameters()
    # A setting whose conditions do not hold was not searched in this trial.
    drawn = {name: settings[name] if name in trial.drawn else "-" for name in search.space.search}
    measured = {**(trial.curve[-1] if trial.curve else {}), **trial.measures}
    objectives = (*search.space.objectives, *SWEEP_COSTS)
    folder = search.output / "runs" / trial.run
    return {
        "trial": trial.name,
        "state": trial.state,
        **{name: measured[name] for name in sorted(measured) if name.startswith("val/")},
        **{name: trial.value(name) for name in objectives},
        **drawn,
        "seed": trial.seed,
        "epochs": trial.epochs,
        "failure": trial.reason,
        "mlflow_run_id": QueuedRun(folder, "").run_id if trial.run else "",
    }


def _as_yaml(search: Search, trial: Trial) -> str:
    experiment = search.space.experiment(trial.drawn, trial.seed, trial.name)
    return yaml.safe_dump({"cache": str(search.cache), **experiment.parameters()}, sort_keys=False)


def confirm(search: Search, result: SweepResult, seeds: int, parent: str) -> pd.DataFrame | None:
    """Retrains the best settings on seeds that the search has not used, and tests them.

    It is the only part of a sweep that reads the test split, after the settings are chosen. Returns
    a row per seed: the confirmed trial, its validation and its test metrics. For no seeds, returns
    the last confirmation in the folder of the sweep; None if there is none. `parent` is the MLflow
    run id of the sweep.
    """
    file = search.folder / CONFIRMATION
    if not seeds:
        if not file.is_file():
            return None
        with local_file(file) as here:
            frame = pd.read_csv(here)
        return frame if "trial" in frame else None
    best = search.space.experiment(result.best.drawn)
    first = search.seed + search.space.seeds
    jobs = []
    for seed in range(first, first + seeds):
        training = TrainingRun(replace(best, seed=seed), search.cache, search.output)
        jobs.append(Job(training, f"best of {search.title}, seed {seed}"))
    if any(job.training.remembered() is None for job in jobs):
        start_ray(search.output, search.cache, records=True)
    say(f"retraining {result.best.name} on {seeds} other seeds, then testing it")
    outcomes = run_all(jobs, search.resources, parent)
    if failures := [one for one in outcomes if isinstance(one, str)]:
        raise RunError(
            f"{len(failures)} of {seeds} retrainings failed: {failures[0]}; run the same command "
            "to try them again"
        )
    results = [one for one in outcomes if isinstance(one, TrainingResult)]
    rows = [{"trial": result.best.name, "seed": one.seed, **one.metrics} for one in results]
    frame = pd.DataFrame(rows)
    write_whole(file, csv_text(frame))
    for name in map(str, frame):
        if "/" in name:
            mean, spread = frame[name].mean(), frame[name].std(ddof=1)
            print_result(f"  {name:<18} {mean:.4f}" + (f" ± {spread:.4f}" if seeds > 1 else ""))
    return frame
