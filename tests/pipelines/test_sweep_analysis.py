"""What trials say about their settings, without a training."""

from pathlib import Path

import pytest

from pipelines.resources import Resources
from pipelines.sweep_analysis import importances
from pipelines.sweep_search import Search
from pipelines.sweep_trials import Trials
from sweeps.space import Distribution, SearchSpace

GRID = SearchSpace(
    ("val/top1",), {}, {"n_s": Distribution((2, 6), is_grid=True)}, algorithm="grid", seeds=2
)


def _trials(folder: Path, values: list[float]) -> Trials:
    """Two points, each with two seeds."""
    trials = Trials(folder)
    for number, value in enumerate(values):
        trial = trials.add({"n_s": (2, 6)[number // 2]}, number % 2)
        trial.state, trial.measures = "finished", {"val/top1": value}
    return trials


def _search(folder: Path) -> Search:
    return Search(GRID, "mine", None, 0, folder, folder, Resources())


def test_resamples_of_one_point_say_nothing_and_the_others_do(tmp_path: Path) -> None:
    found = importances(_search(tmp_path), _trials(tmp_path, [0.5, 0.51, 0.7, 0.72]))
    assert found is not None
    assert found.table["setting"].tolist() == ["n_s"]
    assert found.table["importance"].tolist() == pytest.approx([1.0])
