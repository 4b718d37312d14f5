"""Statistics of a table's rows from their per-video predictions: intervals and tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stop_core.datasets import Task
from stop_core.evaluation.statistics import (
    VideoScores,
    bootstrap_p,
    exact_p,
    holm,
    interval,
    join_folds,
    resampled_scores,
)
from stop_core.evaluation.stored_predictions import read_scores
from stop_core.storage.paths import storage_path

from ..training.result import TrainingResult
from ..training.task import PREDICTIONS


def row_statistics(
    rows: Mapping[str, Sequence[TrainingResult]],
    measures: Sequence[str],
    task: Task,
    baseline: str,
) -> dict[str, dict[str, Any]]:
    """Returns the statistics of every row that has results, by the names of the table's columns.

    `test_videos` counts different videos; `<measure>_low` and `_high` bound the 95% interval of the
    mean over seeds. The rows other than the baseline are compared with it by the primary measure:
    `difference`, `difference_low`, `difference_high`, `p`, and `p_holm`, which is corrected for all
    comparisons of the table by Holm's method.

    `rows` has results by the title of the row: the same seeds of the same folds in each. The first
    of `measures`, which are of the test split, is the primary one. Recognition is tested by
    McNemar's exact test; retrieval and the harmonic mean of base and novel classes by the paired
    bootstrap.

    Raises ValueError if predictions contradict the recorded measures, or rows are of different
    videos; OSError if predictions are missing.
    """
    scores = {title: _scores(results, measures) for title, results in rows.items() if results}
    if not scores:
        return {}
    primary = measures[0]
    # Refuses rows of different videos: they are read like the seeds of one row.
    for folds in zip(*(_by_fold(rows[title]) for title in scores), strict=True):
        read_scores([storage_path(fold[0].folder) / PREDICTIONS for fold in folds], [primary])
    # All at once, so that all rows and measures have the same videos in a resample.
    cells = [(title, measure) for title in scores for measure in measures]
    resamples = resampled_scores([scores[title][measure] for title, measure in cells])
    resampled = dict(zip(cells, resamples, strict=True))
    videos = next(iter(scores.values()))[primary].videos
    columns: dict[str, dict[str, Any]] = {title: {"test_videos": videos} for title in scores}
    for title, measure in cells:
        low, high = interval(resampled[title, measure])
        if not measure.endswith("rank"):
            # Scaling up the spread of few seeds can leave the range of a share.
            low, high = max(0.0, low), min(1.0, high)
        name = measure.replace("/", "_")
        columns[title] |= {f"{name}_low": low, f"{name}_high": high}
    if baseline in scores:
        others = [title for title in scores if title != baseline]
        for title in others:
            ours, theirs = scores[title][primary], scores[baseline][primary]
            difference_R = resampled[title, primary] - resampled[baseline, primary]
            low, high = interval(difference_R)
            is_exact = task == "recognition" and not ours.harmonic
            columns[title] |= {
                "difference": float(np.mean(ours.scores())) - float(np.mean(theirs.scores())),
                "difference_low": low,
                "difference_high": high,
                "p": exact_p(ours, theirs) if is_exact else bootstrap_p(difference_R),
            }
        for title, p in zip(others, holm([columns[t]["p"] for t in others]), strict=True):
            columns[title]["p_holm"] = p
    return columns


def _scores(results: Sequence[TrainingResult], measures: Sequence[str]) -> dict[str, VideoScores]:
    """Returns the scores of one row by video, after checking them against the recorded measures."""
    folds = []
    for own in _by_fold(results):
        folds.append(
            read_scores([storage_path(result.folder) / PREDICTIONS for result in own], measures)
        )
        for measure, videos in folds[-1].items():
            for result, score in zip(own, videos.scores().tolist(), strict=True):
                if abs(result.metrics[measure] - score) > 1e-9:
                    raise ValueError(
                        f"the predictions in {result.folder} give {measure} = {score:.6f}, but the "
                        f"training recorded {result.metrics[measure]:.6f}: they do not belong "
                        "together; delete that folder, and run the same command to train it again"
                    )
    return {measure: join_folds([fold[measure] for fold in folds]) for measure in measures}


def _by_fold(results: Sequence[TrainingResult]) -> list[list[TrainingResult]]:
    folds: dict[str, list[TrainingResult]] = {}
    for result in results:
        folds.setdefault(result.data_hash, []).append(result)
    return list(folds.values())
