"""Runs many trainings at once, as many as fit into the cluster."""

from dataclasses import dataclass

import ray

from ..cli.console import reporting, say, warn
from ..cli.progress_bar import Pace
from ..cluster.resources import Resources, room_for, waited_for
from .failures import root_cause
from .result import TrainingResult
from .run import TrainingRun


@dataclass(frozen=True)
class Job:
    """A training, and its label on the terminal and in MLflow."""

    training: TrainingRun
    label: str


def run_all(jobs: list[Job], resources: Resources, parent: str) -> list[TrainingResult | str]:
    """Returns each job's result, or the reason of its failure; a failure does not stop the others.

    Finished trainings are not run again. `parent` is the MLflow run id above the new runs.
    """
    outcomes: list[TrainingResult | str] = [job.training.remembered() or "" for job in jobs]
    # From the end: tables list the cheap baselines first, and a long training that starts last
    # leaves the other CPUs idle.
    queue = [number for number, outcome in enumerate(outcomes) if outcome == ""][::-1]
    if not queue:
        return outcomes
    total, room, pace = len(queue), room_for(resources), Pace()
    running: dict[ray.ObjectRef[TrainingResult], int] = {}

    def line() -> str | None:
        current = [jobs[number] for number in list(running.values())]
        progress = [job.training.progress_file.read() for job in current]
        if not any(progress):
            return waited_for(resources) or "the trainings load the model and the data"
        shares = [one.step / one.total if one and one.total else 0.0 for one in progress]
        finished = total - len(queue) - len(current) + sum(shares)
        left = pace.left(finished, total) if finished else ""
        parts = (f"{job.label} {share:.0%}" for job, share in zip(current, shares, strict=True))
        return f"{finished:.1f} of {total} trainings{left}: {'; '.join(parts)}"

    with reporting(line):
        while queue or running:
            while queue and len(running) < room:
                number = queue.pop(0)
                running[_submit(jobs[number], resources, parent)] = number
            ready, _ = ray.wait(list(running), timeout=1)
            for reference in ready:
                number = running.pop(reference)
                outcomes[number] = _outcome(reference, jobs[number].label)
    return outcomes


def _submit(job: Job, resources: Resources, parent: str) -> "ray.ObjectRef[TrainingResult]":
    """Starts a training: in a Ray task, or for several workers under Ray Train."""
    # A task that only waits for the workers of Ray Train reserves none of their CPUs.
    one = resources.workers == 1
    task = _train.options(
        num_cpus=resources.cpus_per_worker if one else 0,
        num_gpus=resources.gpus_per_worker if one else 0,
        max_retries=resources.restarts,
    )
    reference: ray.ObjectRef[TrainingResult] = task.remote(job, resources, parent)
    return reference


@ray.remote
def _train(job: Job, resources: Resources, parent: str) -> TrainingResult:
    return job.training.train(resources, parent, job.label, in_process=resources.workers == 1)


def _outcome(reference: "ray.ObjectRef[TrainingResult]", label: str) -> TrainingResult | str:
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as problem:
        warn(f"{label} failed: {root_cause(problem)}")
        return root_cause(problem)
    names = ("val/top1", "test/top1", "val/t2v_r1", "test/t2v_r1", "test/harmonic_mean")
    metrics = [f"{name} {result.metrics[name]:.4f}" for name in names if name in result.metrics]
    say(f"{label}: {'; '.join([', '.join(metrics), *result.problems])}")
    return result
