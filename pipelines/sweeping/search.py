"""A search over settings with Ray Tune, whose trials are trainings that survive a kill.

    <output>/sweeps/<name>/trials/       what is known of every trial; all else follows from it
    <output>/sweeps/<name>/report.md     and what it shows, once the trials have ended
    <output>/runs/<trial's training>/    checkpoints and result of a trial

The name of a sweep is its space, its data and its seed. The same command again, whatever was
killed, keeps the trials that have ended, goes on with those that had begun, and draws the others.
More `trials` go on with the same sweep.
"""

import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from stop_core.cache.manifest import Manifest
from stop_core.clip.pretrained import weights_fingerprint
from stop_core.clip.shared import ClipCache
from stop_core.storage.paths import StoragePath

from ..cli.console import reporting, say
from ..cli.errors import RunError
from ..cli.folder_lock import alone_in
from ..cli.progress_bar import Pace
from ..cluster.resources import Resources
from ..cluster.room import room_for
from ..cluster.session import start_ray
from ..tracking.direct_run import TrackedRun
from ..tracking.outbox import Courier
from ..tracking.queued_run import QueuedRun, deliver_waiting
from ..tracking.store import open_experiment, tracking_uri
from ..training.result import RESULT_VERSION
from .space import (
    SWEEP_COSTS,
    SWEEP_MEASURES,
    SearchSpace,
    check_possible,
    is_minimised,
)
from .trial_worker import TrialTask, run_trial
from .trials import Trial, Trials
from .tune import Driver, Failures, NotedAsha

# A trial of several workers only waits for them. Reserving a CPU for the waiting would starve them
# on a small machine, and Tune refuses to reserve nothing.
_WAITING = {"memory": 64 * 2**20}
_LONG_TRIAL = 600.0  # seconds: none may end for a while, and all is well
_QUIET = {"RAY_AIR_NEW_OUTPUT": "0"}  # otherwise Tune prints where its own files lie


@dataclass(frozen=True)
class Search:
    """A search that may not have begun, may be half done, or may be finished."""

    space: SearchSpace
    title: str
    trials: int | None
    """Draws; None for as many as the space says."""
    seed: int
    cache: StoragePath
    output: Path
    resources: Resources
    max_concurrent: int | None = None
    """Trials at once; None for as many as there is room for."""
    retry_failed: bool = False

    @contextmanager
    def opened(self) -> Iterator[tuple[Trials, TrackedRun]]:
        """The trials that there are and the sweep's MLflow run; nobody else has them meanwhile.

        Raises:
            ValueError: if the space does not fit the data or the tower.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder):
            trials = Trials(self.folder, self.space.seeds)
            if self.retry_failed:
                _revive(trials)
            tracked = self._track()
            with tracked.ended():
                yield trials, tracked

    def run(self, trials: Trials, tracked: TrackedRun) -> None:
        """Runs the trials that have not ended.

        Raises:
            RunError: if no point succeeded; the message gives the reason of the first failure.
        """
        self._run(trials, tracked)
        if not trials.ranked(self.space.objectives[0]):
            reasons = [trial.reason for trial in trials.all if trial.reason]
            reason = reasons[0] if reasons else f"none measured {self.space.objectives[0]}"
            remedy = "Mend it, and add --retry-failed to the same command"
            if trials.seeds > 1 and any(trial.state == "finished" for trial in trials.all):
                raise RunError(
                    f"no settings succeeded with all their seeds; the first failure: {reason}. "
                    + remedy
                )
            raise RunError(
                f"none of the {len(trials.all)} trials succeeded; the first: {reason}. {remedy}"
            )

    def check(self) -> None:
        """Refuses a space that does not fit the data or the tower, before anything starts.

        Raises:
            ValueError: which says what does not fit.
        """
        task = Manifest.load(self.cache).task
        for objective in self.space.objectives:
            if objective not in (*SWEEP_MEASURES[task], *SWEEP_COSTS):
                raise ValueError(
                    f"space {self.title}: objective is {objective}, but {self.cache} is for "
                    f"{task}; use one of {', '.join(SWEEP_MEASURES[task])}"
                )

        def fits(point: dict[str, Any]) -> None:
            self.task.training(point, self.seed)

        for name, distribution in self.space.search.items():
            for value in distribution.examples():
                check_possible(fits, {name: value}, self.space.around, self.space.search)

    @property
    def dataset(self) -> str:
        """Name of the dataset that is searched on."""
        return Manifest.load(self.cache).dataset

    @functools.cached_property  # local weights may be large, and are not to change meanwhile
    def identity(self) -> str:
        """Eight hex digits of everything that decides the trials, but for how many there are."""
        space = asdict(replace(self.space, trials=None))
        what = [space, self.seed, Manifest.load(self.cache).data_hash, RESULT_VERSION]
        what += self._weights()
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    def _weights(self) -> list[str]:
        """Fingerprints of the local weights that trials may have."""
        towers, pretrained = (self.space.possible(name) for name in ("tower", "pretrained"))
        found = itertools.starmap(weights_fingerprint, itertools.product(towers, pretrained))
        return [fingerprint for fingerprint in found if fingerprint]

    @property
    def name(self) -> str:
        """The identity of the search, with what a person knows it by."""
        return f"{self.dataset}-{self.title}-{self.identity}"

    @property
    def folder(self) -> Path:
        """Where the search keeps its results."""
        return self.output / "sweeps" / self.name

    @property
    def task(self) -> TrialTask:
        """What its trials have in common."""
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
            for name, value in _QUIET.items():
                os.environ.setdefault(name, value)
            start_ray()
            say(self._beginning(driver))
            pace = Pace(shortest_pause=_LONG_TRIAL)
            with reporting(
                lambda: self._line(driver) + pace.left(len(trials.ended()), driver.most)
            ):
                self._tuner(driver).fit()
            if not driver.is_done:  # Tune takes a Ctrl-C for itself, and returns
                raise KeyboardInterrupt
            if driver.exhausted:
                say(f"after {len(trials.all)} trials, the space has no settings left to try")
        finally:
            courier.close()

    def driver(self, trials: Trials, run_id: str, courier: Courier | None = None) -> Driver:
        """What gives Tune the next trial; `run_id` is that of the sweep in MLflow."""

        def ended(trial: Trial) -> None:
            self._mark(trial)
            if courier:
                courier.call()

        task = replace(self.task, parent=run_id)
        return Driver(task, trials, self.trials, self.seed, ended)

    def _mark(self, trial: Trial) -> None:
        """Tells the trial's own MLflow run what has become of it."""
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

    def _tuner(self, driver: Driver) -> tune.Tuner:
        # What Tune writes is of no use to anybody after a kill: all is in the trials on disk.
        shutil.rmtree(self.folder / "tune", ignore_errors=True)
        trial = functools.partial(run_trial, task=driver.task, keeper=ClipCache())
        trial.__name__ = "trial"  # type: ignore[attr-defined]  # Tune asks for it
        return tune.Tuner(
            tune.with_resources(trial, self._trial_resources()),
            tune_config=tune.TuneConfig(
                search_alg=driver,
                scheduler=self._scheduler(driver),
                num_samples=driver.most + 1,  # the driver ends it
                max_concurrent_trials=self.at_once(),
                reuse_actors=True,  # a process that has the tower already takes the next trial
                trial_name_creator=lambda one: str(one.config["name"]),
                trial_dirname_creator=lambda one: str(one.config["name"]),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.folder),
                verbose=0,
                callbacks=[Failures(driver)],
                failure_config=tune.FailureConfig(max_failures=self.resources.restarts),
            ),
        )

    def _scheduler(self, driver: Driver) -> TrialScheduler:
        asha = self.space.scheduler
        return NotedAsha(driver, asha) if asha else FIFOScheduler()

    def at_once(self) -> int:
        """How many trials run beside each other; asks the cluster."""
        room = room_for(self.resources)
        return min(room, self.max_concurrent) if self.max_concurrent else room

    def _trial_resources(self) -> dict[str, float]:
        if not self.resources.one_worker:
            return dict(_WAITING)
        return {"CPU": self.resources.cpus_per_worker, "GPU": self.resources.gpus_per_worker}

    def _beginning(self, driver: Driver) -> str:
        ended, begun = len(driver.trials.ended()), len(driver.trials.unfinished())
        line = f"{self.name}: {driver.most} trials by {self.space.algorithm}"
        line += f"{' and ASHA' if self.space.scheduler else ''}, seed {self.seed}"
        line += f", {self.at_once()} at once"
        if ended or begun:
            line += f"; {ended} have ended before, {begun} go on"
        return line

    def _line(self, driver: Driver) -> str:
        objective, trials = self.space.objectives[0], driver.trials
        counts = {state: 0 for state in ("finished", "stopped early", "failed")}
        for trial in trials.ended():
            counts[trial.state] += 1
        line = f"{len(trials.ended())} of {driver.most} trials ended ("
        line += ", ".join(f"{count} {state}" for state, count in counts.items()) + ")"
        if ranked := trials.ranked(objective):
            word = "least" if is_minimised(objective) else "best"
            line += f", {word} {objective} {ranked[0].value(objective):.4f} ({ranked[0].name})"
        return line


def _revive(trials: Trials) -> None:
    """Lets the failed trials begin again, each from its last checkpoint."""
    for trial in trials.all:
        if trial.state == "failed" and trial.run:
            trial.state, trial.reason = "running", ""
            trials.save(trial)
