"""--dry-run: the trials that a sweep would start, and about what they would cost."""

import math
import statistics
import time
from dataclasses import dataclass
from itertools import islice

import ray
from rich.table import Table

from stop_core.cache.manifest import Manifest

from ..cli.console import console, print_result
from ..cli.errors import RunError
from ..cli.experiment_fields import build_experiment
from ..cluster.session import start_ray
from ..training.failures import root_cause
from .sample_settings import planned, sample_settings
from .search import Search
from .trial_worker import TrialTask
from .trials import Trial
from .wording import short

_STEPS = 6
"""That are measured; the first two warm up."""
_CLIPS = 64
"""Validation clips that are measured."""


@dataclass(frozen=True)
class Speed:
    """How fast a training is here."""

    step_seconds: float
    """0 where nothing is trained."""
    clip_seconds: float
    """To evaluate a clip."""
    start_seconds: float
    """To load the tower and the texts."""


def print_plan(search: Search) -> None:
    """Prints the trials, those that need the results of others as such, and the cost."""
    trials, unknown = _foreseen(search)
    shown = Table(title=f"{search.name}: trials", title_justify="left")
    names = list(search.space.search)
    for name in ("trial", "seed", *names):
        shown.add_column(name, justify="right", overflow="fold")
    for trial in trials:
        values = (short(trial.drawn[n]) if n in trial.drawn else "" for n in names)
        shown.add_row(trial.name, str(trial.seed), *values)
    console(160).print(shown)
    if unknown:
        print_result(f"and {unknown} more, which TPE draws from the results of those before")
    _print_cost(search, trials, len(trials) + unknown)


def _foreseen(search: Search) -> tuple[list[Trial], int]:
    """The trials that can be said before any has ended, and the number of the others."""
    plan = planned(search.space, search.trials, search.seed)
    known = len(plan)
    if search.space.algorithm == "tpe":
        given = len(search.space.points_to_evaluate)
        known = min(known, max(given, search.space.startup_trials))
    trials: list[Trial] = []
    for point, seed in plan[:known]:
        drawn = sample_settings(search.space, point, seed, trials)
        if drawn is None:
            return trials, 0
        trials.append(Trial(len(trials), drawn, seed))
    return trials, len(plan) - known


def _print_cost(search: Search, trials: list[Trial], count: int) -> None:
    start_ray()
    at_once = search.at_once()
    configs = [build_experiment(search.space.complete(t.drawn), t.name) for t in trials]
    epochs = [one.epochs if one.is_trained else 0 for one in configs]
    measured = trials[next((n for n, count in enumerate(epochs) if count), 0)]
    speed = _measure(search, measured)
    counts = Manifest.load(search.cache).counts
    steps = [
        math.ceil(counts["train"] / one.batch_size) * count
        for one, count in zip(configs, epochs, strict=True)
    ]
    # An evaluation after every epoch, and one of the chosen weights.
    evaluations = statistics.mean(epochs) + 1
    seconds = statistics.mean(steps) * speed.step_seconds
    seconds += evaluations * counts["val"] * speed.clip_seconds
    total = (count * seconds + at_once * speed.start_seconds) / at_once
    print_result(
        f"measured here, by {_STEPS - 2} steps of {measured.name} and {_CLIPS} validation clips, "
        f"nothing else of this sweep running: {speed.step_seconds:.3g} s a step, "
        f"{speed.clip_seconds:.3g} s a clip evaluated, {speed.start_seconds:.3g} s to load"
    )
    print_result(
        f"a trial: about {statistics.mean(steps):.0f} steps, {_duration(seconds)}; "
        f"{count} trials, {at_once} at once: about {_duration(total)}"
        + (", less what ASHA saves by stopping" if search.space.scheduler else "")
    )
    if at_once > 1 and not search.resources.gpus_per_worker:
        print_result("trials beside each other share the machine's memory bandwidth: expect more")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _measure(search: Search, trial: Trial) -> Speed:
    """In a Ray task with the resources of a worker, so on a machine that would train."""
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
    from stop_core.runtime.seeding import seed_weights
    from stop_core.training.clip_views import ShownClips
    from stop_core.training.objectives import make_objective
    from stop_core.training.trainer import Trainer

    torch.set_num_threads(max(1, int(task.resources.cpus_per_worker)))
    config = task.training(trial.drawn, trial.seed).config
    device = torch.device("cuda" if task.resources.gpus_per_worker else "cpu")
    began = time.perf_counter()
    cache = FrameCache(task.cache)
    seed_weights(config.seed)
    clip = load_clip(config.tower, config.pretrained)
    model = build_method(config, clip, len(cache.manifest.class_names)).to(device)
    splits = {
        name: ShownClips(cache.split(name), config, model.image_size) for name in ("train", "val")
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
    return Speed(statistics.median(steps[2:] or steps), evaluated, loaded)
