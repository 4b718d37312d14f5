"""Samples the settings of the next trial with Optuna, from the recorded trials only.

Every draw builds a new Optuna study, and its random numbers follow from the seed and the number of
the trial. So a sweep that was interrupted draws the same settings as one that was not.
"""

import hashlib
import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from .space import Distribution, SearchSpace, is_minimised
from .trials import Trial

_ATTEMPTS = 100
_ATTEMPTS_OF_TPE = 10  # it can stay in one corner, where every setting was tried
_STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped early": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def planned(space: SearchSpace, trials: int | None, seed: int) -> list[tuple[dict[str, Any], int]]:
    """Returns a point and a seed for every trial; settings that a point leaves open are drawn.

    `trials` is the number of draws (of every point of a grid), by default that of the space; `seed`
    is that of the first training of every point.
    """
    draws, points = trials or space.trials or 1, space.points()
    if space.is_listed:
        return [(point, seed + more) for point in points for more in range(space.seeds)]
    if space.points_to_evaluate:
        free: list[dict[str, Any]] = [{}] * max(0, draws - len(space.points_to_evaluate))
        return [(point, seed) for point in [*space.points_to_evaluate, *free][:draws]]
    return [(point, seed) for _ in range(draws) for point in points]


def sample_settings(
    space: SearchSpace, point: dict[str, Any], seed: int, trials: Sequence[Trial]
) -> dict[str, Any] | None:
    """Returns the searched settings of the next trial; None if there are no new ones.

    The settings of `point` are not drawn; `trials` are all those that were drawn before. Settings
    that were tried with this seed are drawn again, and so are settings that do not fit each other.
    A point to evaluate that was drawn before by chance is replaced by a free draw.
    """
    tried = [trial.drawn for trial in trials if trial.seed == seed]
    for attempt in range(_ATTEMPTS):
        study = study_of(space, trials, _sampler(space, seed, len(trials), attempt))
        study.enqueue_trial(point)
        asked = study.ask()
        drawn: dict[str, Any] = {}
        for name, distribution in space.search.items():
            if space.active(name, drawn):
                drawn[name] = point[name] if name in point else _suggest(asked, name, distribution)
        if drawn not in tried:
            with suppress(ValueError):
                space.experiment(drawn)
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
    """Returns the trials as a study of Optuna, by default with all objectives of the space."""
    objectives = objectives or space.objectives
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(
        directions=["minimize" if is_minimised(o) else "maximize" for o in objectives],
        sampler=sampler,
    )
    for trial in trials:
        study.add_trial(_frozen(space, trial, objectives))
    return study


def _suggest(asked: optuna.trial.BaseTrial, name: str, distribution: Distribution) -> Any:
    if distribution.values:
        return asked.suggest_categorical(name, distribution.values)
    low, high, log = distribution.low, distribution.high, distribution.log
    if distribution.is_whole:
        step = int(distribution.step or 1)
        return asked.suggest_int(name, int(low), int(high), step=step, log=log)
    return asked.suggest_float(name, low, high, step=distribution.step, log=log)


def _sampler(space: SearchSpace, seed: int, number: int, attempt: int) -> BaseSampler:
    """Returns a sampler whose random numbers do not depend on earlier draws of this process."""
    digest = hashlib.sha256(f"{seed} {number} {attempt}".encode()).digest()
    own = int.from_bytes(digest[:4], "big")
    if space.algorithm != "tpe" or attempt >= _ATTEMPTS_OF_TPE:
        return RandomSampler(seed=own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Grouped, for settings that are drawn under conditions. Running trials count as bad ones,
        # so that trials that run at the same time do not get similar settings.
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
    values = [value for o in objectives if (value := trial.value(o)) is not None]
    state, curve = _STATES[trial.state], {}
    if len(values) < len(objectives) and state != TrialState.RUNNING:
        state = TrialState.FAIL
    if several and state == TrialState.PRUNED:  # Optuna prunes only with one objective
        state = TrialState.COMPLETE
    if not several:
        curve = {int(row["epoch"]): row[objectives[0]] for row in trial.curve}
    drawn = optuna.trial.FixedTrial(trial.drawn)  # collects the distributions
    for name in trial.drawn:
        _suggest(drawn, name, space.search[name])
    return optuna.trial.create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=trial.drawn,
        distributions=drawn.distributions,
        intermediate_values=curve,
    )
