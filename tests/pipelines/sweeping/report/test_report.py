"""The report of a sweep agrees with the files on disk, and its commands work."""

import functools
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import yaml

from pipelines.cli.options import parse
from pipelines.cluster.resources import Resources
from pipelines.sweeping.report.report import REPORT, Report
from pipelines.sweeping.results import (
    BEST,
    CONFIRMATION,
    PARETO,
    TRIALS,
    SweepResult,
    confirm,
    write_results,
)
from pipelines.sweeping.search import Search
from pipelines.sweeping.space import Asha, Distribution, SearchSpace
from pipelines.sweeping.trials import Trial, Trials
from pipelines.tracking.direct_run import TrackedRun
from pipelines.train import TrainConfig
from stop_core.cache import CacheConfig, Manifest
from stop_core.cache.files import CACHE_FORMAT, write_checked_json
from stop_core.cache.manifest import ShardEntry

SPACE = SearchSpace(
    ("val/top1", "step_seconds"),
    {"method": "stop"},
    {"n_s": Distribution((1, 2)), "alpha": Distribution(low=0.0, high=1.0)},
    trials=3,
)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return _search(tmp_path)


def _search(folder: Path) -> Search:
    clips = (None, (), ("train",), (), "0" * 64, "recognition")
    config = CacheConfig("d", 1, 6, 32, *clips, "center", "none")
    shards = (ShardEntry("train-00000", "train", 1, 1, "0" * 64),)
    manifest = Manifest(CACHE_FORMAT, config, "", {"train": 1}, 0, "0" * 64, shards)
    manifest = replace(manifest, data_hash=manifest.hash())
    write_checked_json(folder / "manifest.json", manifest.to_dict())
    resources = Resources(device="gpu", workers=2, gpus_per_worker=1, gpu_bytes=80 << 30)
    search = Search(SPACE, "mine", None, 0, folder, folder / "my outputs", resources)
    search.folder.mkdir(parents=True)
    return search


def _results(search: Search, *reached: tuple[float, float]) -> tuple[Trials, SweepResult]:
    """Trials that reached these pairs of validation accuracy and seconds per step."""
    trials = Trials(search.folder)
    trials.all = [
        Trial(number, {"n_s": 1, "alpha": number / 9}, 0, "finished",
              measures={"val/top1": top1, "step_seconds": seconds})
        for number, (top1, seconds) in enumerate(reached)
    ]  # fmt: skip
    return trials, write_results(search, trials)


def test_pareto_folder_has_the_current_front_and_other_files(search: Search) -> None:
    _results(search, (0.5, 1.0), (0.4, 0.5))
    own = search.folder / PARETO / "trial-of-mine.yaml"
    own.write_text("n_s: 3")
    _results(search, (0.5, 1.0), (0.4, 0.5), (0.6, 0.9))
    names = {path.name for path in own.parent.iterdir()}
    assert names == {"trial-0001.yaml", "trial-0002.yaml", own.name}


def test_confirmation_stays_in_the_report_and_names_its_trial(search: Search) -> None:
    trials, result = _results(search, (0.5, 1.0))
    assert confirm(search, result, 0, "") is None
    frame = pd.DataFrame({"trial": ["trial-0000"] * 2, "seed": [1, 2], "test/top1": [0.5, 0.7]})
    frame.to_csv(search.folder / CONFIRMATION, index=False)
    kept = confirm(search, result, 0, "")
    assert kept is not None
    text = Report(search, trials, result, "", kept).write().read_text()
    assert "| test/top1 | 0.6000 |" in text
    assert "not confirmed" not in text
    trials, result = _results(search, (0.5, 1.0), (0.6, 0.9))
    text = Report(search, trials, result, "", kept).write().read_text()
    assert "settings of trial-0000, which was the best before" in text
    assert "those of trial-0001 are not confirmed" in text


def test_command_for_the_best_settings_uses_the_resources_of_the_sweep(search: Search) -> None:
    trials, result = _results(search, (0.5, 1.0))
    text = Report(search, trials, result, "").write().read_text()
    line = next(line for line in text.splitlines() if "--output" in line)
    config = parse(TrainConfig, shlex.split(line)[2:])
    expected = replace(search.resources, gpu_bytes=0)  # of the machine, not an option
    assert (config.output, config.resources.on(2)) == (search.output, expected)
    assert config.experiment.stop.n_s == 1


class _Records:
    """Records what is logged to an MLflow run."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.files: set[str] = set()

    def log_file(self, path: Path, folder: str = "") -> None:
        assert path.is_file()
        self.files.add(path.name)

    def log_table(self, table: pd.DataFrame, name: str) -> None:
        self.values |= table.to_dict("list")

    def log_metrics(self, values: dict[str, float]) -> None:
        self.values |= values

    set_tags = log_metrics


@dataclass(frozen=True)
class Published:
    """A report, its table, and its records in MLflow."""

    folder: Path
    text: str
    frame: pd.DataFrame
    records: _Records


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Published]:
    """Returns the published report of a kind of sweep; each is made once, as figures are slow."""

    @functools.cache
    def publish(kind: str) -> Published:
        search, trials = KINDS[kind](_search(tmp_path_factory.mktemp("sweep")))
        records = _Records()
        report = Report(search, trials, write_results(search, trials), "the command")
        report.publish(cast(TrackedRun, records))
        text = (search.folder / REPORT).read_text()
        return Published(search.folder, text, pd.read_csv(search.folder / TRIALS), records)

    return publish


def _with_seeds(search: Search, *reached: tuple[float | None, ...]) -> tuple[Search, Trials]:
    """A grid over n_s with several seeds per point; None for a trial that failed."""
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


def _drawn_by_chance(search: Search) -> tuple[Search, Trials]:
    """Two objectives under ASHA: finished trials, two stopped ones, and a failed one."""
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


def _seeds(search: Search) -> tuple[Search, Trials]:
    """Settings with one lucky seed, the best ones, and better ones with a failed seed."""
    return _with_seeds(search, (0.3, 0.95, 0.4), (0.7, 0.6, 0.68), (0.9, 0.9, None))


KINDS = {"by chance": _drawn_by_chance, "seeds": _seeds, "one at a time": _one_at_a_time}


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("by chance", {"importances", "slices", "parallel", "history", "curves", "pareto"}),
        ("seeds", {"importances", "slices", "parallel", "history", "pareto"}),
        ("one at a time", {"sensitivity", "pareto"}),
    ],
)
def test_every_figure_of_a_report_exists_and_is_logged(
    published: Callable[[str], Published], kind: str, figures: set[str]
) -> None:
    report = published(kind)
    shown = re.findall(r"!\[(\w+)\]\((\S+)\)", report.text)
    assert {name for name, _ in shown} == figures
    for name, path in shown:
        assert (report.folder / path).read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in report.records.files


def test_best_of_several_seeds_is_the_best_mean_in_report_table_and_mlflow(
    published: Callable[[str], Published],
) -> None:
    report = published("seeds")
    text, frame = report.text, report.frame
    best = frame[frame["n_s"] == 2]["val/top1"]
    assert f"**val/top1 {best.mean():.4f}** (mean of 3 seeds, standard deviation " in text
    assert f"deviation {best.std(ddof=1):.4f}; trial-0003, trial-0004, trial-0005): n_s 2" in text
    median = frame[frame["n_s"] < 3].groupby("n_s")["val/top1"].mean().median()
    assert f"{best.mean() - median:.4f} better than the median of the 2 finished points" in text
    assert "not all of their 3 seeds finished: n_s 3." in text
    assert frame["n_s"].tolist()[:6] == [2, 2, 2, 1, 1, 1]
    chosen = yaml.safe_load((report.folder / BEST).read_text())
    assert (chosen["n_s"], chosen["seed"]) == (2, 0)
    assert report.records.values["best_trial"] == "trial-0003"
    assert report.records.values["best/val/top1"] == pytest.approx(best.mean())
    assert {path.name for path in (report.folder / PARETO).iterdir()} == {"trial-0003.yaml"}


def test_numbers_of_a_report_equal_those_of_the_table(
    published: Callable[[str], Published],
) -> None:
    report = published("by chance")
    text, frame = report.text, report.frame.set_index("trial")
    finished = frame[frame["state"] == "finished"]["val/top1"]
    best = finished.idxmax()
    assert f"**val/top1 {finished.max():.4f}** ({best}): " in text
    assert frame.index[0] == best == report.records.values["best_trial"]
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


def test_sensitivity_of_a_report_equals_that_of_the_table(
    published: Callable[[str], Published],
) -> None:
    text = published("one at a time").text
    for value, some in published("one at a time").frame.groupby("n_s")["val/top1"]:
        assert f"| n_s | {value} | {some.mean():.4f} | " in text
    assert "The mean over 2 seeds is uncertain" in text


def test_command_for_more_draws_counts_draws_per_grid_point(search: Search) -> None:
    grid = {"n_s": Distribution((1, 2), is_grid=True), "alpha": Distribution(low=0.0, high=1.0)}
    search = replace(search, space=replace(SPACE, search=grid, trials=3))
    search.folder.mkdir(parents=True)
    trials, result = _results(search, *[(0.5, 1.0)] * 6)  # three draws of two points
    assert Report(search, trials, result, "").write().read_text().count("--trials 6") == 1
