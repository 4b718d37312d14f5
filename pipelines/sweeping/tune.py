"""The two parts of Ray Tune that know what is on disk: who is next, and who is to be stopped.

Tune itself starts afresh after a kill. What it has to know comes from the trials on disk: those
that had begun are given to it first, and its scheduler is told of every epoch that was noted.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from ..cli.experiment_fields import build_experiment
from ..training.failures import root_cause
from .sample_settings import planned, sample_settings
from .space import Asha, is_minimised
from .trial_worker import FAILURE_KEY, TrialTask
from .trials import State, Trial, Trials


class Driver(Searcher):  # type: ignore[misc]
    """Gives Tune the next trial, and notes what becomes of it.

    Args:
        task: of the sweep.
        trials: those that there are.
        count: of the trials there are to be; None for as many as the space says.
        seed: of the sweep.
        ended: is called for every trial that has ended, before that is noted.
    """

    def __init__(
        self,
        task: TrialTask,
        trials: Trials,
        count: int | None,
        seed: int,
        ended: Callable[[Trial], None],
    ) -> None:
        super().__init__()
        self.task = task
        self.trials = trials
        self.plan = planned(task.space, count, seed)
        self.exhausted = False
        self._ended = ended
        self._waiting = trials.unfinished()
        self._by_tune_id: dict[str, Trial] = {}

    @property
    def most(self) -> int:
        """Trials that there can be in the end; those that have begun may be beyond the plan."""
        return max(len(self.plan), len(self.trials.all))

    @property
    def is_done(self) -> bool:
        """Whether every trial has ended."""
        drawn = len(self.trials.all) >= len(self.plan) or self.exhausted
        return drawn and not self.trials.unfinished()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The trial that comes next: one that a kill broke off, or a new one."""
        trial = self._begun() or self._new()
        if trial is None:
            return str(Searcher.FINISHED)
        self._by_tune_id[trial_id] = trial
        return {
            "name": trial.name,
            "number": trial.number,
            "drawn": trial.drawn,
            "seed": trial.seed,
            "noted": trial.noted,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes an epoch, or the end."""
        self._note(self._by_tune_id[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the end was noted when it was told; an interrupted trial has none."""

    def stop(self, number: int, result: dict[str, Any]) -> None:
        """Notes that the scheduler has stopped a trial after this epoch."""
        trial = self.trials.all[number]
        trial.add_epoch(_numbers(result))
        self._end(trial, "stopped early")

    def fail(self, number: int, reason: str) -> None:
        """Notes that a trial has failed for good."""
        trial = self.trials.all[number]
        trial.reason = reason
        self._end(trial, "failed")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy for a restore, and none ever happens."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing of it is Tune's to keep; Tune wants a file nevertheless."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never called: Tune starts afresh."""

    def _new(self) -> Trial | None:
        """Draws a trial; one whose settings turn out unfit has failed already."""
        while len(self.trials.all) < len(self.plan):
            point, seed = self.plan[len(self.trials.all)]
            drawn = sample_settings(self.task.space, point, seed, self.trials.all)
            if drawn is None:
                self.exhausted = True
                return None
            run, reason = self._run_of(drawn, seed)
            trial = self.trials.add(drawn, seed, run)
            if run:
                return trial
            self.fail(trial.number, reason)
        return None

    def _begun(self) -> Trial | None:
        """A trial that a kill broke off; one without a run was killed before its failure."""
        while self._waiting:
            trial = self._waiting.pop(0)
            if trial.run:
                return trial
            trial.run, reason = self._run_of(trial.drawn, trial.seed)
            if trial.run:
                self.trials.save(trial)
                return trial
            self.fail(trial.number, reason)
        return None

    def _run_of(self, drawn: dict[str, Any], seed: int) -> tuple[str, str]:
        """The name of a trial's training; or none, and why there can be none."""
        try:
            return self.task.training(drawn, seed).name, ""
        except ValueError as problem:
            return "", str(problem)

    def _note(self, trial: Trial, result: dict[str, Any]) -> None:
        if trial.state != "running":
            return
        if result.get(FAILURE_KEY):
            self.fail(trial.number, result[FAILURE_KEY])
        elif result["finished"]:
            told = _numbers(result)
            trial.measures = {
                name: value
                for name, value in told.items()
                if name.startswith("val/") or name in ("best_epoch", "trainable_parameters")
            }
            self._end(trial, "finished")
        else:
            trial.add_epoch(_numbers(result))
            self.trials.save(trial)

    def _end(self, trial: Trial, state: State) -> None:
        trial.state = state
        self._ended(trial)
        self.trials.save(trial)


class Failures(tune.Callback):  # type: ignore[misc]
    """Notes the trials whose processes died once too often."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has given the trial up."""
        problem = trial.get_pickled_error() or trial.get_error()
        self._driver.fail(trial.config["number"], root_cause(problem))


class NotedAsha(ASHAScheduler):  # type: ignore[misc]
    """ASHA that is told every epoch once, whatever was killed, and stops nobody at the last."""

    def __init__(self, driver: Driver, asha: Asha) -> None:
        space = driver.task.space
        objective = space.objectives[0]
        super().__init__(
            time_attr="epoch",
            metric=objective,
            mode="min" if is_minimised(objective) else "max",
            max_t=space.longest
            + 1,  # a trial that reports its max_t is stopped before it has ended
            grace_period=space.grace_period,
            reduction_factor=asha.reduction_factor,
        )
        self._driver = driver
        for trial in driver.trials.ended():
            self._replay(None, SimpleNamespace(trial_id=trial.name), trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial that a kill broke off stands where it stood: its old epochs judge it no more."""
        self._replay(tune_controller, trial, self._driver.trials.all[trial.config["number"]])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Judges an epoch, unless it is told again."""
        number = trial.config["number"]
        noted = [row["epoch"] for row in self._driver.trials.all[number].curve]
        if result.get(FAILURE_KEY) or result["finished"] or result["epoch"] in noted:
            return str(TrialScheduler.CONTINUE)
        action = str(super().on_trial_result(tune_controller, trial, result))
        if action != TrialScheduler.STOP or self._is_last(trial, result):
            return str(TrialScheduler.CONTINUE)
        self._driver.stop(number, result)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A failure has no value to rank."""
        if result.get(FAILURE_KEY):
            super().on_trial_remove(tune_controller, trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)

    def _is_last(self, trial: Any, result: dict[str, Any]) -> bool:
        settings = self._driver.task.space.complete(trial.config["drawn"])
        return bool(result["epoch"] >= build_experiment(settings, "this trial").epochs)

    def _replay(self, tune_controller: Any, stand_in: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, stand_in)
        for row in trial.curve:
            super().on_trial_result(tune_controller, stand_in, row)


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    """What a training has reported, without what Tune adds."""
    names = ("epoch", "best_epoch", "step_seconds", "trainable_parameters")
    return {
        name: float(value)
        for name, value in result.items()
        if name.startswith("val/") or name in names
    }
