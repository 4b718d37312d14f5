"""Connects Ray Tune with the trials on disk: the next trial, and which trials to stop.

Tune itself restarts from nothing after an interruption. Its state comes from the trials on disk:
unfinished trials are suggested first, and the scheduler is given every recorded epoch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from ..training.failures import root_cause
from .sample_settings import planned, sample_settings
from .space import Asha, is_minimised
from .trial_worker import FAILURE_KEY, TrialTask
from .trials import ENDS, State, Trial, Trials


class Driver(Searcher):
    """Gives Tune the next trial, and records its epochs and its end.

    There are `count` trials in the end, by default the number of the space. `ended` is called for
    every trial that has ended, before its end is written to disk.
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
        self._waiting = trials.in_state("running")
        self._by_tune_id: dict[str, Trial] = {}

    @property
    def most(self) -> int:
        """Number of trials in the end; there can be more on disk than in the plan."""
        return max(len(self.plan), len(self.trials.all))

    @property
    def is_done(self) -> bool:
        """Whether every trial has ended."""
        drawn = len(self.trials.all) >= len(self.plan) or self.exhausted
        return drawn and not self.trials.in_state("running")

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Returns the next trial: an interrupted one, or else a new one."""
        trial = self._interrupted() or self._new()
        if trial is None:
            # Ray's annotation leaves out this marker, though its documentation names it.
            return cast(dict[str, Any], Searcher.FINISHED)
        self._by_tune_id[trial_id] = trial
        return {
            "name": trial.name,
            "number": trial.number,
            "drawn": trial.drawn,
            "seed": trial.seed,
            "noted": trial.noted,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Records an epoch, or the end."""
        trial = self._by_tune_id[trial_id]
        if trial.state != "running":
            return
        if result.get(FAILURE_KEY):
            self.fail(trial.number, result[FAILURE_KEY])
        elif result["finished"]:
            per_epoch = ("epoch", "step_seconds")
            trial.measures = {k: v for k, v in _metrics(result).items() if k not in per_epoch}
            self._end(trial, "finished")
        else:
            trial.add_epoch(_metrics(result))
            self.trials.save(trial)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Does nothing: the end is recorded when it is reported; an interrupted trial has none."""

    def stop(self, number: int, result: dict[str, Any]) -> None:
        """Records that the scheduler has stopped a trial after this epoch."""
        trial = self.trials.all[number]
        trial.add_epoch(_metrics(result))
        self._end(trial, "stopped early")

    def fail(self, number: int, reason: str) -> None:
        """Records that a trial has failed and is not retried."""
        trial = self.trials.all[number]
        trial.reason = reason
        self._end(trial, "failed")

    def __getstate__(self) -> dict[str, Any]:
        """Returns nothing: Tune stores a copy to restore from, and is never restored."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Writes an empty file, which Tune requires."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Is never called, as Tune is never restored."""

    def _new(self) -> Trial | None:
        """Draws a trial; one whose settings do not fit the data or the tower fails at once."""
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

    def _interrupted(self) -> Trial | None:
        """Returns an interrupted trial; one without a run was interrupted before its failure."""
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
        """Returns the name of a trial's training, or the reason why there can be none."""
        try:
            return self.task.training(drawn, seed).name, ""
        except ValueError as problem:
            return "", str(problem)

    def _end(self, trial: Trial, state: State) -> None:
        trial.state = state
        self._ended(trial)
        self.trials.save(trial)


class Failures(tune.Callback):
    """Records the trials whose processes failed more often than `--restarts` allows."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Records a trial that Tune does not retry."""
        problem = trial.get_pickled_error() or trial.get_error()
        self._driver.fail(trial.config["number"], root_cause(problem))


class NotedAsha(ASHAScheduler):
    """ASHA that sees every epoch once, despite interruptions, and stops no trial at its last."""

    def __init__(self, driver: Driver, asha: Asha) -> None:
        space = driver.task.space
        objective = space.objectives[0]
        super().__init__(
            time_attr="epoch",
            metric=objective,
            mode="min" if is_minimised(objective) else "max",
            # One more: a trial that reports its max_t is stopped before its result is known.
            max_t=space.longest + 1,
            grace_period=min(asha.grace_period, space.longest),
            reduction_factor=asha.reduction_factor,
        )
        self._driver = driver
        for trial in driver.trials.in_state(*ENDS):
            ended = TuneTrial("ended", trial_id=trial.name, stub=True)  # of no trainable
            self._replay(None, ended, trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Adds a trial with its recorded epochs, which do not stop it."""
        self._replay(tune_controller, trial, self._driver.trials.all[trial.config["number"]])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decides about an epoch, unless it was reported before."""
        recorded = self._driver.trials.all[trial.config["number"]]
        epochs = [row["epoch"] for row in recorded.curve]
        if result.get(FAILURE_KEY) or result["finished"] or result["epoch"] in epochs:
            return TrialScheduler.CONTINUE
        action = super().on_trial_result(tune_controller, trial, result)
        is_last = result["epoch"] >= self._driver.task.space.experiment(recorded.drawn).epochs
        if action != TrialScheduler.STOP or is_last:
            return TrialScheduler.CONTINUE
        self._driver.stop(recorded.number, result)
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Removes a failed trial without ranking it, as it has no value."""
        if result.get(FAILURE_KEY):
            super().on_trial_remove(tune_controller, trial)
        else:
            super().on_trial_complete(tune_controller, trial, result)

    def _replay(self, tune_controller: Any, tune_trial: TuneTrial, trial: Trial) -> None:
        super().on_trial_add(tune_controller, tune_trial)
        for row in trial.curve:
            super().on_trial_result(tune_controller, tune_trial, row)


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    names = ("epoch", "best_epoch", "step_seconds", "trainable_parameters")
    return {
        name: float(value)
        for name, value in result.items()
        if name.startswith("val/") or name in names
    }
