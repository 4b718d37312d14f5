"""A table's intervals, differences and p-values are those of the scores on its videos."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.tables.row_statistics import row_statistics
from pipelines.training.result import TrainingResult
from stop_core.evaluation.statistics import bootstrap_p, exact_p, holm, interval, resampled_scores
from stop_core.evaluation.stored_predictions import read_scores
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised, retrieved

VIDEOS = 40
TOP, MEAN_CLASS = "test/top1", "test/mean_class"


def _row(folder: Path, chance: float, seeds: int = 2, seed: int = 0) -> list[TrainingResult]:
    draws = np.random.default_rng(seed)
    return [
        recognised(
            replace(ExperimentConfig(), seed=number),
            (draws.random(VIDEOS) < chance).tolist(),
            folder / f"{chance}-{seed}-{number}",
        )
        for number in range(seeds)
    ]


def _bounds(row: dict[str, Any], measure: str) -> tuple[float, float]:
    name = measure.replace("/", "_")
    return row[f"{name}_low"], row[f"{name}_high"]


def _files(results: list[TrainingResult]) -> list[Path]:
    return [Path(result.folder) / "predictions.parquet" for result in results]


def test_statistics_are_those_of_all_rows_together(tmp_path: Path) -> None:
    rows = {
        "base": _row(tmp_path, 0.5),
        "better": _row(tmp_path, 0.8),
        "none": [],
        "same": _row(tmp_path, 0.55, seed=3),
    }
    measures = [TOP, MEAN_CLASS]
    found = row_statistics(rows, measures, "recognition", "base")
    assert list(found) == ["base", "better", "same"]
    read = {title: read_scores(_files(rows[title]), measures) for title in found}
    cells = [(title, measure) for title in found for measure in measures]
    scores = dict(zip(cells, resampled_scores([read[t][m] for t, m in cells]), strict=True))
    for title, row in found.items():
        assert row["test_videos"] == VIDEOS
        for measure in measures:
            low, high = interval(scores[title, measure])
            assert _bounds(row, measure) == (max(0.0, low), min(1.0, high))
    p_values = []
    for title in ("better", "same"):
        row = found[title]
        means = [np.mean([one.metrics[TOP] for one in rows[t]]) for t in (title, "base")]
        assert row["difference"] == pytest.approx(means[0] - means[1])
        assert _bounds(row, "difference") == interval(scores[title, TOP] - scores["base", TOP])
        assert row["p"] == exact_p(read[title][TOP], read["base"][TOP])
        p_values.append(row["p"])
    assert [found[title]["p_holm"] for title in ("better", "same")] == holm(p_values)
    assert not [name for name in found["base"] if name.startswith(("difference", "p"))]


def test_an_interval_of_a_share_stays_in_its_range_and_one_of_a_rank_does_not(
    tmp_path: Path,
) -> None:
    config = ExperimentConfig()
    seeds = [[1] * 9 + [30], [1] * 10]
    rows = {
        "base": [
            retrieved(replace(config, seed=n), ranks, tmp_path / f"base{n}")
            for n, ranks in enumerate(seeds)
        ],
        "other": [retrieved(config, [2] * 10, tmp_path / "other")],
    }
    measures = ["test/t2v_r1", "test/t2v_mean_rank"]
    found = row_statistics(rows, measures, "retrieval", "base")
    read = {title: read_scores(_files(rows[title]), measures) for title in rows}
    cells = [(title, measure) for title in rows for measure in measures]
    scores = dict(zip(cells, resampled_scores([read[t][m] for t, m in cells]), strict=True))
    low, high = interval(scores["base", measures[0]])
    assert high > 1  # two seeds: their spread is scaled up
    assert _bounds(found["base"], measures[0]) == (low, 1.0)
    assert _bounds(found["base"], measures[1]) == interval(scores["base", measures[1]])
    assert _bounds(found["other"], measures[0]) == (0.0, 0.0)
    difference = scores["other", measures[0]] - scores["base", measures[0]]
    assert found["other"]["p"] == bootstrap_p(difference)
    assert found["other"]["difference"] == pytest.approx(-0.95)


def test_without_results_or_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    assert row_statistics({"base": []}, [TOP], "recognition", "base") == {}
    rows = {"base": [], "other": _row(tmp_path, 0.5)}
    (row,) = row_statistics(rows, [TOP], "recognition", "base").values()
    assert row.keys() == {"test_videos", "test_top1_low", "test_top1_high"}


def test_predictions_that_do_not_give_what_was_recorded_are_refused(tmp_path: Path) -> None:
    first, second = _row(tmp_path, 0.5)
    recorded = second.metrics[TOP]
    for off, is_refused in ((2e-9, True), (-2e-9, True), (0.1, True), (5e-10, False)):
        other = replace(second, metrics={**second.metrics, TOP: recorded + off})
        if not is_refused:
            row_statistics({"base": [first, other]}, [TOP], "recognition", "base")
            continue
        with pytest.raises(ValueError, match=f"{second.folder} give test/top1") as problem:
            row_statistics({"base": [first, other]}, [TOP], "recognition", "base")
        assert f"recorded {recorded + off:.6f}" in str(problem.value)


def test_rows_of_other_videos_are_refused_by_their_folder(tmp_path: Path) -> None:
    few = recognised(ExperimentConfig(), [True] * (VIDEOS - 1), tmp_path / "few")
    rows = {"base": _row(tmp_path, 0.5), "other": [few]}
    with pytest.raises(ValueError, match=r"few.* different"):
        row_statistics(rows, [TOP], "recognition", "base")
