"""Statistics of a table's rows from their per-video predictions: intervals and tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stop_core.datasets import Task
from stop_core.evaluation.statistics import (
    VideoScores,
    bootstrap_p,
    exact_p,
    holm,
    interval,
    resampled_scores,
)
from stop_core.evaluation.stored_predictions import read_scores

from ..training.result import TrainingResult
from ..training.task import PREDICTIONS

Interval = tuple[float, float]


@dataclass
class RowStatistics:
    """Statistics of one row; its tests compare the primary measure with the baseline."""

    videos: int
    intervals: dict[str, Interval] = field(default_factory=dict)
    """95% interval of the mean over seeds, by measure."""
    difference: float | None = None
    """Mean of the row minus that of the baseline; None for the baseline itself."""
    difference_interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    """p, corrected for all comparisons of the table by Holm's method."""


def row_statistics(
    rows: Mapping[str, Sequence[TrainingResult]],
    measures: Sequence[str],
    task: Task,
    baseline: str,
) -> dict[str, RowStatistics]:
    """Returns the statistics of every row that has results.

    Args:
        rows: results by the title of the row.
        measures: measures of the test split; the first is the primary one.
        task: recognition is tested by McNemar's exact test, retrieval by the paired bootstrap.
        baseline: title of the row that the others are compared with.

    Raises:
        ValueError: if predictions contradict the recorded measures, or rows are of different
            videos; the message names the folder.
        OSError: if the predictions of a result are missing.
    """
    titles = [title for title, results in rows.items() if results]
    if not titles:
        return {}
    scores = {title: _scores(rows[title], measures) for title in titles}
    # Refuses rows of different videos: they are read like the seeds of one row.
    read_scores([Path(rows[title][0].folder) / PREDICTIONS for title in titles], [measures[0]])
    videos = len(scores[titles[0]][measures[0]].weights_M)
    statistics = {title: RowStatistics(videos) for title in titles}
    # All at once, so that all rows and measures have the same videos in a resample.
    cells = [(title, measure) for title in titles for measure in measures]
    resamples = resampled_scores([scores[title][measure] for title, measure in cells])
    resampled = dict(zip(cells, resamples, strict=True))
    for title, measure in cells:
        low, high = interval(resampled[title, measure])
        # Scaling up the spread of few seeds can leave the range of a share.
        statistics[title].intervals[measure] = (
            (low, high) if measure.endswith("rank") else (max(0.0, low), min(1.0, high))
        )
    if baseline in titles:
        primary = measures[0]
        others = [title for title in titles if title != baseline]
        for title in others:
            row, ours, theirs = statistics[title], scores[title][primary], scores[baseline][primary]
            difference_R = resampled[title, primary] - resampled[baseline, primary]
            row.difference = float(np.mean(ours.scores())) - float(np.mean(theirs.scores()))
            row.difference_interval = interval(difference_R)
            is_exact = task == "recognition"
            row.p = exact_p(ours, theirs) if is_exact else bootstrap_p(difference_R)
        adjusted = holm([statistics[title].p or 0.0 for title in others])
        for title, p in zip(others, adjusted, strict=True):
            statistics[title].p_holm = p
    return statistics


def _scores(results: Sequence[TrainingResult], measures: Sequence[str]) -> dict[str, VideoScores]:
    """Returns the scores of one row by video, after checking them against the recorded measures."""
    scores = read_scores([Path(result.folder) / PREDICTIONS for result in results], measures)
    for measure, videos in scores.items():
        for result, score in zip(results, videos.scores().tolist(), strict=True):
            if abs(result.metrics[measure] - score) > 1e-9:
                raise ValueError(
                    f"the predictions in {result.folder} give {measure} = {score:.6f}, but the "
                    f"training recorded {result.metrics[measure]:.6f}: they do not belong "
                    "together; delete that folder, and run the same command to train it again"
                )
    return scores
