"""Confidence intervals and paired tests of scores, over test videos and training seeds.

A score depends on a sample of videos and a sample of trainings. The bootstrap resamples both, as
crossed factors (Owen, "The pigeonhole bootstrap", 2007).

Shapes: S seeds, V videos, M tests of a video (more than V if a video is tested in several folds), F
folds, G groups, K rows of a table, R resamples.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_DRAWN_AT_ONCE = 4_000_000  # videos; limits the memory of a bootstrap to about 100 MB


@dataclass(frozen=True)
class VideoScores:
    """Scores of every test video by the trainings of one row of a table.

    The score of a training is the sum of the values of the videos divided by the sum of their
    weights; with several groups, the mean of the groups' scores. For top-1, values are 1 or 0 and
    weights are 1. If a video has several queries, its weight is their number. For mean-class
    accuracy, the groups are the classes. With several folds, it is the mean of the folds' scores.
    """

    values_SM: Floats
    weights_M: Floats
    groups_M: NDArray[np.int64] | None = None
    ids_M: NDArray[Any] | None = None
    """Ids of the videos, which `join_folds` needs."""
    folds_M: NDArray[np.int64] | None = None
    harmonic: bool = False
    """Whether the mean of the groups is the harmonic one."""

    def __post_init__(self) -> None:
        videos = self.values_SM.shape[-1]
        if self.values_SM.ndim != 2 or self.values_SM.size == 0:
            raise ValueError(
                f"the values have shape {list(self.values_SM.shape)}; give [S, M], at least one "
                "seed and one video"
            )
        for name in ("weights_M", "groups_M", "ids_M", "folds_M"):
            column = getattr(self, name)
            if column is not None and column.shape != (videos,):
                raise ValueError(f"{name} has shape {list(column.shape)}; give one per video")

    @cached_property
    def video_M(self) -> NDArray[np.int64]:
        """The number of the video of each test, from 0 to V - 1."""
        if self.folds_M is None or self.ids_M is None:
            return np.arange(len(self.weights_M))
        video_M: NDArray[np.int64] = np.unique(self.ids_M, return_inverse=True)[1]
        return video_M

    @property
    def videos(self) -> int:
        """V, the number of different videos."""
        return int(self.video_M.max()) + 1

    def scores(self, counts_RV: Floats | None = None) -> Floats:
        """Returns the score of every training, [S]; with how often videos were drawn, [R, S]."""
        if counts_RV is None:
            score_S: Floats = self.scores(np.ones((1, self.videos)))[0]
            return score_S
        counts_RM = counts_RV if self.folds_M is None else counts_RV[:, self.video_M]
        every_M = np.arange(len(self.weights_M))
        parts = [self._of_fold(counts_RM, tests) for tests in _grouped(every_M, self.folds_M)]
        return _mean(np.stack(parts))

    def _of_fold(self, counts_RM: Floats, tests: NDArray[np.int64]) -> Floats:
        scores = []
        for videos in _grouped(tests, self.groups_M):
            counts = counts_RM if len(videos) == counts_RM.shape[1] else counts_RM[:, videos]
            sums_RS = counts @ self.values_SM[:, videos].T
            weights_R1 = (counts @ self.weights_M[videos])[:, None]
            scores.append(np.full_like(sums_RS, np.nan))
            np.divide(sums_RS, weights_R1, out=scores[-1], where=weights_R1 > 0)
        score_GRS = np.stack(scores)
        if not self.harmonic:
            return _mean(score_GRS)
        with np.errstate(divide="ignore"):  # a share of 0 makes the harmonic mean 0
            return 1 / _mean(1 / score_GRS)


def resampled_scores(
    rows: Sequence[VideoScores], resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Returns the mean score of each row in every resample of videos and seeds, [K, R].

    Every resample draws V videos with replacement, the same for all rows, so that differences
    between rows are paired; and S seeds of each row with more than one seed. The variance of S
    seeds drawn from S is too small by (S-1)/S, so their deviations are scaled by the root of its
    inverse (Rao and Wu, "Resampling inference with complex survey data", 1988).

    Raises ValueError if the rows were not measured on the same number of videos.
    """
    sizes = {row.videos for row in rows}
    if len(sizes) != 1:
        raise ValueError(
            f"the rows were measured on {' and '.join(map(str, sorted(sizes)))} videos; only rows "
            "over the same videos can be compared"
        )
    videos = sizes.pop()
    draws = np.random.default_rng(seed)
    weights_KRS = [_seed_weights(row, resamples, seed) for row in rows]
    means_KR = np.empty((len(rows), resamples))
    at_once = max(1, _DRAWN_AT_ONCE // videos)
    for start in range(0, resamples, at_once):
        part = slice(start, min(start + at_once, resamples))
        counts_RV = _draw(draws, part.stop - part.start, videos)
        for number, row in enumerate(rows):
            means_KR[number, part] = (row.scores(counts_RV) * weights_KRS[number][part]).sum(1)
    return means_KR


def interval(scores_R: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the percentile interval of resampled scores, or of their differences."""
    # A resample without any video of a measure, which a tiny test split can have, is ignored.
    low, high = np.nanquantile(scores_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_p(differences_R: Floats) -> float:
    """Returns the two-sided p-value of no difference, from resampled differences of two rows.

    Twice the share of resamples on the other side of zero: below 0.05 if the 95% interval excludes
    zero. The smallest possible value is 2 / (R + 1).
    """
    below, above = (differences_R <= 0).sum(), (differences_R >= 0).sum()
    return min(1.0, 2 * (1 + float(min(below, above))) / (len(differences_R) + 1))


def exact_p(first: VideoScores, second: VideoScores) -> float:
    """Returns the two-sided p-value of no difference in correct answers: an exact permutation test.

    With one training per row it is McNemar's exact test: of the videos that only one of the two
    classifies correctly, each is the first's with probability 1/2. With several trainings, the
    answers of all trainings of a row to one video are swapped together, since they are dependent;
    the p-value is the share of all 2^V swaps with at least this difference, computed exactly. The
    answers of all folds to one video are swapped together too, and count equally.

    It generalises to other videos, not to other trainings. Raises ValueError if the rows have
    different numbers of videos, or values other than 0 and 1.
    """
    from scipy.stats import binom  # takes half a second to import, and a training needs none of it

    if first.values_SM.shape[1] != second.values_SM.shape[1]:
        raise ValueError("only rows over the same videos can be compared")
    for row in (first, second):
        if not np.isin(row.values_SM, (0, 1)).all() or not (row.weights_M == 1).all():
            raise ValueError("the exact test needs one value per video, 0 or 1, with weight 1")
    difference_V = _whole_differences(first, second)
    sizes, counts = np.unique(np.abs(difference_V[difference_V != 0]), return_counts=True)
    # Distribution of the sum of all differences under random signs, in steps of two from its
    # minimum.
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        spread[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, spread)
    total = abs(int(difference_V.sum()))
    sums = 2 * np.arange(len(chances)) - (len(chances) - 1)
    return min(1.0, float(chances[np.abs(sums) >= total].sum()))


def join_folds(folds: Sequence[VideoScores]) -> VideoScores:
    """Returns the scores of a row over several folds, whose seeds are in the same order."""
    if len(folds) == 1:
        return folds[0]

    def column(name: str) -> Any:
        parts = [getattr(fold, name) for fold in folds]
        return None if parts[0] is None else np.concatenate(parts, -1)

    numbers = [np.full(len(fold.weights_M), number) for number, fold in enumerate(folds)]
    return replace(
        folds[0],
        folds_M=np.concatenate(numbers),
        **{name: column(name) for name in ("values_SM", "weights_M", "groups_M", "ids_M")},
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for all comparisons together (Holm, 1979), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort(kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def _grouped(
    tests: NDArray[np.int64], groups_M: NDArray[np.int64] | None
) -> list[NDArray[np.int64]]:
    """Returns those of `tests` that are in each group; all of them if there are no groups."""
    if groups_M is None:
        return [tests]
    return [tests[groups_M[tests] == group] for group in np.unique(groups_M[tests])]


def _mean(scores_GRS: Floats) -> Floats:
    """Returns the mean over the groups that were drawn, [R, S]; NaN if none was."""
    drawn_GRS = ~np.isnan(scores_GRS)
    counts_RS = drawn_GRS.sum(0)
    mean_RS: Floats = np.full(counts_RS.shape, np.nan)
    np.divide(np.where(drawn_GRS, scores_GRS, 0).sum(0), counts_RS, mean_RS, where=counts_RS > 0)
    return mean_RS


def _draw(draws: np.random.Generator, resamples: int, videos: int) -> Floats:
    """Returns how often each video is drawn in every resample, [R, M]; rows sum to M."""
    drawn_RM = draws.integers(0, videos, (resamples, videos))
    drawn_RM += videos * np.arange(resamples)[:, None]
    counts = np.bincount(drawn_RM.ravel(), minlength=resamples * videos)
    return counts.reshape(resamples, videos).astype(np.float64)


def _seed_weights(row: VideoScores, resamples: int, seed: int) -> Floats:
    """Returns the weight of each training of a row in every resample, [R, S]; rows sum to 1."""
    seeds = len(row.values_SM)
    if seeds == 1:
        return np.ones((resamples, 1))
    # Seeded by the values of the row, so that other rows of a table do not change its draws.
    digest = hashlib.blake2b(np.ascontiguousarray(row.values_SM).tobytes(), digest_size=8).digest()
    draws = np.random.default_rng([seed, int.from_bytes(digest)])
    counts_RS = _draw(draws, resamples, seeds)
    return 1 / seeds + math.sqrt(seeds / (seeds - 1)) * (counts_RS - 1) / seeds


def _whole_differences(first: VideoScores, second: VideoScores) -> NDArray[np.int64]:
    """Returns the difference of the mean values of each video, scaled to coprime integers, [V]."""
    common = math.lcm(len(first.values_SM), len(second.values_SM))
    first_M, second_M = (
        values.sum(0).round().astype(np.int64) * (common // len(values))
        for values in (first.values_SM, second.values_SM)
    )
    difference_V = np.zeros(first.videos, np.int64)
    np.add.at(difference_V, first.video_M, first_M - second_M)
    difference_V //= max(1, int(np.gcd.reduce(difference_V)))
    return difference_V
