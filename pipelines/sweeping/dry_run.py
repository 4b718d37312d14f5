"""--dry-run: the trials that a sweep would start, and their approximate cost."""

import math
import statistics
import time
from dataclasses import dataclass
from itertools import islice

import ray

from stop_core.cache.manifest import Manifest

from ..cli.console import RunError, add_result, print_result
from ..cluster.session import start_ray
from ..training.failures import root_cause
from .results import print_table
from .sample_settings import planned, sample_settings
from .search import Search
from .space import short
from .trial_worker import TrialTask
from .trials import Trial

_STEPS, _CLIPS = 6, 64  # that are measured; the first two steps warm up


@dataclass(frozen=True)
class Speed:
    """Measured speed of a training on this cluster."""

    step_seconds: float
    """0 if nothing is trained."""
    clip_seconds: float
    """Seconds to evaluate a clip."""
    start_seconds: float
    """Seconds to load the tower and the texts."""
    captions: int = 0
    """Number of captions of the training clips."""


def print_plan(search: Search) -> None:
    """Prints the trials, how many others depend on their results, and the cost."""
    plan = planned(search.space, search.trials, search.seed)
    certain = len(plan)
    if search.space.algorithm == "tpe":
        given = len(search.space.points_to_evaluate)
        certain = min(certain, max(given, search.space.startup_trials))
    unknown = len(plan) - certain
    trials: list[Trial] = []
    for point, seed in plan[:certain]:
        drawn = sample_settings(search.space, point, seed, trials)
        if drawn is None:
            unknown = 0
            break
        trials.append(Trial(len(trials), drawn, seed))
    names = list(search.space.search)
    rows = (
        [trial.name, str(trial.seed), *(short(trial.drawn.get(n, "")) for n in names)]
        for trial in trials
    )
    print_table(f"{search.name}: trials", ["trial", "seed", *names], rows, names)
    if unknown:
        print_result(f"and {unknown} more, which TPE draws from the results of earlier trials")
    _print_cost(search, trials, len(trials) + unknown)


def _print_cost(search: Search, trials: list[Trial], count: int) -> None:
    start_ray(dashboard=False)
    at_once = search.at_once()
    configs = [search.space.experiment(trial.drawn) for trial in trials]
    trained = [one.is_trained and one.epochs > 0 for one in configs]
    measured = trials[trained.index(True) if any(trained) else 0]
    speed = _measure(search, measured)
    counts = Manifest.load(search.cache).counts
    examples = {"one": counts["train"], "every": speed.captions}
    lengths = [
        one.lengths(examples[one.training.captions]) if is_trained else (1, 0)
        for one, is_trained in zip(configs, trained, strict=True)
    ]
    steps = statistics.mean(total for _, total in lengths)
    # An evaluation after every epoch, and one of the chosen weights.
    evaluations = statistics.mean(math.ceil(total / epoch) for epoch, total in lengths) + 1
    seconds = steps * speed.step_seconds + evaluations * counts["val"] * speed.clip_seconds
    total = (count * seconds + at_once * speed.start_seconds) / at_once
    add_result(
        name=search.name,
        trials=[{"trial": one.name, "seed": one.seed, "settings": one.drawn} for one in trials],
        count=count,
        at_once=at_once,
        seconds_per_trial=seconds,
        seconds=total,
    )
    print_result(
        f"measured on {_STEPS - 2} steps of {measured.name} and {_CLIPS} validation clips, with no "
        f"other trial running: {speed.step_seconds:.3g} s per step, {speed.clip_seconds:.3g} s per "
        f"evaluated clip, {speed.start_seconds:.3g} s to load"
    )
    print_result(
        f"a trial: about {steps:.0f} steps, {_duration(seconds)}; "
        f"{count} trials, {at_once} at once: about {_duration(total)}"
        + (", less the time that ASHA saves" if search.space.scheduler else "")
    )
    if at_once > 1 and not search.resources.gpus_per_worker:
        print_result("concurrent trials share the machine's memory bandwidth: expect more")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _measure(search: Search, trial: Trial) -> Speed:
    """Measures in a Ray task with the resources of a worker: on a machine that would train."""
    resources = search.resources
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
    try:
        speed: Speed = ray.get(task(_measure_here).remote(search.task, trial))
    except ray.exceptions.RayError as problem:
        raise RunError(
            f"the steps of {trial.name} could not be measured: {root_cause(problem)}"
        ) from problem
    return speed


def _measure_here(task: TrialTask, trial: Trial) -> Speed:
    import torch

    from stop_core.cache import FrameCache
    from stop_core.clip.loading import load_clip
    from stop_core.model.methods import build_method
    from stop_core.runtime.devices import seed_weights
    from stop_core.training.clip_views import ShownClips
    from stop_core.training.objectives import make_objective
    from stop_core.training.protocol import protocol_clips
    from stop_core.training.trainer import Trainer

    torch.set_num_threads(max(1, int(task.resources.cpus_per_worker)))
    config = task.training(trial.drawn, trial.seed).config
    device = torch.device("cuda" if task.resources.gpus_per_worker else "cpu")
    began = time.perf_counter()
    cache = FrameCache(task.cache, task.resources.local_cache_bytes)
    seed_weights(config.seed)
    clip = load_clip(config.tower, config.pretrained)
    model = build_method(config, clip, len(cache.manifest.class_names)).to(device)
    splits: dict[str, ShownClips] = {
        name: ShownClips(clips, config, model.image_size, is_trained=name == "train")
        for name, clips in protocol_clips(cache, config, ("train", "val"))[0].items()
    }
    objective = make_objective(model, config, cache.manifest, {**splits})
    loaded = time.perf_counter() - began
    steps = [0.0]
    if model.trainable() and config.epochs:
        trainer = Trainer(
            model,
            config,
            splits["train"],
            objective,
            shown=splits["train"].in_epoch,
            micro_batch=task.resources.micro_batch,
        )
        steps = [step.seconds for step in islice(trainer.steps(0), _STEPS)]
    model.eval()
    clips = list(range(min(_CLIPS, len(splits["val"]))))
    began = time.perf_counter()
    with torch.no_grad():
        objective.outputs(splits["val"].read(clips).to(device), clips, 0)
    if device.type == "cuda":
        torch.cuda.synchronize()
    evaluated = (time.perf_counter() - began) / len(clips)
    captions = sum(map(len, cache.split("train").captions))
    return Speed(statistics.median(steps[2:] or steps), evaluated, loaded, captions)
