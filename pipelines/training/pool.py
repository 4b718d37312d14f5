"""Runs many trainings at once, as many as the cluster has room for."""

from dataclasses import dataclass

import ray

from ..cli.console import reporting, say
from ..cli.progress_bar import Pace
from ..cluster.resources import Resources
from ..cluster.room import room_for
from .failures import root_cause
from .result import TrainingResult
from .run import TrainingRun


@dataclass(frozen=True)
class Job:
    """A training, and what to call it on the screen and in MLflow."""

    training: TrainingRun
    label: str


def run_all(jobs: list[Job], resources: Resources, parent: str) -> list[TrainingResult | str]:
    """Returns each job's result, or the reason why it failed; one failure does not stop the rest.

    Args:
        jobs: the trainings; those remembered from before are not run.
        resources: of each training.
        parent: MLflow run id that the new runs are nested under.
    """
    outcomes: list[TrainingResult | str] = [job.training.remembered() or "" for job in jobs]
    waiting = [number for number, outcome in enumerate(outcomes) if outcome == ""]
    if not waiting:
        return outcomes
    # From the end: tables list the cheap baselines first, and a long training that starts last
    # leaves the other CPUs idle.
    queue, room, pace = waiting[::-1], room_for(resources), Pace()
    running: dict[ray.ObjectRef, int] = {}
    with reporting(lambda: _line(jobs, running, outcomes, waiting, pace)):
        while queue or running:
            while queue and len(running) < room:
                number = queue.pop(0)
                running[_submit(jobs[number], resources, parent)] = number
            ready, _ = ray.wait(list(running), timeout=1)
            for reference in ready:
                number = running.pop(reference)
                outcomes[number] = _outcome(reference, jobs[number].label)
    return outcomes


def _submit(job: Job, resources: Resources, parent: str) -> "ray.ObjectRef":
    """Starts a training: in a Ray task, or for several workers under Ray Train."""
    # A task that waits for workers takes no CPU from them.
    alone = resources.one_worker
    task = _train.options(
        num_cpus=resources.cpus_per_worker if alone else 0,
        num_gpus=resources.gpus_per_worker if alone else 0,
        max_retries=resources.restarts,
    )
    reference: ray.ObjectRef = task.remote(job, resources, parent)
    return reference


@ray.remote
def _train(job: Job, resources: Resources, parent: str) -> TrainingResult:
    return job.training.train(resources, parent, job.label, here=resources.one_worker)


def _outcome(reference: "ray.ObjectRef", label: str) -> TrainingResult | str:
    try:
        result: TrainingResult = ray.get(reference)
    except ray.exceptions.RayError as problem:
        say(f"{label} failed: {root_cause(problem)}")
        return root_cause(problem)
    measures = ("val/top1", "test/top1", "val/t2v_r1", "test/t2v_r1")
    shown = [f"{name} {result.metrics[name]:.4f}" for name in measures if name in result.metrics]
    say(f"{label}: {'; '.join([', '.join(shown), *result.problems])}")
    return result


def _line(
    jobs: list[Job],
    running: "dict[ray.ObjectRef, int]",
    outcomes: list[TrainingResult | str],
    waiting: list[int],
    pace: Pace,
) -> str:
    """How far all of it is, in one line."""
    done = sum(1 for number in waiting if outcomes[number] != "")
    parts = []
    for number in list(running.values()):
        progress = jobs[number].training.progress_file.read()
        share = progress.step / progress.total if progress and progress.total else 0.0
        done += share
        parts.append(f"{jobs[number].label} {share:.0%}")
    left = pace.left(done, len(waiting)) if done else ""
    return f"{done:.1f} of {len(waiting)} trainings{left}: {'; '.join(parts)}"
