"""Importances and sensitivities of given trials, without a training."""

import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipelines.cluster.resources import Resources
from pipelines.sweeping.report.analysis import importances, sensitivity
from pipelines.sweeping.search import Search
from pipelines.sweeping.space import Asha, Distribution, SearchSpace
from pipelines.sweeping.trials import Trial, Trials
from pipelines.training.task import PREDICTIONS
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised

GRID = SearchSpace(
    ("val/top1",), {}, {"n_s": Distribution((2, 6), is_grid=True)}, algorithm="grid", seeds=2
)
BOTH = replace(
    GRID, search={"n_s": Distribution((2, 6)), "max_prompts": Distribution((1, 2))}, seeds=1
)


def _trials(folder: Path, values: list[float]) -> Trials:
    """Two points with two seeds each."""
    trials = Trials(folder)
    for number, value in enumerate(values):
        trial = trials.add({"n_s": (2, 6)[number // 2]}, number % 2)
        trial.state, trial.measures = "finished", {"val/top1": value}
    return trials


def _search(folder: Path, space: SearchSpace = GRID) -> Search:
    return Search(space, "mine", None, 0, folder, folder, Resources())


def test_resamples_of_a_single_point_are_skipped(tmp_path: Path) -> None:
    found = importances(_search(tmp_path), _trials(tmp_path, [0.5, 0.51, 0.7, 0.72]))
    assert found is not None
    assert found.table["setting"].tolist() == ["n_s"]
    assert found.table["importance"].tolist() == pytest.approx([1.0])
    assert found.rest == pytest.approx(0.0)


@pytest.mark.parametrize(("together", "most"), [(0.0, 0.02), (1.0, 0.3)])
def test_interactions_are_not_counted_as_importance_of_one_setting(
    together: float, most: float, tmp_path: Path
) -> None:
    trials = Trials(tmp_path)
    for number in range(16):
        first, second = number % 2, number // 2 % 2
        trial = trials.add({"n_s": (2, 6)[first], "max_prompts": 1 + second}, number)
        value = together * (first ^ second) + (1 - together) * first
        trial.state, trial.measures = "finished", {"val/top1": value}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = importances(_search(tmp_path, BOTH), trials)
    assert found is not None
    shares = found.table.set_index("setting")["importance"]
    assert shares["max_prompts"] < most
    assert shares.sum() + found.rest == pytest.approx(1.0)
    assert found.rest > 0.7 if together else found.rest < 0.02


def test_trials_shorter_than_the_grace_period_are_compared_at_their_end(tmp_path: Path) -> None:
    space = replace(GRID, fixed={"epochs": 2}, scheduler=Asha(grace_period=10), seeds=1)
    trials = Trials(tmp_path)
    for number, value in enumerate([0.5, 0.51, 0.7, 0.72]):
        trial = trials.add({"n_s": (2, 6)[number // 2]}, number)
        trial.state = "finished"
        trial.curve = [{"epoch": epoch, "val/top1": value * epoch / 2} for epoch in (1.0, 2.0)]
    found = importances(_search(tmp_path, space), trials)
    assert found is not None
    assert (found.trials, found.after_epoch) == (4, 2)


def test_none_is_one_of_the_varied_values(tmp_path: Path) -> None:
    depths = Distribution((1, None, 2), is_grid=True)
    space = replace(GRID, search={"depth": depths}, around={"depth": None}, seeds=2)
    trials = Trials(tmp_path)
    for depth in (1, None, 2):
        for seed in range(2):
            trial = trials.add({"depth": depth}, seed)
            trial.state, trial.measures = "finished", {"val/top1": 0.5 + 0.1 * seed}
    table = sensitivity(_search(tmp_path, replace(space, algorithm="one-at-a-time")), trials)
    assert table["depth"]["value"].tolist() == [1, None, 2]
    assert table["depth"]["seeds"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("measure", ["top1", "top5", "mean_class"])
def test_one_seed_has_a_bootstrap_interval_over_videos(tmp_path: Path, measure: str) -> None:
    objective = f"val/{measure}"
    space = SearchSpace(
        (objective,), {"method": "stop"}, {"n_s": Distribution((1,))}, "one-at-a-time",
        around={"n_s": 1},
    )  # fmt: skip
    search = _search(tmp_path, space)
    result = recognised(ExperimentConfig(), [True, False, True] * 10, search.output / "runs")
    file = Path(result.folder) / PREDICTIONS
    pd.read_parquet(file).assign(split="val").to_parquet(file)
    trials = Trials(tmp_path)
    reached = result.metrics[f"test/{measure}"]
    trials.all = [Trial(0, {"n_s": 1}, 0, "finished", [], {objective: reached}, run=result.name)]
    row = sensitivity(search, trials)["n_s"].iloc[0]
    assert 0 <= row["low"] <= reached <= row["high"] <= 1
