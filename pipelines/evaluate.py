"""Evaluates a trained model on any frame cache, also with other classes than it was trained on."""

if __name__ == "__main__":  # python pipelines/evaluate.py
    __import__("stop").run_file(__file__)

import os
import shlex
from dataclasses import asdict, dataclass, field

from .cli.console import RunError, add_result, print_result, reporting, say
from .cli.folders import default_output
from .cli.options import OptionalModel, OutputFolder
from .cli.progress_bar import Pace
from .cli.video_options import Device
from .cluster.devices import choose_devices
from .cluster.resources import ResourceOptions, Resources
from .inference.evaluation import Evaluation, EvaluationOptions, evaluate_all
from .inference.model_choice import ModelChoice
from .preprocessing.find_cache import find_cache
from .training.result import TrainingResult


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a trained model on a split of any frame cache.

    The cache can have other classes or captions than the training, which the model's text tower
    reads (zero-shot transfer). Predictions and metrics are stored under <output>/evaluations, and
    in MLflow. After an interruption, run the same command to resume; when the evaluation is
    finished, the command prints the result again.

    Examples:
      stop evaluate --checkpoint outputs/runs/NAME --cache outputs/cache/ucf101
      stop evaluate --checkpoint NAME --cache outputs/cache/hmdb51 --views 4x3
      stop evaluate --checkpoint NAME --cache outputs/cache/msrvtt --rerank dsl
    """

    checkpoint: OptionalModel = None
    """Folder of a trained model, or of its training run: outputs/runs/NAME. Or the beginning of
    NAME, or hf://USER/NAME[@REVISION], as for `stop predict`."""
    run: str | None = None
    """Id of the MLflow run of a training, instead of --checkpoint."""
    tower: str | None = None
    """The model's tower, which is needed only for hf-hub:REPOSITORY and local-dir:FOLDER."""
    cache: str | None = None
    """A cache made by preprocess: a folder, or an s3:// or gs:// URI (default: the embedded set,
    preprocessed if needed)."""
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    device: Device = "auto"
    """Evaluate on a GPU of this machine or cluster, or on the CPU; auto: on a GPU if there is
    one."""
    cpus: float = 1
    """Logical CPUs, and compute threads."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder of evaluations, training runs and the MLflow store."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.run is None):
            raise ValueError("give either --checkpoint or --run, the model to evaluate")
        if not self.cpus > 0:
            raise ValueError(f"cpus must be positive, got {self.cpus}")


def main(config: EvaluateConfig) -> TrainingResult:
    """Evaluates, resumes or finds the finished evaluation, and prints its result."""
    from .tracking.queued_run import deliver_waiting  # MLflow takes seconds

    options = ResourceOptions(config.device, workers=1, cpus_per_worker=config.cpus)
    resources = choose_devices(options).resources
    choice = ModelChoice(config.checkpoint, config.run, tower=config.tower)
    deliver_waiting(config.output)
    cache = find_cache(config.cache, config.output)
    evaluation = Evaluation(choice.found(config.output), cache, config.output, config.evaluation)
    result = evaluation.remembered()
    if result is None:
        say(f"evaluating {evaluation.name}")
        if remark := evaluation.remark():
            say(f"note: {remark}")
        # Ray may have the GPU on another machine.
        run = _on_ray if "RAY_ADDRESS" in os.environ else _here
        result = run(evaluation, resources)
    _summarise(evaluation, result, config)
    return result


def _here(evaluation: Evaluation, resources: Resources) -> TrainingResult:
    pace, done = Pace(), 0

    def count(clips: int) -> None:
        nonlocal done
        done += clips

    def line() -> str:
        left = pace.left(done, evaluation.clips)
        return f"evaluated {done} of {evaluation.clips} clips (every view counts){left}"

    with reporting(line):
        return evaluation.run(resources, count)


def _on_ray(evaluation: Evaluation, resources: Resources) -> TrainingResult:
    from .cluster.session import start_ray

    shared = (evaluation.output, evaluation.cache, evaluation.folder_of_model)
    start_ray(*shared, records=True, dashboard=False)
    (outcome,) = evaluate_all([evaluation], resources)
    if isinstance(outcome, str):
        raise RunError(f"the evaluation failed: {outcome}. Run the same command to resume")
    return outcome


def _summarise(evaluation: Evaluation, result: TrainingResult, config: EvaluateConfig) -> None:
    from .tracking.store import ui_command

    again = " (evaluated before; nothing was run)" if result.reused else ""
    trained, options = evaluation.record.provenance, config.evaluation
    source = trained.dataset or "unknown data"
    print_result(f"{result.name}: {result.method} trained on {source}{again}")
    for line in result.metric_lines:
        print_result(line)
    if options.rerank == "dsl":
        print_result("note: dsl uses the other queries of the test set; report it separately")
    print_result(f"predictions: {result.folder}")
    print_result(f"all runs: {ui_command(config.output)}")
    if options.frames is not None:
        return  # a table tests all rows with the frames of their training
    own = trained.data_hash == result.data_hash
    words = [] if own else ["--cache", f"CACHE_OF_{source}".replace(" ", "_")]
    if config.cache is not None:
        words += ["--cache" if own else "--transfer", shlex.quote(config.cache)]
    words += [] if options.views == "1x1" else ["--views", options.views]
    words += [] if options.rerank == "none" else ["--rerank", options.rerank]
    following = " ".join(["stop benchmark", *words])
    print_result(f"next    {following}")
    add_result(**asdict(result), trained_on=source, next=following)
