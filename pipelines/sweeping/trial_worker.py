"""One trial, in the process that Ray Tune has started for it and for the trials that follow it."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from stop_core.clip.shared import ClipCache
from stop_core.storage.paths import StoragePath
from stop_core.training.run_state import read_progress

from ..cli.errors import RunError
from ..cli.experiment_fields import build_experiment
from ..cluster.resources import Resources
from ..training.checkpoints import latest_checkpoint
from ..training.launch import TrainingHooks
from ..training.run import TrainingRun
from .space import SearchSpace
from .wording import describe_settings

FAILURE_KEY = "failure"
# Seconds that Tune gives a trial that it has stopped to end by itself; then its process, with all
# that it has loaded, is used no more. It may be telling MLflow of its last epoch.
_PATIENCE = {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "30"}


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a sweep have in common; it travels to their processes."""

    sweep: str
    """Eight hex digits."""
    space: SearchSpace
    cache: StoragePath
    output: Path
    resources: Resources
    parent: str = ""
    """MLflow run id of the sweep."""

    def training(self, drawn: dict[str, Any], seed: int) -> TrainingRun:
        """The training of a trial. It does not see the test split.

        Raises:
            ValueError: if the settings do not fit each other, the data or the tower.
        """
        settings = {**self.space.complete(drawn), "seed": seed}
        experiment = build_experiment(settings, "this trial")
        return TrainingRun(experiment, self.cache, self.output, test=False, sweep=self.sweep)


def run_trial(config: dict[str, Any], task: TrialTask, keeper: ClipCache) -> None:
    """Trains one trial, or goes on with it; tells Tune of every epoch, and of the end.

    Args:
        config: the trial's name, its drawn settings, its seed, and the epochs that are noted.
        task: of the sweep.
        keeper: of this process.
    """
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    training = task.training(config["drawn"], config["seed"])
    objective, last = task.space.objectives[0], config["noted"]

    def told(row: dict[str, float]) -> None:
        nonlocal last
        if objective in row and not row["finished"] and row["epoch"] > last:
            last = row["epoch"]
            tune.report(row)

    for row in _kept_curve(training):  # what a kill has kept from being noted comes first
        told(row)
    alone = task.resources.one_worker
    hooks = TrainingHooks(told, keeper) if alone else TrainingHooks(callbacks=(_Epochs(objective),))
    label = f"{config['name']}: {describe_settings(config['drawn'])}"
    try:
        result = training.train(task.resources, task.parent, label, in_process=alone, hooks=hooks)
    except RunError as problem:
        reason = str(problem).removeprefix(f"the training {training.name} failed: ")
        tune.report({FAILURE_KEY: reason, objective: math.nan, "epoch": 0, "finished": 1})
        return
    if result.reused:  # a process of before a kill may have ended it just now
        for row in result.curve:
            told(row)
    epochs = training.config.epochs
    tune.report({**result.metrics, "epoch": epochs, "finished": 1})


def _kept_curve(training: TrainingRun) -> list[dict[str, float]]:
    """What each epoch reported, as far as the result or the furthest checkpoint has it."""
    if result := training.remembered():
        return result.curve
    checkpoint = latest_checkpoint(training.folder)
    return read_progress(checkpoint).curve if checkpoint else []


class _Epochs(TuneReportCallback):  # type: ignore[misc]
    """Hands the epochs of a training of several workers to Tune, and no checkpoint between."""

    def __init__(self, objective: str) -> None:
        super().__init__()
        self._objective = objective

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        if self._objective in metrics[0] and not metrics[0]["finished"]:
            super().after_report(run_context, metrics, checkpoint)
