"""A search over settings with Ray Tune, whose trials are trainings that survive a kill.

A trial is named by its settings, like any training. A search that is run again draws the same
settings from its seed, finds the finished trials remembered, and goes on with the others.
"""

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console
from rich.table import Table

from pipelines.command_line import RunError
from pipelines.many_runs import room_for
from pipelines.progress import say, told
from pipelines.tracking import TrackedRun, open_experiment
from pipelines.training_run import RUN_ID, Resources, TrainingRun, root_cause
from stop_core.cache.files import write_whole
from stop_core.cache.manifest import Manifest
from stop_core.storage import StoragePath
from sweeps.reading import OBJECTIVES, Distribution, SearchSpace, build_experiment

# A trial of several workers only waits for them. Reserving a CPU for the waiting would starve them
# on a small machine, and Tune refuses to reserve nothing.
_WAITING = {"memory": 64 * 2**20}


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    trials: pd.DataFrame
    best_file: Path


@dataclass(frozen=True)
class Search:
    """A search that may not have begun, may be half done, or may be finished."""

    space: SearchSpace
    title: str
    trials: int
    seed: int
    cache: StoragePath
    output: Path
    resources: Resources

    def run(self) -> SearchResult:
        """Runs the trials that are not remembered, and tells which settings were best.

        Raises:
            RunError: if no trial succeeded; the message gives the reason of the first failure.
        """
        self._check()
        tracked = self._track()
        say(f"{self.name}: {self._planned()} trials by random draws and grids, seed {self.seed}")
        with tracked.ended():
            with told(self._line):
                grid = self._tuner(tracked).fit()
            frame = self._frame(grid)
            unfinished = self._planned() - len(frame)
            if unfinished > 0:  # Tune takes a Ctrl-C for itself, and returns what there is
                raise KeyboardInterrupt
            result = self._publish(grid, frame, tracked)
            if failed := int((frame["failure"] != "").sum()):
                raise RunError(
                    f"{failed} of {len(frame)} trials failed, the reasons are in {self.folder}/"
                    "trials.csv; the same command tries them again"
                )
        return result

    def _check(self) -> None:
        """Refuses a space that does not fit the data or the tower, before anything starts."""
        origin = f"space {self.title}"
        task = Manifest.load(self.cache).task
        if self.space.objective not in OBJECTIVES[task]:
            raise ValueError(
                f"{origin}: objective is {self.space.objective}, but {self.cache} is for {task}; "
                f"use one of {', '.join(OBJECTIVES[task])}"
            )
        for name, distribution in self.space.search.items():
            for value in distribution.values:
                experiment = build_experiment({**self.space.fixed, name: value}, origin)
                TrainingRun(experiment, self.cache, self.output, test=False)

    @property
    def dataset(self) -> str:
        """Name of the dataset that is searched on."""
        return Manifest.load(self.cache).dataset

    @property
    def name(self) -> str:
        """The identity of the search: its space, its data and its seed."""
        data_hash = Manifest.load(self.cache).data_hash
        what = [asdict(self.space), self.trials, self.seed, data_hash]
        identity = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.dataset}-{self.title}-{identity}"

    @property
    def folder(self) -> Path:
        """Where the search keeps its results."""
        return self.output / "sweeps" / self.name

    def _track(self) -> TrackedRun:
        experiment = open_experiment(self.output, self.dataset)
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self.folder / RUN_ID
        tracked = TrackedRun.start(
            self.output,
            experiment,
            f"sweep {self.title}, seed {self.seed}",
            run_id=known.read_text() if known.is_file() else None,
            tags={"kind": "sweep", "dataset": self.dataset},
        )
        write_whole(known, tracked.run_id)
        tracked.log_params({"trials": self.trials, "seed": self.seed, "space": self.title})
        tracked.log_json(asdict(self.space), "space.json")
        return tracked

    def _tuner(self, tracked: TrackedRun) -> tune.Tuner:
        trial = functools.partial(_run_trial, search=self, parent=tracked.run_id)
        trial.__name__ = "trial"  # type: ignore[attr-defined]  # Tune asks for it
        return tune.Tuner(
            tune.with_resources(trial, self._trial_resources()),
            param_space={name: _for_tune(d) for name, d in self.space.search.items()},
            tune_config=tune.TuneConfig(
                metric=self.space.objective,
                mode="max",
                num_samples=self.trials,
                max_concurrent_trials=room_for(self.resources),
                search_alg=BasicVariantGenerator(random_state=self.seed),
                trial_name_creator=lambda one: f"trial-{one.trial_id}",
                trial_dirname_creator=lambda one: f"trial-{one.trial_id}",
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(self.folder), verbose=0, callbacks=[]
            ),
        )

    def _trial_resources(self) -> dict[str, float]:
        if not self.resources.one_worker:
            return dict(_WAITING)
        return {"CPU": self.resources.cpus_per_worker, "GPU": self.resources.gpus_per_worker}

    def _planned(self) -> int:
        grids = [d.values for d in self.space.search.values() if d.kind == "grid"]
        return self.trials * functools.reduce(lambda n, values: n * len(values), grids, 1)

    def _line(self) -> str:
        done = sorted(self.folder.glob("trial-*.json"))
        best = max((json.loads(f.read_text())["objective"] for f in done), default=None)
        so_far = f", best {self.space.objective} {best:.4f}" if best is not None else ""
        return f"{len(done)} of {self._planned()} trials done{so_far}"

    def _frame(self, grid: tune.ResultGrid) -> pd.DataFrame:
        """A row a trial: its settings, its validation measures, or why it failed."""
        rows = []
        for result in grid:
            measures = {k: v for k, v in (result.metrics or {}).items() if k.startswith("val/")}
            if not measures and not result.error:
                continue  # it had no time to end
            failure = root_cause(result.error) if result.error else ""
            rows.append({**(result.config or {}), **measures, "failure": failure})
        # As objects: a column of numbers would turn None and whole numbers into floats.
        frame = pd.DataFrame(rows, dtype=object)
        if frame.empty:
            raise KeyboardInterrupt
        if self.space.objective not in frame or frame[self.space.objective].isna().all():
            reason = frame["failure"].iloc[0] or f"no trial measured {self.space.objective}"
            raise RunError(f"none of the {len(frame)} trials succeeded; the first: {reason}")
        return frame.sort_values(self.space.objective, ascending=False, ignore_index=True)

    def _publish(
        self, grid: tune.ResultGrid, frame: pd.DataFrame, tracked: TrackedRun
    ) -> SearchResult:
        """Prints and stores the trials, and the best settings as a file for train.py."""
        best = grid.get_best_result(self.space.objective, "max").config or {}
        experiment = build_experiment({**self.space.fixed, **best, "seed": self.seed}, "best trial")
        best_file = self.folder / "best.yaml"
        settings = {"cache": str(self.cache), **experiment.parameters()}
        write_whole(best_file, yaml.safe_dump(settings, sort_keys=False))
        write_whole(self.folder / "trials.csv", frame.to_csv(index=False))
        for name in ("best.yaml", "trials.csv"):
            tracked.log_file(self.folder / name)
        tracked.log_table({name: frame[name].tolist() for name in frame}, "trials.json")
        tracked.log_metrics({f"best/{self.space.objective}": frame[self.space.objective].iloc[0]})
        _print(frame, list(self.space.search), self.space.objective)
        return SearchResult(frame, best_file)


def _run_trial(config: dict[str, Any], search: Search, parent: str) -> None:
    """One trial: a training without its test, reported to Tune when it is done."""
    settings = {**search.space.fixed, **config, "seed": search.seed}
    experiment = build_experiment(settings, "trial")
    training = TrainingRun(experiment, search.cache, search.output, test=False)
    shown = ", ".join(f"{name} {_short(value)}" for name, value in config.items())
    alone = search.resources.one_worker
    result = training.train(search.resources, parent, f"trial: {shown}", here=alone)
    note = {"objective": result.metrics[search.space.objective], "settings": config}
    write_whole(search.folder / f"trial-{training.name}.json", json.dumps(note))
    tune.report(result.metrics)


def _for_tune(distribution: Distribution) -> Any:
    """The same distribution in Tune's terms."""
    values = distribution.values
    match distribution.kind:
        case "choice":
            return tune.choice(list(values))
        case "grid":
            return tune.grid_search(list(values))
        case "uniform":
            return tune.uniform(*values)
        case "loguniform":
            return tune.loguniform(*values)
        case "randint":
            return tune.randint(values[0], values[1] + 1)  # Tune leaves the upper bound out
    raise ValueError(f"there is no distribution called {distribution.kind}")


def _print(frame: pd.DataFrame, settings: list[str], objective: str) -> None:
    shown = Table(title="trials, best first (validation data)", title_justify="left")
    for name in (objective, *settings, "failure"):
        shown.add_column(name, justify="right", overflow="fold")
    for row in frame.to_dict("records"):
        shown.add_row(*(_short(row[name]) for name in (objective, *settings, "failure")))
    Console(width=None if Console().is_terminal else 140).print(shown)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
