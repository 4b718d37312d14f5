"""A search over settings with Ray Tune, whose trials are trainings that can be resumed.

    <output>/sweeps/<name>/trials/       the record of every trial, from which a sweep resumes
    <output>/sweeps/<name>/report.md     the report, once the trials have ended
    <output>/runs/<trial's training>/    checkpoints and result of a trial

The name of a sweep follows from its space, its data and its seed. The same command, after any
interruption, keeps the trials that have ended, resumes those that had started, and draws the
others. More `trials` extend the same sweep.
"""

import functools
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from ray import tune

from stop_core.cache.manifest import Manifest
from stop_core.clip.loading import ClipCache
from stop_core.clip.pretrained import weights_fingerprint
from stop_core.storage.paths import StoragePath

from ..cli.console import RunError, reporting, say
from ..cli.folders import alone_in
from ..cli.progress_bar import Pace
from ..cluster.resources import Resources, room_for
from ..cluster.session import start_ray
from ..tracking.direct_run import TrackedRun
from ..tracking.outbox import Courier
from ..tracking.queued_run import QueuedRun, deliver_waiting
from ..tracking.store import open_experiment, tracking_uri
from ..training.result import RESULT_VERSION
from .space import (
    BASE_MEASURE,
    SWEEP_COSTS,
    SWEEP_MEASURES,
    SearchSpace,
    check_possible,
    is_minimised,
)
from .trial_worker import TrialTask, run_trial
from .trials import ENDS, Trial, Trials
from .tune import Driver, Failures, NotedAsha

# A trial of several workers only waits for them. Reserving a CPU for it would leave too few for the
# workers on a small machine, and Tune refuses to reserve nothing.
_WAITING = {"memory": 64.0 * 2**20}
_LONG_TRIAL = 600.0  # seconds in which no trial ends, although all is well


@dataclass(frozen=True)
class Search:
    """A search that has not started, is unfinished, or has finished."""

    space: SearchSpace
    title: str
    trials: int | None
    """Number of draws; None: the number of the space."""
    seed: int
    cache: StoragePath
    output: StoragePath
    resources: Resources
    max_concurrent: int | None = None
    """Number of concurrent trials; None: as many as the cluster has room for."""
    retry_failed: bool = False

    @contextmanager
    def opened(self) -> Iterator[tuple[Trials, TrackedRun]]:
        """Yields the trials on disk and the sweep's MLflow run, and locks the folder meanwhile."""
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder):
            trials = Trials(self.folder, self.space.seeds)
            if self.retry_failed:
                for trial in trials.in_state("failed"):
                    if trial.run:  # resumes from its last checkpoint
                        trial.state, trial.reason = "running", ""
                        trials.save(trial)
            tracked = self._track()
            with tracked.ended():
                yield trials, tracked

    def run(self, trials: Trials, tracked: TrackedRun) -> None:
        """Runs the trials that have not ended; raises RunError if no settings succeeded."""
        self._run(trials, tracked)
        if trials.ranked(self.space.objectives[0]):
            return
        reasons = [trial.reason for trial in trials.all if trial.reason]
        reason = reasons[0] if reasons else f"none measured {self.space.objectives[0]}"
        problem = f"none of the {len(trials.all)} trials succeeded; the first"
        if trials.seeds > 1 and trials.in_state("finished"):
            problem = "no settings succeeded with all their seeds; the first failure"
        raise RunError(f"{problem}: {reason}. Fix it, and add --retry-failed to the same command")

    def check(self) -> None:
        """Raises ValueError if a setting or objective does not fit the data or the tower."""
        task = Manifest.load(self.cache).task
        for objective in self.space.objectives:
            if objective not in (*SWEEP_MEASURES[task], *SWEEP_COSTS):
                raise ValueError(
                    f"space {self.title}: objective is {objective}, but {self.cache} is for "
                    f"{task}; use one of {', '.join(SWEEP_MEASURES[task])}"
                )

        def build(point: dict[str, Any]) -> None:
            classes = self.task.training(point, self.seed).config.protocol.classes
            for objective in self.space.objectives:
                is_of_base = objective == BASE_MEASURE
                if objective.startswith("val/") and is_of_base != (classes == "base"):
                    raise ValueError(
                        f"objective is {objective}, which trainings with classes {classes} do not "
                        f"measure; use {BASE_MEASURE if classes == 'base' else 'val/top1'}"
                    )

        for name, distribution in self.space.search.items():
            for value in distribution.examples():
                check_possible(build, {name: value}, self.space.around, self.space.search)

    @property
    def dataset(self) -> str:
        """Name of the dataset of the trials."""
        return Manifest.load(self.cache).dataset

    @functools.cached_property  # hashing local weights can be slow, and must give one result
    def identity(self) -> str:
        """Eight hex digits of everything that decides the trials, except their number."""
        space = asdict(replace(self.space, trials=None))
        towers, pretrained = (self.space.possible(name) for name in ("tower", "pretrained"))
        weights = itertools.starmap(weights_fingerprint, itertools.product(towers, pretrained))
        facts = [space, self.seed, Manifest.load(self.cache).data_hash, RESULT_VERSION]
        facts += [fingerprint for fingerprint in weights if fingerprint]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Dataset, title and identity of the search."""
        return f"{self.dataset}-{self.title}-{self.identity}"

    @property
    def folder(self) -> StoragePath:
        """Folder of the results."""
        return self.output / "sweeps" / self.name

    @property
    def task(self) -> TrialTask:
        """The part that the trials share."""
        return TrialTask(self.identity, self.space, self.cache, self.output, self.resources)

    def _track(self) -> TrackedRun:
        experiment = open_experiment(self.output, self.dataset)
        tracked = TrackedRun.of_folder(
            self.folder,
            self.output,
            experiment,
            f"sweep {self.title}, seed {self.seed}",
            {"kind": "sweep", "dataset": self.dataset, "sweep": self.name},
        )
        tracked.log_params(
            {
                "seed": self.seed,
                "space": self.title,
                "algorithm": self.space.algorithm,
                "scheduler": "asha" if self.space.scheduler else "none",
                "objective": ", ".join(self.space.objectives),
            }
        )
        tracked.log_json(asdict(self.space), "space.json")
        return tracked

    def _run(self, trials: Trials, tracked: TrackedRun) -> None:
        courier = Courier(functools.partial(deliver_waiting, self.output))
        try:
            driver = self.driver(trials, tracked.run_id, courier)
            if driver.is_done:
                say(f"{self.name}: all {len(trials.all)} trials have ended before")
                return
            # Otherwise Tune prints where its temporary files are.
            os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
            start_ray(self.output, self.cache, records=True)
            ended, started = len(trials.in_state(*ENDS)), len(trials.in_state("running"))
            say(
                f"{self.name}: {driver.most} trials by {self.space.algorithm}"
                f"{' and ASHA' if self.space.scheduler else ''}, seed {self.seed}"
                f", {self.at_once()} at once"
                + (f"; {ended} have ended before, {started} resume" if trials.all else "")
            )
            pace = Pace(shortest_pause=_LONG_TRIAL)
            # A sweep resumes from the trials in its folder, and never from the files of Tune.
            with (
                tempfile.TemporaryDirectory(prefix="stop-tune-") as files,
                reporting(
                    lambda: self._line(driver) + pace.left(len(trials.in_state(*ENDS)), driver.most)
                ),
            ):
                self._tuner(driver, files).fit()
            if not driver.is_done:  # Tune catches Ctrl-C, and returns
                raise KeyboardInterrupt
            if driver.exhausted:
                say(f"after {len(trials.all)} trials, the space has no settings left to try")
        finally:
            courier.close()

    def driver(self, trials: Trials, run_id: str, courier: Courier | None = None) -> Driver:
        """Returns the part that gives Tune the next trial; the courier sends records."""

        def ended(trial: Trial) -> None:
            say(self._ended_line(trial, trials))
            self._mark(trial)
            if courier:
                courier.call()

        task = replace(self.task, parent=run_id)
        return Driver(task, trials, self.trials, self.seed, ended)

    def _mark(self, trial: Trial) -> None:
        folder = self.output / "runs" / trial.run
        if not trial.run or not folder.is_dir():
            return  # it failed before it had one
        run = QueuedRun(folder, tracking_uri(self.output))
        tags = {"trial": trial.name, "sweep": self.name, "state": trial.state}
        if trial.state == "stopped early":
            tags["stopped_after_epoch"] = str(trial.epochs)
        run.set_tags(tags)
        if trial.state == "stopped early":
            run.finish("KILLED")

    def _tuner(self, driver: Driver, files: str) -> tune.Tuner:
        task, keeper, worker = driver.task, ClipCache(), self.resources

        def trial(config: dict[str, Any]) -> None:
            run_trial(config, task, keeper)

        own = {"CPU": worker.cpus_per_worker, "GPU": worker.gpus_per_worker}
        asha = self.space.scheduler
        return tune.Tuner(
            tune.with_resources(trial, own if worker.workers == 1 else _WAITING),
            tune_config=tune.TuneConfig(
                search_alg=driver,
                scheduler=NotedAsha(driver, asha) if asha else None,
                num_samples=driver.most + 1,  # the driver ends the search before
                max_concurrent_trials=self.at_once(),
                reuse_actors=True,  # the next trial runs in a process that has loaded the tower
                trial_name_creator=lambda one: str(one.config["name"]),
                trial_dirname_creator=lambda one: str(one.config["name"]),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=files,
                verbose=0,
                callbacks=[Failures(driver)],
                failure_config=tune.FailureConfig(max_failures=worker.restarts),
            ),
        )

    def at_once(self) -> int:
        """Returns the number of concurrent trials; asks the cluster."""
        room = room_for(self.resources)
        return min(room, self.max_concurrent or room)

    def _ended_line(self, trial: Trial, trials: Trials) -> str:
        objective = self.space.objectives[0]
        value, ranked = trial.value(objective), trials.ranked(objective)
        parts = [trial.reason] if value is None else [f"{objective} {value:.4f}"]
        parts += ["the best so far"] if ranked and trial in ranked[0].trials else []
        return f"{trial.name} {trial.state} at epoch {trial.epochs}: {', '.join(parts)}"

    def _line(self, driver: Driver) -> str:
        objective, trials = self.space.objectives[0], driver.trials
        line = f"{len(trials.in_state(*ENDS))} of {driver.most} trials ended"
        for state in ENDS[1:]:
            line += f", {count} {state}" if (count := len(trials.in_state(state))) else ""
        if ranked := trials.ranked(objective):
            word = "least" if is_minimised(objective) else "best"
            line += f", {word} {objective} {ranked[0].value(objective):.4f} ({ranked[0].name})"
        return line
