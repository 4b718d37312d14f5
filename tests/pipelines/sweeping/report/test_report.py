"""The report of a sweep says what is on disk now, and its commands do what they say."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import yaml

from pipelines.cli.options import parse
from pipelines.cluster.resources import Resources
from pipelines.sweeping.confirm import CONFIRMATION, confirm
from pipelines.sweeping.report.analysis import sensitivity
from pipelines.sweeping.report.report import REPORT, Report
from pipelines.sweeping.results import BEST, PARETO, TRIALS, SweepResult, write_results
from pipelines.sweeping.search import Search
from pipelines.sweeping.space import Asha, Distribution, SearchSpace
from pipelines.sweeping.trials import Trial, Trials
from pipelines.tracking.direct_run import TrackedRun
from pipelines.train import TrainConfig
from pipelines.training.task import PREDICTIONS
from stop_core.cache import CacheConfig, Manifest
from stop_core.cache.files import CACHE_FORMAT, write_checked_json
from stop_core.cache.manifest import ShardEntry
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised

SPACE = SearchSpace(
    ("val/top1", "step_seconds"),
    {"method": "stop"},
    {"n_s": Distribution((1, 2)), "alpha": Distribution(low=0.0, high=1.0)},
    trials=3,
)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    config = CacheConfig("d", 1, 6, 32, None, (), ("train",), (), "0" * 64, "recognition")
    shards = (ShardEntry("train-00000", "train", 1, 1, "0" * 64),)
    manifest = Manifest(CACHE_FORMAT, config, "", {"train": 1}, 0, "0" * 64, shards)
    manifest = replace(manifest, data_hash=manifest.hash())
    write_checked_json(tmp_path / "manifest.json", manifest.to_dict())
    resources = Resources(workers=2, gpus_per_worker=0.5)
    found = Search(SPACE, "mine", None, 0, tmp_path, tmp_path / "my outputs", resources)
    found.folder.mkdir(parents=True)
    return found


def _results(search: Search, *reached: tuple[float, float]) -> tuple[Trials, SweepResult]:
    """The results of trials that reached this validation accuracy, in steps of so many seconds."""
    trials = Trials(search.folder)
    trials.all = [
        Trial(number, {"n_s": 1, "alpha": number / 9}, 0, "finished",
              measures={"val/top1": top1, "step_seconds": seconds})
        for number, (top1, seconds) in enumerate(reached)
    ]  # fmt: skip
    return trials, write_results(search, trials)


def test_the_files_of_the_front_are_those_of_the_front(search: Search) -> None:
    _results(search, (0.5, 1.0), (0.4, 0.5))
    own = search.folder / PARETO / "trial-of-mine.yaml"
    own.write_text("n_s: 3")
    _results(search, (0.5, 1.0), (0.4, 0.5), (0.6, 0.9))
    names = {path.name for path in own.parent.iterdir()}
    assert names == {"trial-0001.yaml", "trial-0002.yaml", own.name}


def test_a_confirmation_stays_in_the_report_and_names_its_trial(search: Search) -> None:
    trials, result = _results(search, (0.5, 1.0))
    assert confirm(search, result, 0, "") is None
    frame = pd.DataFrame({"trial": ["trial-0000"] * 2, "seed": [1, 2], "test/top1": [0.5, 0.7]})
    frame.to_csv(search.folder / CONFIRMATION, index=False)
    report = Report(search, trials, result, "")
    kept = confirm(search, result, 0, "")
    assert kept is not None
    assert "| test/top1 | 0.6000 |" in report._confirmation(kept)
    assert "not confirmed" not in report._confirmation(kept)
    report.trials, report.result = _results(search, (0.5, 1.0), (0.6, 0.9))
    assert "settings of trial-0000, which was the best before" in report._confirmation(kept)
    assert "those of trial-0001 are not confirmed" in report._confirmation(kept)


def test_the_command_that_trains_the_best_trains_it_like_the_sweep(search: Search) -> None:
    trials, result = _results(search, (0.5, 1.0))
    text = Report(search, trials, result, "")._next_steps()
    line = next(line for line in text.splitlines() if "train.py" in line)
    config = parse(TrainConfig, shlex.split(line)[2:])
    assert (config.output, config.resources) == (search.output, search.resources)
    assert config.experiment.stop.n_s == 1


class _Records:
    """What an MLflow run would be told."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.files: set[str] = set()

    def log_file(self, path: Path, folder: str = "") -> None:
        assert path.is_file()
        self.files.add(path.name)

    def log_table(self, columns: dict[str, list[Any]], name: str) -> None:
        self.values |= columns

    def log_metrics(self, values: dict[str, float]) -> None:
        self.values |= values

    set_tags = log_metrics


def _published(search: Search, trials: Trials) -> tuple[str, pd.DataFrame, _Records]:
    """The report, trials.csv, and what was told."""
    report = Report(search, trials, write_results(search, trials), "the command")
    told = _Records()
    report.publish(cast(TrackedRun, told))
    text = (search.folder / REPORT).read_text()
    return text, pd.read_csv(search.folder / TRIALS), told


def _with_seeds(search: Search, *reached: tuple[float | None, ...]) -> tuple[Search, Trials]:
    """A grid over n_s, each of its points with several seeds; None for one that failed."""
    values = tuple(range(1, 1 + len(reached)))
    grid = {"n_s": Distribution(values, is_grid=True)}
    space = SearchSpace(
        ("val/top1", "step_seconds"), {"method": "stop"}, grid, "grid", seeds=len(reached[0])
    )
    search = replace(search, space=space)
    search.folder.mkdir(parents=True)
    trials = Trials(search.folder, space.seeds)
    for n_s, tops in zip(values, reached, strict=True):
        for seed, top1 in enumerate(tops):
            trial = trials.add({"n_s": n_s}, seed)
            trial.state, trial.reason = (
                ("failed", "no memory") if top1 is None else ("finished", "")
            )
            if top1 is not None:
                trial.measures = {"val/top1": top1, "step_seconds": 1.0}
    return search, trials


def test_the_best_of_several_seeds_is_that_of_the_mean_wherever_it_is_told(search: Search) -> None:
    lucky, good, part = (0.3, 0.95, 0.4), (0.7, 0.6, 0.68), (0.9, 0.9, None)
    search, trials = _with_seeds(search, lucky, good, part)
    text, frame, told = _published(search, trials)
    best = frame[frame["n_s"] == 2]["val/top1"]
    assert f"**val/top1 {best.mean():.4f}** (mean of 3 seeds, standard deviation " in text
    assert f"deviation {best.std(ddof=1):.4f}; trial-0003, trial-0004, trial-0005): n_s 2" in text
    median = frame[frame["n_s"] < 3].groupby("n_s")["val/top1"].mean().median()
    assert f"{best.mean() - median:.4f} better than the median of the 2 finished points" in text
    assert "not all of their 3 seeds finished: n_s 3." in text
    assert frame["n_s"].tolist()[:6] == [2, 2, 2, 1, 1, 1]
    chosen = yaml.safe_load((search.folder / BEST).read_text())
    assert (chosen["n_s"], chosen["seed"]) == (2, 0)
    assert told.values["best_trial"] == "trial-0003"
    assert told.values["best/val/top1"] == pytest.approx(best.mean())
    assert {path.name for path in (search.folder / PARETO).iterdir()} == {"trial-0003.yaml"}


def _drawn_by_chance(search: Search) -> tuple[Search, Trials]:
    """Two objectives under ASHA: trials that finished, two that were stopped, one that failed."""
    space = replace(
        SPACE, fixed={"method": "stop", "epochs": 3}, scheduler=Asha(1, 3),
        points_to_evaluate=({"n_s": 2, "alpha": 0.0},),
    )  # fmt: skip
    search = replace(search, space=space)
    search.folder.mkdir(parents=True)
    trials = Trials(search.folder)
    for number in range(12):
        trial = trials.add({"n_s": 2 - number % 2, "alpha": number / 16}, 0)
        trial.state = "stopped early" if number in (3, 8) else "finished"
        top1 = 0.3 + 0.037 * (number * 7 % 12)
        for epoch in range(1, 2 if number in (3, 8) else 4):
            row = {"val/top1": top1 * epoch / 3, "step_seconds": 1 + number * 7 % 12 // 3 / 4}
            trial.add_epoch({"epoch": float(epoch), **row})
        if trial.state == "finished":
            trial.measures = {"val/top1": top1}
    trials.add({"n_s": 1, "alpha": 0.9}, 0).state = "failed"
    trials.all[-1].reason = "no memory"
    return search, trials


def _one_at_a_time(search: Search) -> tuple[Search, Trials]:
    search, trials = _with_seeds(search, (0.3, 0.4), (0.6, 0.7), (0.5, 0.5))
    space = replace(search.space, algorithm="one-at-a-time", around={"n_s": 2})
    search = replace(search, space=space)
    search.folder.mkdir(parents=True)
    return search, trials


@pytest.mark.parametrize("kind", ["by chance", "seeds", "one at a time"])
def test_every_figure_that_a_report_shows_is_there_and_told(search: Search, kind: str) -> None:
    if kind == "by chance":
        text, _, told = _published(*_drawn_by_chance(search))
        wanted = {"importances", "slices", "parallel", "history", "curves", "pareto"}
    elif kind == "seeds":
        text, _, told = _published(*_with_seeds(search, (0.3, 0.4), (0.6, 0.7), (0.5, 0.5)))
        wanted = {"importances", "slices", "parallel", "history", "pareto"}
    else:
        text, _, told = _published(*_one_at_a_time(search))
        wanted = {"sensitivity", "pareto"}
    shown = re.findall(r"!\[(\w+)\]\((\S+)\)", text)
    assert {name for name, _ in shown} == wanted
    (report,) = search.output.glob("sweeps/*/report.md")
    for name, path in shown:
        assert (report.parent / path).read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in told.files


def test_the_numbers_of_a_report_are_those_of_the_table(search: Search) -> None:
    text, frame, told = _published(*_drawn_by_chance(search))
    frame = frame.set_index("trial")
    finished = frame[frame["state"] == "finished"]["val/top1"]
    best = finished.idxmax()
    assert f"**val/top1 {finished.max():.4f}** ({best}): " in text
    assert frame.index[0] == best == told.values["best_trial"]
    gain = finished.max() - finished.median()
    assert f"{gain:.4f} better than the median of the {len(finished)} finished" in text
    first = frame.loc["trial-0000", "val/top1"]
    assert (
        f"(trial-0000) reached {first:.4f}: the search gained {finished.max() - first:.4f}" in text
    )
    counts = ", ".join(
        f"{(frame['state'] == state).sum()} {state}"
        for state in ("finished", "stopped early", "failed")
    )
    assert f"- **Trials**: {len(frame)} ({counts})" in text
    for name, row in frame[frame["state"] == "stopped early"].iterrows():
        assert f"- {name} after epoch {row['epochs']}, at {row['val/top1']:.4g}: " in text
    assert "- trial-0012: no memory (n_s 1, alpha 0.9)" in text
    front = re.findall(r"^\| (trial-\d+) \| (\S+) \| (\S+) \|", text, re.MULTILINE)
    assert len(front) > 1
    for name, top1, seconds in front:
        assert float(top1) == pytest.approx(frame.loc[name, "val/top1"], rel=1e-3)
        assert float(seconds) == pytest.approx(frame.loc[name, "step_seconds"], rel=1e-3)
        better = frame[frame["state"] == "finished"]
        better = better[better["val/top1"] > frame.loc[name, "val/top1"]]
        assert (better["step_seconds"] > frame.loc[name, "step_seconds"]).all()


def test_the_sensitivity_of_a_report_is_that_of_the_table(search: Search) -> None:
    text, frame, _ = _published(*_one_at_a_time(search))
    for value, some in frame.groupby("n_s")["val/top1"]:
        assert f"| n_s | {value} | {some.mean():.4f} | " in text
    assert "The mean over 2 seeds is uncertain" in text


def test_more_draws_of_a_grid_are_counted_by_its_points(search: Search) -> None:
    grid = {"n_s": Distribution((1, 2), is_grid=True), "alpha": Distribution(low=0.0, high=1.0)}
    search = replace(search, space=replace(SPACE, search=grid, trials=3))
    search.folder.mkdir(parents=True)
    trials, result = _results(search, *[(0.5, 1.0)] * 6)  # three draws of two points
    assert Report(search, trials, result, "")._next_steps().count("--trials 6") == 1


@pytest.mark.parametrize("measure", ["top1", "top5", "mean_class"])
def test_one_seed_has_the_interval_over_videos_of_every_share(search: Search, measure: str) -> None:
    objective = f"val/{measure}"
    space = SearchSpace(
        (objective,), {"method": "stop"}, {"n_s": Distribution((1,))}, "one-at-a-time",
        around={"n_s": 1},
    )  # fmt: skip
    search = replace(search, space=space)
    result = recognised(ExperimentConfig(), [True, False, True] * 10, search.output / "runs")
    file = Path(result.folder) / PREDICTIONS
    pd.read_parquet(file).assign(split="val").to_parquet(file)
    trials = Trials(search.folder)
    reached = result.metrics[f"test/{measure}"]
    trials.all = [Trial(0, {"n_s": 1}, 0, "finished", [], {objective: reached}, run=result.name)]
    row = sensitivity(search, trials)["n_s"].iloc[0]
    assert 0 <= row["low"] <= reached <= row["high"] <= 1
