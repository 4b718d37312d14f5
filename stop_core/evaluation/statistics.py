"""How sure a measured score is: intervals and paired tests over test videos and seeds.

A score is measured on some of the videos that there could be, with some of the trainings that there
could be. Both are drawn again here: videos and seeds as the two crossed factors that they are
(Owen, "The pigeonhole bootstrap", 2007).

Shapes: S seeds, M videos, G groups of videos, K rows of a table, R resamples.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_DRAWN_AT_ONCE = 4_000_000  # videos; bounds the memory of a bootstrap at about 100 MB


@dataclass(frozen=True)
class VideoScores:
    """What the trainings of one row of a table scored on every test video.

    The score of a training is the sum of the values of the videos over the sum of their weights;
    with several groups, the mean of the groups' scores. For top-1, a value is 1 or 0 and a weight
    1; where a video has several queries, a weight is their number; for mean-class accuracy, a group
    is a class.

    Raises:
        ValueError: if the shapes do not fit, or there is no seed or no video.
    """

    values_SM: Floats
    weights_M: Floats
    groups_M: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        videos = self.values_SM.shape[-1]
        if self.values_SM.ndim != 2 or self.values_SM.size == 0:
            raise ValueError(
                f"outcomes of shape {list(self.values_SM.shape)} are no table of seeds and videos; "
                "give [S, M], at least one of each"
            )
        for name, column in (("weights_M", self.weights_M), ("groups_M", self.groups_M)):
            if column is not None and column.shape != (videos,):
                raise ValueError(f"{name} has shape {list(column.shape)}; give one a video")

    @property
    def members(self) -> list[NDArray[np.int64]]:
        """The numbers of the videos of each group."""
        if self.groups_M is None:
            return [np.arange(len(self.weights_M))]
        return [np.flatnonzero(self.groups_M == group) for group in np.unique(self.groups_M)]

    def scores(self, counts_RM: Floats | None = None) -> Floats:
        """The score of every training, [S]; of every resample, [R, S], where they are given.

        Args:
            counts_RM: how often each video was drawn; default: each of them once.
        """
        if counts_RM is None:
            counts_RM = np.ones((1, len(self.weights_M)))
            return self.scores(counts_RM).reshape(-1)
        score_GRS = np.stack([self._of_group(counts_RM, videos) for videos in self.members])
        mean_RS: Floats = np.nanmean(score_GRS, 0)  # a group that was not drawn says nothing
        return mean_RS

    def _of_group(self, counts_RM: Floats, videos: NDArray[np.int64]) -> Floats:
        counts = counts_RM if len(videos) == counts_RM.shape[1] else counts_RM[:, videos]
        sums_RS = counts @ self.values_SM[:, videos].T
        weights_R1 = (counts @ self.weights_M[videos])[:, None]
        score_RS: Floats = np.full_like(sums_RS, np.nan)
        np.divide(sums_RS, weights_R1, out=score_RS, where=weights_R1 > 0)
        return score_RS


def resampled_scores(
    rows: Sequence[VideoScores], resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """The mean score of each row in every resample of videos and seeds, [K, R].

    Every resample draws M videos with replacement, the same ones for all rows, so that the
    difference of two rows of the result is a paired comparison; and for each row with more than one
    seed, S of its seeds. The spread of seeds that are drawn from S of them is too small by (S-1)/S,
    so their deviations are scaled up by the root of its inverse (Rao and Wu, "Resampling inference
    with complex survey data", 1988).

    Args:
        rows: measured on the same videos, in the same order.
        resamples: R.
        seed: of the draws.

    Raises:
        ValueError: if the rows have not as many videos as each other.
    """
    sizes = {len(row.weights_M) for row in rows}
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
        counts_RM = _draw(draws, part.stop - part.start, videos)
        for number, row in enumerate(rows):
            means_KR[number, part] = (row.scores(counts_RM) * weights_KRS[number][part]).sum(1)
    return means_KR


def interval(scores_R: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of resampled scores, or of differences of them."""
    low, high = np.quantile(scores_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_p(differences_R: Floats) -> float:
    """Two-sided p-value of no difference, from resampled differences of two rows.

    Twice the share of the resamples that lie on the other side of zero: it is below 0.05 where the
    95% interval leaves zero out. The smallest that R resamples can tell is 2 / (R + 1).
    """
    below, above = (differences_R <= 0).sum(), (differences_R >= 0).sum()
    return min(1.0, 2 * (1 + float(min(below, above))) / (len(differences_R) + 1))


def exact_p(first: VideoScores, second: VideoScores) -> float:
    """Two-sided p-value of no difference in the number of right answers: McNemar's exact test.

    With one training of each row, it is McNemar's test: of the videos that just one of the two got
    right, as many should be the first's as the second's (a binomial with 1/2). With several, the
    answers of all trainings of a row to one video are swapped with the other row's as one, since
    they depend on each other; the p-value is the share of all 2^M swaps that make as large a
    difference. It is computed exactly, not drawn.

    It speaks of these trainings on other videos, not of other trainings.

    Raises:
        ValueError: if the rows are not over as many videos, or their values are no 0 or 1.
    """
    if first.values_SM.shape[1] != second.values_SM.shape[1]:
        raise ValueError("only rows over the same videos can be compared")
    for row in (first, second):
        if not np.isin(row.values_SM, (0, 1)).all() or not (row.weights_M == 1).all():
            raise ValueError("the exact test is of right and wrong answers, one a video")
    difference_M = _whole_differences(first.values_SM, second.values_SM)
    sizes, counts = np.unique(np.abs(difference_M[difference_M != 0]), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    # The sum of all differences under random signs, as an offset in twos from its least value.
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        spread[::size] = _binomial(count)
        chances = np.convolve(chances, spread)
    total = abs(int(difference_M.sum()))
    sums = 2 * np.arange(len(chances)) - (len(chances) - 1)
    return min(1.0, float(chances[np.abs(sums) >= total].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that hold for all comparisons together (Holm, 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda number: p_values[number])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def _draw(draws: np.random.Generator, resamples: int, videos: int) -> Floats:
    """How often each video is drawn in every resample, [R, M]; each row sums to M."""
    drawn_RM = draws.integers(0, videos, (resamples, videos))
    drawn_RM += videos * np.arange(resamples)[:, None]
    counts = np.bincount(drawn_RM.ravel(), minlength=resamples * videos)
    return counts.reshape(resamples, videos).astype(np.float64)


def _seed_weights(row: VideoScores, resamples: int, seed: int) -> Floats:
    """What each training of a row weighs in every resample, [R, S]; each row sums to 1."""
    seeds = len(row.values_SM)
    if seeds == 1:
        return np.ones((resamples, 1))
    # The draws follow from what the row scored, so that no other row of a table changes them.
    digest = hashlib.blake2b(np.ascontiguousarray(row.values_SM).tobytes(), digest_size=8).digest()
    draws = np.random.default_rng([seed, int.from_bytes(digest)])
    counts_RS = _draw(draws, resamples, seeds)
    return 1 / seeds + math.sqrt(seeds / (seeds - 1)) * (counts_RS - 1) / seeds


def _whole_differences(first_SM: Floats, second_SM: Floats) -> NDArray[np.int64]:
    """The difference of the mean values of each video, times what makes all of them whole, [M]."""
    common = math.lcm(len(first_SM), len(second_SM))
    first_M, second_M = (
        values.sum(0).round().astype(np.int64) * (common // len(values))
        for values in (first_SM, second_SM)
    )
    difference_M: NDArray[np.int64] = first_M - second_M
    difference_M //= max(1, int(np.gcd.reduce(difference_M)))
    return difference_M


def _binomial(count: int) -> Floats:
    """The chances of 0 to `count` heads in as many throws of a fair coin."""
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            for k in range(count + 1)]  # fmt: skip
    return np.exp(np.array(logs) - count * math.log(2))
