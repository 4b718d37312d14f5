"""Laws of the retrieval metrics and of the re-ranking methods."""

import math
from random import Random
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stop_core.evaluation import retrieval
from stop_core.evaluation.retrieval import (
    dual_softmax,
    qb_norm,
    rank_metrics,
    retrieval_ranks,
    text_to_video_ranks,
    video_to_text_ranks,
)

NAN = float("nan")
# Few values, so that ties are common.
SIMILARITIES = st.sampled_from([-math.inf, -0.5, 0.0, 0.5, NAN])


def retrieval_metrics(*arguments: Any, **options: Any) -> dict[str, float]:
    return rank_metrics(retrieval_ranks(*arguments, **options))


@st.composite
def galleries(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Similarities, [N, M], with many ties, and the video of every text; each video has a text."""
    videos = draw(st.integers(1, 5))
    more = draw(st.lists(st.integers(0, videos - 1), max_size=5))
    video_of_text = draw(st.permutations([*range(videos), *more]))
    size = len(video_of_text) * videos
    values = draw(st.lists(SIMILARITIES, min_size=size, max_size=size))
    return torch.tensor(values).view(-1, videos), torch.tensor(video_of_text)


def _distinct(texts: int, videos: int, seed: int) -> Tensor:
    """Similarities without ties, in the range of cosines."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(texts, videos, generator=generator, dtype=torch.float64) * 2 - 1


def _slow_ranks(similarity: Tensor, video_of_text: Tensor) -> tuple[list[int], list[int]]:
    """The definitions, one comparison at a time."""
    rows, video_of = similarity.tolist(), video_of_text.tolist()
    of_texts = []
    for row, own in zip(rows, video_of, strict=True):
        of_texts.append(1 + sum(not row[j] < row[own] for j in range(len(row)) if j != own))
    of_videos = []
    for j in range(similarity.shape[1]):
        of_own_texts = [
            1 + sum(not rows[t][j] < rows[i][j] for t in range(len(rows)) if video_of[t] != j)
            for i in range(len(rows))
            if video_of[i] == j
        ]
        of_videos.append(min(of_own_texts))
    return of_texts, of_videos


@settings(max_examples=200, deadline=None)
@given(galleries())
def test_ranks_and_metrics_are_those_of_counting(drawn: tuple[Tensor, Tensor]) -> None:
    similarity, video_of_text = drawn
    of_texts, of_videos = _slow_ranks(similarity, video_of_text)
    assert text_to_video_ranks(similarity, video_of_text).tolist() == of_texts
    assert video_to_text_ranks(similarity, video_of_text).tolist() == of_videos
    expected = {}
    for direction, ranks in (("t2v", of_texts), ("v2t", of_videos)):
        for k in (1, 5, 10):
            expected[f"{direction}_r{k}"] = sum(rank <= k for rank in ranks) / len(ranks)
        expected[f"{direction}_median_rank"] = median(ranks)
        expected[f"{direction}_mean_rank"] = sum(ranks) / len(ranks)
    assert retrieval_metrics(similarity, video_of_text) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(galleries(), st.integers(1, 12))
def test_the_size_of_a_block_changes_nothing(drawn: tuple[Tensor, Tensor], block: int) -> None:
    whole = retrieval_metrics(*drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_COMPARED", block)
        assert retrieval_metrics(*drawn) == whole


@settings(max_examples=100, deadline=None)
@given(galleries(), st.randoms(use_true_random=False))
def test_permuting_videos_and_texts_together_changes_no_metric(
    drawn: tuple[Tensor, Tensor], random: Random
) -> None:
    similarity, video_of_text = drawn
    texts, videos = (list(range(size)) for size in similarity.shape)
    random.shuffle(texts)
    random.shuffle(videos)
    moved = similarity[texts][:, videos]
    place_of = torch.tensor(videos).argsort()
    assert retrieval_metrics(moved, place_of[video_of_text][texts]) == pytest.approx(
        retrieval_metrics(similarity, video_of_text)
    )


@settings(max_examples=100, deadline=None)
@given(galleries())
def test_a_second_copy_of_every_text_lowers_only_the_ranks_of_videos(
    drawn: tuple[Tensor, Tensor],
) -> None:
    """A copy of a video's own text does not compete with it; copies of other texts do."""
    similarity, video_of_text = drawn
    copied = similarity.repeat(2, 1), video_of_text.repeat(2)
    once = text_to_video_ranks(similarity, video_of_text)
    assert torch.equal(text_to_video_ranks(*copied), once.repeat(2))
    rivals = video_to_text_ranks(similarity, video_of_text) - 1
    assert torch.equal(video_to_text_ranks(*copied), 1 + 2 * rivals)


def test_equal_texts_of_one_video_do_not_count_against_each_other() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.5]])
    assert video_to_text_ranks(similarity, torch.tensor([0, 0, 1])).tolist() == [1, 1]


def test_a_constant_matrix_has_the_worst_rank_in_both_directions() -> None:
    video_of_text = torch.tensor([0, 0, 1, 2, 2, 2])
    similarity = torch.full((6, 3), 0.25)
    assert text_to_video_ranks(similarity, video_of_text).tolist() == [3] * 6
    assert video_to_text_ranks(similarity, video_of_text).tolist() == [5, 6, 4]
    assert retrieval_metrics(torch.zeros(3, 3))["t2v_r1"] == 0.0


def test_nan_is_never_retrieved() -> None:
    similarity = torch.full((4, 4), NAN)
    assert text_to_video_ranks(similarity).tolist() == [4] * 4
    assert video_to_text_ranks(similarity).tolist() == [4] * 4


def _clip4clip(similarity: Tensor) -> dict[str, float]:
    """Returns the ranks of the common implementation: all positions of the true value."""
    negative = -similarity.numpy()
    places = np.where(np.sort(negative, axis=1) - np.diag(negative)[:, None] == 0)[1]
    return {
        "t2v_r1": float(np.mean(places == 0)),
        "t2v_median_rank": float(np.median(places)) + 1,
        "t2v_mean_rank": float(np.mean(places)) + 1,
    }


def test_the_common_implementation_agrees_without_ties_and_counts_a_tied_row_repeatedly() -> None:
    similarity = _distinct(7, 7, 0)
    ours = retrieval_metrics(similarity)
    assert {key: ours[key] for key in _clip4clip(similarity)} == _clip4clip(similarity)
    # One text finds its video; three tie with all four, and are 3 of 4 queries, not 12 of 13.
    tied = torch.zeros(4, 4)
    tied[0, 0] = 1.0
    assert _clip4clip(tied)["t2v_r1"] == pytest.approx(4 / 13)
    assert retrieval_metrics(tied)["t2v_r1"] == pytest.approx(1 / 4)


def test_dual_softmax_is_its_equation_and_finds_a_text_for_every_video() -> None:
    similarity = _distinct(4, 3, 1)
    found = dual_softmax(similarity, 0.1)
    for j in range(3):
        weights = [math.exp(float(value) / 0.1) for value in similarity[:, j]]
        for i in range(4):
            expected = float(similarity[i, j]) * weights[i] / sum(weights)
            assert found[i, j].item() == pytest.approx(expected)


def test_dual_softmax_finds_one_to_one_pairs_despite_a_hub() -> None:
    """Video 0 is the nearest of every text, and nearest to its own text."""
    similarity = torch.tensor([[0.9, 0.1, 0.1], [0.6, 0.5, 0.1], [0.6, 0.1, 0.5]])
    assert retrieval_metrics(similarity)["t2v_r1"] == pytest.approx(1 / 3)
    assert retrieval_metrics(similarity, rerank="dsl")["t2v_r1"] == 1.0


def test_dual_softmax_re_ranks_each_direction_over_the_queries_of_the_other() -> None:
    similarity = _distinct(6, 6, 2)
    found = retrieval_metrics(similarity, rerank="dsl", temperature=0.2)
    of_videos = text_to_video_ranks(dual_softmax(similarity.T, 0.2))  # videos as the queries
    assert found["v2t_mean_rank"] == pytest.approx(of_videos.double().mean().item())
    of_texts = text_to_video_ranks(dual_softmax(similarity, 0.2))
    assert found["t2v_mean_rank"] == pytest.approx(of_texts.double().mean().item())


def _published_qb_norm(similarity: Tensor, bank: Tensor, k: int, beta: float) -> np.ndarray:
    """The equations of the paper, one text at a time, as quotients of exponentials."""
    hubs = {j for row in bank.tolist() for j in np.argsort(row)[::-1][:k].tolist()}
    mass = [sum(math.exp(beta * row[j]) for row in bank.tolist()) for j in range(bank.shape[1])]
    rows = []
    for row in similarity.tolist():
        if max(range(len(row)), key=lambda j: row[j]) in hubs:
            row = [math.exp(beta * value) / mass[j] for j, value in enumerate(row)]
        rows.append(row)
    return np.array(rows)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.integers(1, 6),
    videos=st.integers(1, 6),
    bank_texts=st.integers(1, 6),
    k=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_qb_norm_ranks_as_the_published_quotient(
    texts: int, videos: int, bank_texts: int, k: int, seed: int
) -> None:
    similarity, bank = _distinct(texts, videos, seed), _distinct(bank_texts, videos, seed + 100)
    k = min(k, videos)
    found = qb_norm(similarity, bank, k)
    published = _published_qb_norm(similarity, bank, k, 20.0)
    assert np.array_equal(np.argsort(found.numpy(), axis=1), np.argsort(published, axis=1))


def test_qb_norm_demotes_hubs_and_changes_no_other_texts() -> None:
    similarity = torch.tensor([[0.50, 0.45, 0.0], [0.50, 0.0, 0.45], [0.2, 0.0, 0.3]])
    bank = torch.tensor([[0.6, 0.1, 0.1], [0.7, 0.1, 0.1]])  # video 0 is a hub
    assert qb_norm(similarity, bank).argmax(1).tolist() == [1, 2, 2]
    assert torch.equal(qb_norm(similarity, bank)[2], similarity[2])
    video_of_text = torch.tensor([1, 2, 0])
    plain = retrieval_metrics(similarity, video_of_text)
    found = retrieval_metrics(similarity, video_of_text, "qb-norm", bank)
    assert (plain["t2v_r1"], found["t2v_r1"]) == (0.0, pytest.approx(2 / 3))
    assert set(found) == {key for key in plain if key.startswith("t2v")}


def test_re_ranking_does_not_overflow_on_logits() -> None:
    logits = 100 * _distinct(5, 5, 3).float()
    assert qb_norm(logits, logits).isfinite().all()
    assert dual_softmax(logits).isfinite().all()
    assert text_to_video_ranks(qb_norm(logits, logits, temperature=5.0)).tolist() == (
        text_to_video_ranks(qb_norm(logits / 100, logits / 100)).tolist()
    )


SQUARE = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity_NM": torch.zeros(0, 2)}, "at least one of each"),
        ({"similarity_NM": torch.zeros(2, 2, dtype=torch.long)}, "matrix of floats"),
        ({"similarity_NM": torch.zeros(3, 2)}, "3 texts and 2 videos; give video_of_text"),
        ({"video_of_text": torch.tensor([0])}, "one video for each of the 2 texts"),
        ({"video_of_text": torch.tensor([0, 2])}, "names video 2"),
        ({"video_of_text": torch.tensor([0, 0])}, "video 1 has no text"),
        ({"rerank": "csls"}, "rerank is 'csls'"),
        ({"rerank": "qb-norm"}, "needs query_bank"),
        ({"query_bank": SQUARE}, "uses no query_bank"),
        ({"rerank": "qb-norm", "query_bank": torch.zeros(2, 3)}, r"query bank has shape \[2, 3\]"),
        ({"rerank": "qb-norm", "query_bank": torch.zeros(0, 2)}, r"query bank has shape \[0, 2\]"),
        ({"rerank": "dsl", "temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": 1.0}, "has no temperature"),
    ],
)
def test_invalid_inputs_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**{"similarity_NM": SQUARE, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, 3])
def test_numbers_of_hubs_out_of_range_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; choose from 1 to the number of videos, 2"):
        qb_norm(SQUARE, torch.zeros(5, 2), k)


def test_a_text_of_a_video_before_the_first_is_refused_like_one_behind_the_last() -> None:
    for strange in (-1, -2, 2, 7):
        with pytest.raises(ValueError, match=f"names video {strange}; .*0 to 1$"):
            retrieval_metrics(SQUARE, torch.tensor([0, strange]))
    with pytest.raises(ValueError, match="video 1 has no text"):
        retrieval_metrics(torch.zeros(1, 3), torch.tensor([0]))


def test_a_hub_is_the_nearest_video_alone_unless_more_are_asked_for() -> None:
    bank, texts = _distinct(7, 4, 5), _distinct(6, 4, 6)
    assert torch.equal(qb_norm(texts, bank), qb_norm(texts, bank, k=1))
    assert not torch.equal(qb_norm(texts, bank), qb_norm(texts, bank, k=4))


def test_the_temperatures_are_the_published_ones() -> None:
    matrix, bank = _distinct(30, 30, 1), _distinct(40, 30, 2)
    assert torch.equal(dual_softmax(matrix), dual_softmax(matrix, temperature=0.01))
    assert torch.equal(qb_norm(matrix, bank), qb_norm(matrix, bank, temperature=1 / 20))
    for rerank, temperature in (("dsl", 0.01), ("qb-norm", 1 / 20)):
        options = {"rerank": rerank, "query_bank": bank if rerank == "qb-norm" else None}
        assert retrieval_metrics(matrix, **options) == retrieval_metrics(  # type: ignore[arg-type]
            matrix, **options, temperature=temperature
        )
        assert retrieval_metrics(matrix, **options) != retrieval_metrics(  # type: ignore[arg-type]
            matrix, **options, temperature=100.0
        )


@pytest.mark.parametrize(("columns", "rows"), [(1, 5), (2**19, 2), (2**19 + 1, 1), (2**21, 1)])
def test_a_million_similarities_are_compared_at_once_or_those_of_one_row(
    columns: int, rows: int
) -> None:
    blocks = retrieval._row_blocks(torch.empty(5, columns, device="meta"))
    assert blocks == [slice(start, start + blocks[0].stop) for start in range(0, 5, rows)]
    assert min(blocks[0].stop, 5) == rows
