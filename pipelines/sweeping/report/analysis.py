"""Importances and sensitivities of the settings, computed from the trials of a sweep."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd

from stop_core.evaluation.statistics import interval, resampled_scores
from stop_core.evaluation.stored_predictions import read_scores

from ...training.task import PREDICTIONS
from ..sample_settings import study_of
from ..search import Search
from ..space import SWEEP_COSTS
from ..trials import Trial, Trials

FEW_PER_SETTING = 10
"""Trials per setting, below which an importance is only a hint."""
_RESAMPLES = 40
_BOOTSTRAPS = 2000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Importances:
    """fANOVA: the share of each setting by itself in the variance that a forest predicts."""

    table: pd.DataFrame
    """Columns setting, importance, low, high; the largest importance first."""
    rest: float
    """The share that no single setting explains: interactions, or noise."""
    trials: int
    after_epoch: int | None
    """The epoch after which the trials are compared; None: at their ends."""
    left_out: tuple[str, ...]
    """Settings that some trials do not have, for which fANOVA is not defined."""

    @property
    def few(self) -> bool:
        """Whether there are too few trials for reliable importances."""
        return self.trials < FEW_PER_SETTING * len(self.table)


def importances(search: Search, trials: Trials) -> Importances | None:
    """Returns the importance of each searched setting; None if there are too few or equal trials.

    With ASHA, trials train for different numbers of epochs, so all of them are compared after the
    grace period. The interval is the 95% bootstrap over trials.
    """
    space = search.space
    epoch = space.grace_period
    found = [(one, value) for one in trials.all if (value := _at(search, one, epoch)) is not None]
    names = [n for n in space.search if all(n in one.drawn for one, _ in found)]
    left_out = tuple(name for name in space.search if name not in names)
    values = np.array([value for _, value in found])
    varied = [n for n in names if len({str(one.drawn[n]) for one, _ in found}) > 1]
    if len(found) < 4 or not varied or np.ptp(values) == 0:
        return None
    whole = _fanova(search, found, varied)
    dice = np.random.default_rng(search.seed)
    samples = (dice.integers(len(found), size=len(found)) for _ in range(_RESAMPLES))
    shares = (_fanova(search, [found[i] for i in sample], varied) for sample in samples)
    resampled = [one for one in shares if one]
    if not whole or not resampled:
        return None
    low, high = np.percentile([[one[n] for n in varied] for one in resampled], _INTERVAL, axis=0)
    table = pd.DataFrame(
        {"setting": varied, "importance": [whole[n] for n in varied], "low": low, "high": high}
    )
    table = table.sort_values("importance", ascending=False, ignore_index=True)
    rest = max(0.0, 1.0 - float(table["importance"].sum()))
    return Importances(table, rest, len(found), epoch, left_out)


def _at(search: Search, trial: Trial, epoch: int | None) -> float | None:
    """Returns the objective of a trial after an epoch; None: at the end of a finished trial."""
    objective = search.space.objectives[0]
    if epoch is None:
        return trial.value(objective) if trial.state == "finished" else None
    return next((row.get(objective) for row in trial.curve if row["epoch"] == epoch), None)


def _fanova(
    search: Search, found: Sequence[tuple[Trial, float]], names: list[str]
) -> dict[str, float] | None:
    """Returns the share of every setting; None if no tree finds a difference."""
    # Imported late, as it takes two seconds.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    objective = search.space.objectives[0]
    finished = [
        Trial(number, {n: one.drawn[n] for n in names}, 0, "finished", [], {objective: value})
        for number, (one, value) in enumerate(found)
    ]
    study = study_of(search.space, finished, objectives=(objective,))
    with warnings.catch_warnings():
        # `normalize=False` is experimental; normalized shares would add up to one.
        warnings.filterwarnings("ignore", ".*`normalize`", optuna.exceptions.ExperimentalWarning)
        try:
            shares = get_param_importances(
                study,
                evaluator=FanovaImportanceEvaluator(n_trees=32, seed=0),
                params=names,
                normalize=False,
            )
        except RuntimeError as problem:
            if "zero total variance" not in str(problem):
                raise
            return None
    return {name: float(shares[name]) for name in names}


def sensitivity(search: Search, trials: Trials) -> dict[str, pd.DataFrame]:
    """Returns a table for every setting that was varied while the others were held.

    Columns value, mean, low, high, seeds, values; `low` and `high` bound the 95% interval:
    Student's over the seeds, or for a single seed the bootstrap over the validation videos; nan if
    the objective is a cost or a median.
    """
    around, found = search.space.around, {}
    for name, distribution in search.space.search.items():
        rows = []
        for value in distribution.listed():
            point = {**around, name: value}
            alike = [one for one in trials.all if one.state == "finished" and one.drawn == point]
            if alike:
                rows.append({"value": value, **_summary(search, alike)})
        found[name] = pd.DataFrame(rows)
        if rows:  # as objects: among numbers, None would become nan
            found[name]["value"] = pd.Series([row["value"] for row in rows], dtype=object)
    return found


def _summary(search: Search, alike: list[Trial]) -> dict[str, Any]:
    objective = search.space.objectives[0]
    values = np.array([one.value(objective) for one in alike], dtype=float)
    mean, count = float(values.mean()), len(values)
    if count > 1:
        from scipy.special import stdtrit  # Student's quantile

        half = float(stdtrit(count - 1, 0.975) * values.std(ddof=1) / count**0.5)
        low, high = mean - half, mean + half
    elif objective in SWEEP_COSTS or objective.endswith("median_rank"):
        low = high = float("nan")
    else:
        file = search.output / "runs" / alike[0].run / PREDICTIONS
        outcomes = read_scores([file], [objective])[objective]
        low, high = interval(resampled_scores([outcomes], _BOOTSTRAPS)[0])
    return {"mean": mean, "low": low, "high": high, "seeds": count, "values": values.tolist()}
