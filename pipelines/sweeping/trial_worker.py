"""A trial, in a process that Ray Tune reuses for the following trials."""

import math
import os
from dataclasses import dataclass
from typing import Any, cast

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from stop_core.clip.loading import ClipCache
from stop_core.storage.paths import StoragePath
from stop_core.training.run_state import read_progress

from ..cli.console import RunError
from ..cluster.resources import Resources
from ..training.checkpoints import latest_checkpoint
from ..training.launch import TrainingHooks
from ..training.run import TrainingRun
from .space import SearchSpace, describe_settings

FAILURE_KEY = "failure"
"""Name of the reason in the report of a trial that failed."""


@dataclass(frozen=True)
class TrialTask:
    """The part that all trials of a sweep share; it is sent to their processes."""

    sweep: str
    """Eight hex digits."""
    space: SearchSpace
    cache: StoragePath
    output: StoragePath
    resources: Resources
    parent: str = ""
    """MLflow run id of the sweep."""

    def training(self, drawn: dict[str, Any], seed: int) -> TrainingRun:
        """Returns the training of a trial, which does not read the test split."""
        experiment = self.space.experiment(drawn, seed)
        return TrainingRun(experiment, self.cache, self.output, test=False, sweep=self.sweep)


def run_trial(config: dict[str, Any], task: TrialTask, keeper: ClipCache) -> None:
    """Trains or resumes one trial; reports every epoch and the end to Tune.

    `config` has the name, drawn settings and seed of the trial, and its number of recorded epochs;
    `keeper` has the tower of this process.
    """
    # Seconds that Tune waits for a stopped trial, which can be sending its last epoch to MLflow.
    # After that, it discards the process with everything that the process has loaded.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "30")
    training = task.training(config["drawn"], config["seed"])
    objective, last = task.space.objectives[0], config["noted"]

    def report(row: dict[str, float]) -> None:
        nonlocal last
        if objective in row and not row["finished"] and row["epoch"] > last:
            last = row["epoch"]
            tune.report(row)

    for row in _stored_curve(training):  # epochs that the driver has not recorded
        report(row)
    hooks = TrainingHooks(report, keeper)
    if not (alone := task.resources.workers == 1):
        hooks = TrainingHooks(callbacks=(_Epochs(objective),))
    label = f"{config['name']}: {describe_settings(config['drawn'])}"
    try:
        result = training.train(task.resources, task.parent, label, in_process=alone, hooks=hooks)
    except RunError as problem:
        reason = str(problem).removeprefix(f"the training {training.name} failed: ")
        tune.report({FAILURE_KEY: reason, objective: math.nan, "epoch": 0, "finished": 1})
        return
    if result.reused:  # another process may have finished the training in the meantime
        for row in result.curve:
            report(row)
    epochs = len(result.curve) or training.config.epochs
    tune.report({**result.metrics, "epoch": epochs, "finished": 1})


def _stored_curve(training: TrainingRun) -> list[dict[str, float]]:
    """Returns the reports of the epochs in the result, or else in the latest checkpoint."""
    if result := training.remembered():
        return result.curve
    checkpoint = latest_checkpoint(training.folder)
    return read_progress(checkpoint).curve if checkpoint else []


class _Epochs(TuneReportCallback):
    """Passes the epochs of a training with several workers to Tune, without checkpoints."""

    def __init__(self, objective: str) -> None:
        cast(Any, super()).__init__()  # Ray does not annotate it
        self._objective = objective

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        if self._objective in metrics[0] and not metrics[0]["finished"]:
            super().after_report(run_context, metrics, checkpoint)
