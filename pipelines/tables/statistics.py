"""What the per-video predictions of a table's rows say: intervals, differences and tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stop_core.datasets import Task
from stop_core.evaluation.statistics import (
    Floats,
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
    """Of one row; the tests are of the primary measure, against the baseline."""

    videos: int
    intervals: dict[str, Interval] = field(default_factory=dict)
    """95% of the mean over seeds, by measure."""
    difference: float | None = None
    """The row's mean less the baseline's; None for the baseline itself."""
    difference_interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    """The same, for all comparisons of the table together."""


def row_statistics(
    rows: Mapping[str, Sequence[TrainingResult]],
    measures: Sequence[str],
    task: Task,
    baseline: str,
) -> dict[str, RowStatistics]:
    """The statistics of every row that has results.

    Args:
        rows: results by the title of their row.
        measures: of the test split; the first is the primary one.
        task: recognition is tested by McNemar's exact test, retrieval by the paired bootstrap.
        baseline: title of the row that the others are compared with.

    Raises:
        ValueError: if predictions do not give what was recorded, or rows are not of the same
            videos; the message names the folder.
        OSError: if the predictions of a result are gone.
    """
    titles = [title for title, results in rows.items() if results]
    if not titles:
        return {}
    outcomes = {title: _outcomes(rows[title], measures) for title in titles}
    _check_same_videos(rows, titles, measures[0])
    videos = len(outcomes[titles[0]][measures[0]].weights_M)
    found = {title: RowStatistics(videos) for title in titles}
    # All at once, so that every row and measure sees the same videos in a resample.
    cells = [(title, measure) for title in titles for measure in measures]
    resamples = resampled_scores([outcomes[title][measure] for title, measure in cells])
    scores = dict(zip(cells, resamples, strict=True))
    for title, measure in cells:
        low, high = interval(scores[title, measure])
        # Scaling up the spread of few seeds can lead out of what a share can be.
        found[title].intervals[measure] = (
            (low, high) if measure.endswith("rank") else (max(0.0, low), min(1.0, high))
        )
    if baseline in titles:
        primary = {title: outcomes[title][measures[0]] for title in titles}
        scores_R = {title: scores[title, measures[0]] for title in titles}
        _compare(found, primary, scores_R, task, baseline)
    return found


def _outcomes(results: Sequence[TrainingResult], measures: Sequence[str]) -> dict[str, VideoScores]:
    """What one row scored by video, checked against what its trainings recorded."""
    found = read_scores([Path(result.folder) / PREDICTIONS for result in results], measures)
    for measure, outcomes in found.items():
        for result, score in zip(results, outcomes.scores().tolist(), strict=True):
            if abs(result.metrics[measure] - score) > 1e-9:
                raise ValueError(
                    f"the predictions in {result.folder} give {measure} = {score:.6f}, but the "
                    f"training recorded {result.metrics[measure]:.6f}: they do not belong "
                    "together; delete that folder, and the same command trains it again"
                )
    return found


def _check_same_videos(
    rows: Mapping[str, Sequence[TrainingResult]], titles: Sequence[str], measure: str
) -> None:
    """Refuses rows that were measured on other videos than the first."""
    # Read as if they were seeds of one row, whose videos have to be the same.
    read_scores([Path(rows[title][0].folder) / PREDICTIONS for title in titles], [measure])


def _compare(
    found: dict[str, RowStatistics],
    outcomes: Mapping[str, VideoScores],
    scores: Mapping[str, Floats],
    task: Task,
    baseline: str,
) -> None:
    """Compares every row with the baseline, video by video."""
    others = [title for title in found if title != baseline]
    means = {title: float(np.mean(one.scores())) for title, one in outcomes.items()}
    for title in others:
        row, difference_R = found[title], scores[title] - scores[baseline]
        row.difference = means[title] - means[baseline]
        row.difference_interval = interval(difference_R)
        row.p = (
            exact_p(outcomes[title], outcomes[baseline])
            if task == "recognition"
            else bootstrap_p(difference_R)
        )
    adjusted = holm([found[title].p or 0.0 for title in others])
    for title, p in zip(others, adjusted, strict=True):
        found[title].p_holm = p
