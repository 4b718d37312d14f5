"""Laws of the intervals and tests: coverage, agreement with scipy and with enumeration, order."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from stop_core.evaluation.recognition import harmonic_mean
from stop_core.evaluation.statistics import (
    Floats,
    VideoScores,
    bootstrap_p,
    exact_p,
    holm,
    interval,
    join_folds,
    resampled_scores,
)


def _outcomes(values: object, groups: list[int] | None = None) -> VideoScores:
    values_SM = np.atleast_2d(np.asarray(values, dtype=np.float64))
    group_M = None if groups is None else np.array(groups)
    return VideoScores(values_SM, np.ones(values_SM.shape[1]), group_M)


@st.composite
def answers(draw: st.DrawFn, videos: int, most_seeds: int = 3) -> Floats:
    """Correct (1) and wrong (0) answers, [S, M]."""
    seeds = draw(st.integers(1, most_seeds))
    bits = draw(st.lists(st.booleans(), min_size=seeds * videos, max_size=seeds * videos))
    return np.array(bits, dtype=np.float64).reshape(seeds, videos)


def test_a_score_is_the_mean_over_queries_and_over_classes() -> None:
    weighted = VideoScores(np.array([[2.0, 0.0, 1.0]]), np.array([2.0, 1.0, 3.0]))
    assert weighted.scores() == pytest.approx([0.5])
    assert _outcomes([[1, 1, 0], [1, 0, 0]], [0, 0, 1]).scores() == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_mean_of_the_resamples_is_the_mean(seeds: int) -> None:
    draws = np.random.default_rng(1)
    row = _outcomes(draws.random((seeds, 50)) < 0.7)
    replicas = resampled_scores([row], 4000)[0]
    error = 4 * replicas.std() / np.sqrt(4000)
    assert replicas.mean() == pytest.approx(row.scores().mean(), abs=error)


def test_the_spread_of_the_resamples_is_that_of_theory() -> None:
    # One seed: the standard error of a share. Videos that all score alike: that of the seeds.
    right = _outcomes([1] * 60 + [0] * 40)
    assert resampled_scores([right], 4000)[0].std() == pytest.approx(np.sqrt(0.24 / 100), rel=0.06)
    scores = np.array([0.2, 0.5, 0.6])
    seeds = _outcomes(np.repeat(scores[:, None], 20, 1))
    expected = scores.std(ddof=1) / np.sqrt(3)
    assert resampled_scores([seeds], 4000)[0].std() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "least"),
    [(1, 0.0, 0.90), (5, 0.0, 0.90), (5, 0.3, 0.80), (10, 0.3, 0.86)],
)
def test_the_interval_covers_the_truth(seeds: int, of_seed: float, least: float) -> None:
    # Few seeds cover less: five values are a poor estimate of their spread.
    draws, covered, truth, videos = np.random.default_rng(7), 0, 0.3, 40
    for _ in range(250):
        of_video_M = draws.normal(0, 1, videos)
        of_seed_S1 = draws.normal(0, of_seed, (seeds, 1))
        noise_SM = draws.normal(0, 0.5, (seeds, videos))
        row = _outcomes(truth + of_video_M + of_seed_S1 + noise_SM)
        low, high = interval(resampled_scores([row], 300)[0])
        covered += low <= truth <= high
    assert least <= covered / 250 <= 0.985


def test_the_difference_of_rows_is_paired_by_video() -> None:
    draws = np.random.default_rng(0)
    one = draws.random((1, 80)) < 0.5
    other = one.copy()
    other[0, 0] = ~other[0, 0]
    first, second = resampled_scores([_outcomes(one), _outcomes(other)], 500)
    assert np.abs(first - second).max() < 0.1 < first.std() * 2
    same = resampled_scores([_outcomes(one), _outcomes(one)], 50)
    assert np.array_equal(same[0], same[1])


def test_the_interval_of_a_row_does_not_depend_on_other_rows_or_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = np.random.default_rng(0)
    row, other = (_outcomes(draws.random((3, 30)) < 0.5) for _ in range(2))
    alone = resampled_scores([row], 200)[0]
    assert np.array_equal(alone, resampled_scores([other, row], 200)[1])
    monkeypatch.setattr("stop_core.evaluation.statistics._DRAWN_AT_ONCE", 100)
    assert np.array_equal(alone, resampled_scores([row], 200)[0])


def test_a_class_that_was_not_drawn_is_ignored_in_the_mean() -> None:
    row = _outcomes([[1, 1, 1, 0]], [0, 0, 0, 1])
    replicas = resampled_scores([row], 300)[0]
    assert not np.isnan(replicas).any()
    assert set(np.unique(replicas)) <= {0.0, 0.5, 1.0}


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.randoms())
def test_with_one_seed_the_exact_test_is_mcnemars_in_any_order(
    only_first: int, only_second: int, both: int, random: object
) -> None:
    pairs = [(1, 0)] * only_first + [(0, 1)] * only_second + [(1, 1)] * both + [(0, 0)]
    random.shuffle(pairs)  # type: ignore[attr-defined]
    first, second = (_outcomes([column]) for column in zip(*pairs, strict=True))
    discordant = only_first + only_second
    expected = binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert exact_p(first, second) == pytest.approx(expected, rel=1e-9)
    assert exact_p(second, first) == exact_p(first, second)


@settings(max_examples=60, deadline=None)
@given(answers(videos=7), answers(videos=7))
def test_with_several_seeds_it_counts_the_swaps_of_whole_videos(
    first: Floats, second: Floats
) -> None:
    difference = first.mean(0) - second.mean(0)
    total = abs(difference.sum())
    sums = [abs((np.array(signs) * difference).sum()) for signs in product((-1, 1), repeat=7)]
    expected = np.mean([one >= total - 1e-9 for one in sums])
    assert exact_p(_outcomes(first), _outcomes(second)) == pytest.approx(expected)


def test_repeated_seeds_are_no_more_evidence_than_one() -> None:
    draws = np.random.default_rng(3)
    first, second = (draws.random((1, 200)) < share for share in (0.55, 0.45))
    one = exact_p(_outcomes(first), _outcomes(second))
    five = exact_p(_outcomes(first.repeat(5, 0)), _outcomes(second.repeat(5, 0)))
    assert five == pytest.approx(one)


def test_both_tests_keep_their_level_under_the_null_hypothesis() -> None:
    draws, exact, boot, runs = np.random.default_rng(11), 0, 0, 200
    for _ in range(runs):
        easy_M = draws.random(60)
        rows = [_outcomes(draws.random((3, 60)) < easy_M) for _ in range(2)]
        exact += exact_p(*rows) <= 0.05
        first, second = resampled_scores(rows, 200)
        boot += bootstrap_p(first - second) <= 0.05
    assert exact / runs <= 0.09
    assert boot / runs <= 0.09


def test_the_bootstraps_p_value_agrees_with_its_interval() -> None:
    draws = np.random.default_rng(5)
    for shift in np.linspace(0, 0.4, 9):
        differences = draws.normal(shift, 0.1, 2000)
        low, high = interval(differences)
        p = bootstrap_p(differences)
        assert (low > 0 or high < 0) == (p < 0.05) or p == pytest.approx(0.05, abs=2e-3)
    assert bootstrap_p(np.ones(999)) == pytest.approx(2 / 1000)


def test_holm_is_the_step_down_rule() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * max(p_values))
    assert min(adjusted) == min(1.0, len(p_values) * min(p_values))
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VideoScores(np.ones((0, 3)), np.ones(3)),
        lambda: VideoScores(np.ones(3), np.ones(3)),
        lambda: VideoScores(np.ones((1, 3)), np.ones(2)),
        lambda: VideoScores(np.ones((1, 3)), np.ones(3), np.ones(2, dtype=np.int64)),
        lambda: resampled_scores([_outcomes([1, 0]), _outcomes([1])]),
        lambda: exact_p(_outcomes([1, 0]), _outcomes([1])),
        lambda: exact_p(_outcomes([1, 0.5]), _outcomes([1, 0])),
    ],
)
def test_invalid_inputs_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"shape|videos|one value per video"):
        make()  # type: ignore[operator]


def test_where_all_resamples_agree_that_nothing_differs_p_is_one() -> None:
    assert bootstrap_p(np.zeros(99)) == 1
    assert bootstrap_p(np.ones(99)) == bootstrap_p(-np.ones(99)) == 2 / 100


def _fold(values: object, videos: list[str], groups: list[int] | None = None) -> VideoScores:
    values_SM = np.atleast_2d(np.asarray(values, dtype=np.float64))
    group_M = None if groups is None else np.array(groups)
    return VideoScores(values_SM, np.ones(len(videos)), group_M, np.array(videos))


def test_the_score_over_folds_is_the_mean_of_the_folds() -> None:
    first = _fold([[1, 1, 0, 0], [1, 1, 1, 0]], list("abcd"), [0, 0, 1, 1])
    second = _fold([[1, 0], [1, 1]], list("ce"), [0, 1])
    both = join_folds([first, second])
    assert both.videos == 5
    assert both.scores() == pytest.approx((first.scores() + second.scores()) / 2)
    assert both.scores() == pytest.approx([0.5, 0.875])
    assert join_folds([first]) is first


def test_a_video_of_two_folds_is_drawn_once_and_swapped_once() -> None:
    # The same test twice is the same evidence.
    draws = np.random.default_rng(2)
    names = [f"{number:02}" for number in range(40)]
    ours, theirs = (_fold(draws.random((1, 40)) < share, names) for share in (0.8, 0.5))
    twice, theirs_twice = join_folds([ours, ours]), join_folds([theirs, theirs])
    assert resampled_scores([twice]) == pytest.approx(resampled_scores([ours]))
    assert exact_p(twice, theirs_twice) == pytest.approx(exact_p(ours, theirs))
    # Other videos in the second fold are further evidence.
    others = [f"other {name}" for name in names]
    wider = [join_folds([one, _fold(one.values_SM, others)]) for one in (ours, theirs)]
    assert wider[0].videos == 80
    assert exact_p(*wider) < exact_p(ours, theirs)
    assert resampled_scores(wider[:1]).std() < 0.9 * resampled_scores([ours]).std()


def test_the_exact_test_over_folds_agrees_with_enumeration() -> None:
    draws, videos = np.random.default_rng(5), list("abcdefg")
    folds = [["a", "b", "c", "d", "e"], ["d", "e", "f", "g"]]
    ours, theirs = (
        join_folds([_fold(draws.random((2, len(own))) < 0.6, own) for own in folds])
        for _ in range(2)
    )
    difference = np.zeros(len(videos))
    for row, sign in ((ours, 1), (theirs, -1)):
        assert row.ids_M is not None
        for video, value in zip(row.ids_M, row.values_SM.sum(0), strict=True):
            difference[videos.index(video)] += sign * value
    swaps = [abs(float(np.dot(signs, difference))) for signs in product((-1, 1), repeat=7)]
    expected = np.mean(np.array(swaps) >= abs(difference.sum()) - 1e-9)
    assert exact_p(ours, theirs) == pytest.approx(expected)


@pytest.mark.parametrize(("right", "mean"), [((2, 1), 2 / 3), ((2, 0), 0.0), ((0, 0), 0.0)])
def test_the_harmonic_mean_of_two_groups(right: tuple[int, int], mean: float) -> None:
    values = [number < count for count in right for number in range(2)]
    scores = VideoScores(
        np.array([values], float), np.ones(4), np.array([0, 0, 1, 1]), harmonic=True
    )
    assert scores.scores() == pytest.approx([mean])
    assert harmonic_mean(right[0] / 2, right[1] / 2) == pytest.approx(mean)


def test_a_resample_without_any_counted_video_is_ignored() -> None:
    one = VideoScores(np.array([[1.0, 0.0]]), np.array([1.0, 0.0]))
    resampled = resampled_scores([one], 200)[0]
    assert np.isnan(resampled).any()
    assert interval(resampled) == (1.0, 1.0)
