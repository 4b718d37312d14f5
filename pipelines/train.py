"""Trains STOP, or a baseline, on a frame cache with Ray Train."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file: PEP 366
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "pipelines"

from stop_core.settings.experiment import ExperimentConfig

from .cli.console import print_result, reporting, say
from .cli.folders import SWEEPS
from .cli.options import run_command
from .cli.output import default_output
from .cluster.resources import Resources
from .preprocessing.find_cache import find_cache
from .tracking.queued_run import deliver_waiting
from .tracking.store import ui_command
from .training.check_fit import remarks_on
from .training.progress_file import TrainingLines
from .training.result import TrainingResult
from .training.run import TrainingRun
from .training.start_from import StartFrom, find_checkpoint


@dataclass(frozen=True)
class TrainConfig:
    """Train STOP, or one of its baselines, on a frame cache, and test the best epoch once.

    Without --cache: STOP on the embedded demonstration set, with the settings of
    sweeps/recipes/motion.yaml, a minute or so on one CPU core.

    Validation chooses the epoch. The result, the prompts and the predictions lie under
    <output>/runs, and in MLflow. After a kill, the same command goes on where it stopped; when
    all is done, it prints the result again.

    Examples:
      python pipelines/train.py --method vpt-deep --seed 1
      python pipelines/train.py --cache outputs/cache/hmdb51 --tower ViT-B-32-quickgelu \\
          --pretrained openai --gpus-per-worker 1 --epochs 20 --batch-size 64
    """

    cache: str | None = None
    """A cache made by preprocess.py, a folder or its s3:// or gs:// URI; empty: the embedded set,
    prepared if need be."""
    output: Path = field(default_factory=default_output)
    """Where runs, checkpoints and the MLflow store go."""
    resume_from: Path | None = None
    """Begin with this checkpoint, or the last one of this run (a folder, or its name)."""
    fork: bool = False
    """With --resume-from: a new training that takes the weights alone, under any settings."""
    in_process: bool | None = None
    """Train in this very process, without Ray Train: starts sooner, but a process that dies is not
    started again by itself. Empty: so for one worker on the CPU, unless RAY_ADDRESS names a
    cluster."""
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if self.fork and self.resume_from is None:
            raise ValueError("fork needs resume_from: the checkpoint or run to take weights from")
        if self.in_process and self.resources.workers > 1:
            raise ValueError(
                f"in_process has room for one worker, and workers is {self.resources.workers}; "
                "leave one of them out"
            )

    @staticmethod
    def default_file(arguments: Sequence[str]) -> Path | None:
        """Returns the recipe of the embedded set, unless the arguments name a cache."""
        has_cache = any(word.split("=")[0] == "--cache" for word in arguments)
        return None if has_cache else SWEEPS / "recipes" / "motion.yaml"


def main(config: TrainConfig) -> TrainingResult:
    """Trains as configured and prints the result."""
    from stop_core.clip.loading import check_name

    check_name(config.experiment.tower, config.experiment.pretrained)  # before minutes of decoding
    cache = find_cache(config.cache, config.output)
    start = None
    if config.resume_from is not None:
        start = StartFrom(find_checkpoint(config.resume_from, config.output), config.fork)
    training = TrainingRun(config.experiment, cache, config.output, start=start)
    deliver_waiting(config.output)
    result = training.remembered()
    if result is None:
        say(f"training {training.name}")
        for remark in remarks_on(training.config, training.cache):
            say(f"note: {remark}")
        if not (here := _trains_here(config)):
            _join_ray(config)
        lines = TrainingLines(training.progress_file)
        with reporting(lines.line, lines.events):
            result = training.train(config.resources, here=here)
    _summarise(result, config)
    return result


def _trains_here(config: TrainConfig) -> bool:
    """Whether this process is the worker; a GPU's training is worth a supervisor."""
    if config.in_process is not None:
        return config.in_process
    resources = config.resources
    return (
        resources.one_worker and not resources.gpus_per_worker and "RAY_ADDRESS" not in os.environ
    )


def _join_ray(config: TrainConfig) -> None:
    from .cluster.room import room_for
    from .cluster.session import start_ray

    start_ray()
    room_for(config.resources)


def _summarise(result: TrainingResult, config: TrainConfig) -> None:
    again = " (trained before; nothing was run)" if result.reused else ""
    validated = any(name.startswith("val/") for name in result.metrics)
    rule = "best epoch" if validated else "no validation split, so last epoch"
    print_result(f"{result.name}: {rule} {result.metrics['best_epoch']:.0f}{again}")
    for name, value in sorted(result.metrics.items()):
        if "/" in name:
            print_result(f"  {name:<18} {value:.4f}")
    for problem in result.problems:
        print_result(f"note: {problem}")
    print_result(f"prompts, predictions and settings: {result.folder}")
    print_result(f"all runs: {ui_command(config.output)}")


if __name__ == "__main__":
    run_command(TrainConfig, main)
