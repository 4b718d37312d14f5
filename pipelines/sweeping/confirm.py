"""Retrains the best settings of a sweep on seeds that the search has not used, and tests them.

It is the only part of a sweep that reads the test split, after the settings are chosen.
"""

from dataclasses import replace

import pandas as pd

from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import csv_text

from ..cli.console import print_result, say
from ..cli.errors import RunError
from ..cluster.session import start_ray
from ..training.pool import Job, run_all
from ..training.result import TrainingResult
from ..training.run import TrainingRun
from .results import SweepResult, experiment_of
from .search import Search

CONFIRMATION = "confirmation.csv"


def confirm(search: Search, result: SweepResult, seeds: int, parent: str) -> pd.DataFrame | None:
    """Returns a row per seed: the confirmed trial, its validation and its test metrics.

    For no seeds, returns the last confirmation in the folder of the sweep; None if there is none.

    Args:
        search: the sweep.
        result: its result.
        seeds: number of seeds.
        parent: MLflow run id of the sweep.

    Raises:
        RunError: if a retraining fails; the message gives the reason.
    """
    file = search.folder / CONFIRMATION
    if not seeds:
        frame = pd.read_csv(file) if file.is_file() else pd.DataFrame()
        return frame if "trial" in frame else None
    best = experiment_of(search, result.best.first)
    first = search.seed + search.space.seeds
    jobs = [
        Job(
            TrainingRun(replace(best, seed=seed), search.cache, search.output),
            f"best of {search.title}, seed {seed}",
        )
        for seed in range(first, first + seeds)
    ]
    if any(job.training.remembered() is None for job in jobs):
        start_ray()
    say(f"retraining {result.best.name} on {seeds} other seeds, then testing it")
    outcomes = run_all(jobs, search.resources, parent)
    if failures := [one for one in outcomes if isinstance(one, str)]:
        raise RunError(
            f"{len(failures)} of {seeds} retrainings failed: {failures[0]}; run the same command "
            "to try them again"
        )
    frame = pd.DataFrame(
        [
            {"trial": result.best.name, "seed": one.seed, **one.metrics}
            for one in outcomes
            if isinstance(one, TrainingResult)
        ]
    )
    write_whole(file, csv_text(frame))
    for name in map(str, frame):
        if "/" in name:
            mean, spread = frame[name].mean(), frame[name].std(ddof=1)
            print_result(f"  {name:<18} {mean:.4f}" + (f" ± {spread:.4f}" if seeds > 1 else ""))
    return frame
