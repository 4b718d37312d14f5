"""Draws the settings of the next trial with Optuna, from nothing but the trials that there are.

Optuna's study is built anew for every draw, and its random numbers follow from the seed and the
trial's number. So a sweep that was killed draws what it would have drawn.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from ..cli.experiment_fields import build_experiment
from .space import Distribution, SearchSpace, is_minimised
from .trials import Trial

_ATTEMPTS = 100
_ATTEMPTS_OF_TPE = 10  # it may keep to one corner, where all has been tried
_STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped early": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def planned(space: SearchSpace, trials: int | None, seed: int) -> list[tuple[dict[str, Any], int]]:
    """A point and a seed for every trial; what a point leaves open is drawn.

    Args:
        space: of the sweep.
        trials: draws (of every point of a grid); None for as many as the space says.
        seed: of the first training of every point.
    """
    draws, points = trials or space.trials or 1, space.points()
    if space.algorithm in ("grid", "one-at-a-time"):
        return [(point, seed + more) for point in points for more in range(space.seeds)]
    if space.points_to_evaluate:
        free: list[dict[str, Any]] = [{}] * max(0, draws - len(space.points_to_evaluate))
        return [(point, seed) for point in [*space.points_to_evaluate, *free][:draws]]
    return [(point, seed) for _ in range(draws) for point in points]


def sample_settings(
    space: SearchSpace, point: dict[str, Any], seed: int, trials: Sequence[Trial]
) -> dict[str, Any] | None:
    """The searched settings of the next trial; None if nothing new can be found.

    Settings that were tried with this seed are drawn again, and so are those that do not go
    together. A point to evaluate that chance has drawn before it gives way to a free draw.

    Args:
        space: of the sweep.
        point: what is certain of them.
        seed: of the trial.
        trials: all that were drawn before.
    """
    tried = [trial.drawn for trial in trials if trial.seed == seed]
    for attempt in range(_ATTEMPTS):
        drawn = _ask(space, point, _sampler(space, seed, len(trials), attempt), trials)
        if drawn not in tried and _is_valid(space, drawn):
            return drawn
        if not any(name not in point and space.active(name, drawn) for name in space.search):
            break  # nothing is drawn by chance
    return sample_settings(space, {}, seed, trials) if point and space.points_to_evaluate else None


def study_of(
    space: SearchSpace,
    trials: Sequence[Trial],
    sampler: BaseSampler | None = None,
    objectives: tuple[str, ...] = (),
) -> optuna.Study:
    """Optuna's view of the trials: for drawing, importances and anything else it offers.

    Args:
        space: of the sweep.
        trials: to take in.
        sampler: of the study.
        objectives: those of the space, or fewer of them.
    """
    objectives = objectives or space.objectives
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(
        directions=["minimize" if is_minimised(o) else "maximize" for o in objectives],
        sampler=sampler,
    )
    for trial in trials:
        study.add_trial(_frozen(space, trial, objectives))
    return study


def _ask(
    space: SearchSpace, point: dict[str, Any], sampler: BaseSampler, trials: Sequence[Trial]
) -> dict[str, Any]:
    study = study_of(space, trials, sampler)
    study.enqueue_trial(point)
    asked = study.ask()
    drawn: dict[str, Any] = {}
    for name, distribution in space.search.items():
        if space.active(name, drawn):
            drawn[name] = point[name] if name in point else _suggest(asked, name, distribution)
    return drawn


def _suggest(asked: optuna.Trial, name: str, distribution: Distribution) -> Any:
    if distribution.values:
        return asked.suggest_categorical(name, distribution.values)
    suggest: Callable[..., Any] = (
        asked.suggest_int if distribution.is_whole else asked.suggest_float
    )
    step = distribution.step or (1 if distribution.is_whole else None)
    return suggest(name, distribution.low, distribution.high, step=step, log=distribution.log)


def _sampler(space: SearchSpace, seed: int, number: int, attempt: int) -> BaseSampler:
    """Every trial has random numbers of its own, whichever was drawn before in this process."""
    digest = hashlib.sha256(f"{seed} {number} {attempt}".encode()).digest()
    own = int.from_bytes(digest[:4], "big")
    if space.algorithm != "tpe" or attempt >= _ATTEMPTS_OF_TPE:
        return RandomSampler(seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Grouped, for settings that are drawn under conditions; trials that run count as bad ones,
        # so that those beside each other do not draw alike.
        return TPESampler(
            seed=own,
            n_startup_trials=space.startup_trials,
            multivariate=True,
            group=True,
            constant_liar=True,
        )


def _frozen(
    space: SearchSpace, trial: Trial, objectives: tuple[str, ...]
) -> optuna.trial.FrozenTrial:
    several = len(objectives) > 1
    values = [trial.value(objective) for objective in objectives]
    state, curve = _STATES[trial.state], {}
    if any(value is None for value in values) and state != TrialState.RUNNING:
        state = TrialState.FAIL
    if several and state == TrialState.PRUNED:  # Optuna prunes with one objective alone
        state = TrialState.COMPLETE
    if not several:
        curve = {int(row["epoch"]): row[objectives[0]] for row in trial.curve}
    return optuna.trial.create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=trial.drawn,
        distributions={name: _for_optuna(space.search[name]) for name in trial.drawn},
        intermediate_values=curve,
    )


def _for_optuna(distribution: Distribution) -> BaseDistribution:
    if distribution.values:
        return CategoricalDistribution(distribution.values)
    low, high, step, log = (
        distribution.low,
        distribution.high,
        distribution.step,
        distribution.log,
    )
    if distribution.is_whole:
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def _is_valid(space: SearchSpace, drawn: dict[str, Any]) -> bool:
    try:
        build_experiment(space.complete(drawn), "")
    except ValueError:
        return False
    return True
