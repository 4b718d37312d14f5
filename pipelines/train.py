"""Trains STOP, or a baseline, on a frame cache."""

if __name__ == "__main__":  # python pipelines/train.py
    __import__("stop").run_file(__file__)

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import StoragePath

from .cli.console import add_result, pausing_on_sigterm, print_result, reporting, say
from .cli.folders import SWEEPS, default_output
from .cli.options import OptionalFolder, OutputFolder
from .cluster.devices import choose_devices
from .cluster.resources import ResourceOptions, room_for, waited_for
from .preprocessing.find_cache import find_cache
from .training.check_fit import remarks_on
from .training.progress_file import TrainingLines
from .training.task import StartFrom, find_checkpoint

if TYPE_CHECKING:
    from .training.result import TrainingResult


@dataclass(frozen=True)
class TrainConfig:
    """Train STOP, or one of its baselines, on a frame cache, and test the best epoch once.

    Without --cache: STOP on the embedded demonstration set, with the defaults "in motion.yaml"
    below (sweeps/recipes/motion.yaml), in about a minute on one CPU core.

    Validation chooses the epoch. The result, the prompts and the predictions are stored under
    <output>/runs, and in MLflow. After an interruption, run the same command to resume; when the
    training is finished, the command prints the result again.

    Examples:
      stop train --method vpt-deep --seed 1
      stop train --cache outputs/cache/hmdb51 --tower ViT-B-32-quickgelu \\
          --pretrained openai --epochs 20 --batch-size 64
      stop train --cache outputs/cache/hmdb51 --tower ViT-B-32-quickgelu \\
          --pretrained openai --shots 16 --full-training
      stop train --cache outputs/cache/msrvtt --tower ViT-B-32-quickgelu \\
          --pretrained openai --captions every --epochs 5
      stop train --resume-from NAME --fork --learning-rate 1e-4
    """

    cache: str | None = None
    """A cache made by preprocess: a folder, or an s3:// or gs:// URI (default: the embedded set,
    preprocessed if needed)."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder, or s3:// or gs:// URI, of runs, checkpoints and the MLflow store."""
    resume_from: OptionalFolder = None
    """Start from this checkpoint, or from the latest one of this run (a folder, or its name)."""
    fork: bool = False
    """With --resume-from: start a new training, with any settings, from the weights only."""
    in_process: bool | None = None
    """Train in this process, without Ray Train: starts sooner, but is not restarted after a failure
    (default: for one worker on the CPU, unless RAY_ADDRESS is set)."""
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    resources: ResourceOptions = field(default_factory=ResourceOptions)

    def __post_init__(self) -> None:
        if self.fork and self.resume_from is None:
            raise ValueError("fork needs resume_from: the checkpoint or run to take weights from")
        if self.in_process and (self.resources.workers or 1) > 1:
            raise ValueError(
                f"in_process has room for one worker, and workers is {self.resources.workers}; "
                "leave one of them out"
            )

    @staticmethod
    def default_file(arguments: Sequence[str]) -> Path | None:
        """Returns the recipe of the embedded set, unless the arguments include --cache."""
        has_cache = any(word.split("=")[0] == "--cache" for word in arguments)
        return None if has_cache else SWEEPS / "recipes" / "motion.yaml"


def main(config: TrainConfig) -> "TrainingResult":
    """Trains, resumes or finds the finished training, and prints its result."""
    # These take seconds to import, and --help does not need them.
    from stop_core.model.methods import check_tower

    from .tracking.queued_run import deliver_waiting
    from .training.launch import TrainingHooks
    from .training.run import TrainingRun

    check_tower(config.experiment)  # before minutes of decoding
    cache = find_cache(config.cache, config.output)
    start = None
    if config.resume_from is not None:
        start = StartFrom(find_checkpoint(config.resume_from, config.output), config.fork)
    most_workers = 1 if config.in_process else config.experiment.batch_size
    machine = choose_devices(config.resources, most_workers)
    experiment, resources = machine.settle(config.experiment), machine.resources
    training = TrainingRun(experiment, cache, config.output, start=start)
    deliver_waiting(config.output)
    result = training.remembered()
    if result is None:
        say(f"training {training.name}")
        local = resources.local_cache_bytes
        for remark in remarks_on(training.config, training.cache, local):
            say(f"note: {remark}")
        lines = TrainingLines(training.progress_file)
        hooks = TrainingHooks(is_sole="RAY_ADDRESS" not in os.environ)
        in_process = config.in_process
        if in_process is None:  # on a GPU, a training is worth the overhead of Ray Train
            on_a_cpu = resources.workers == 1 and not resources.gpus_per_worker
            in_process = on_a_cpu and hooks.is_sole
        if not in_process:
            # On a cluster, the folder of the store may have to be refused first.
            work = training.open_store if hooks.is_sole else lambda: None
            _start_ray_and(work, config.output, training.cache)
            room_for(resources)
            lines = TrainingLines(training.progress_file, lambda: waited_for(resources))
        with reporting(lines.line, lines.events), pausing_on_sigterm(training.pause):
            result = training.train(resources, in_process=in_process, hooks=hooks)
    _summarise(result, config)
    return result


def _start_ray_and(work: Callable[[], None], *folders: StoragePath) -> None:
    from .cluster.session import import_ray, start_ray

    import_ray()  # first, as two threads should not import libraries at once
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        start_ray(*folders, records=True, dashboard=False)
    done.result()


def _summarise(result: "TrainingResult", config: TrainConfig) -> None:
    from .tracking.store import ui_command

    again = " (trained before; nothing was run)" if result.reused else ""
    validated = any(name.startswith("val/") for name in result.metrics)
    rule = "best epoch" if validated else "no validation, so last epoch"
    print_result(f"{result.name}: {rule} {result.metrics['best_epoch']:.0f}{again}")
    for line in result.metric_lines:
        print_result(line)
    for problem in result.problems:
        print_result(f"note: {problem}")
    print_result(f"prompts, predictions and settings: {result.folder}")
    print_result(f"all runs: {ui_command(config.output)}")
    add_result(**asdict(result), model=result.model, next=ui_command(config.output))
