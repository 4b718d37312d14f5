"""Laws of the losses: their equations, and independence of the number of processes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stop_core.runtime.distributed import my_share, sum_over_processes
from stop_core.runtime.gradient_sum import GradientSum
from stop_core.training.losses import contrastive_loss, recognition_loss
from tests.stop_core.processes import run_together


def _units(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=1)


def _slow_info_nce(video: Tensor, text: Tensor, scale: float, ids: list[int]) -> float:
    """The equation, one pair at a time."""
    return slow_info_nce(video, text, scale, [[a == b for b in ids] for a in ids])


def slow_info_nce(
    video: Tensor, text: Tensor, scale: float, belongs: Sequence[Sequence[bool]]
) -> float:
    """The equation, one pair at a time; `belongs[i][j]`: whether text j is one of video i."""
    total, count = 0.0, len(belongs)
    for is_reverse, queries, candidates in ((False, video, text), (True, text, video)):
        for i, query in enumerate(queries):
            likeness = [math.exp(scale * float(query @ candidate)) for candidate in candidates]
            positives = [
                j for j in range(count) if (belongs[j][i] if is_reverse else belongs[i][j])
            ]
            for j in positives:
                total -= math.log(likeness[j] / sum(likeness)) / len(positives)
    return total / (2 * count)


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    scale=st.sampled_from([0.5, 1.0, 10.0]),
    seed=st.integers(0, 9),
)
def test_the_contrastive_loss_is_its_equation(ids: list[int], scale: float, seed: int) -> None:
    video, text = _units(len(ids), seed), _units(len(ids), seed + 10)
    loss = contrastive_loss(video, text, scale, torch.tensor(ids))
    assert loss.item() == pytest.approx(_slow_info_nce(video, text, scale, ids))
    plain = contrastive_loss(video, text, scale)
    assert plain.item() == pytest.approx(_slow_info_nce(video, text, scale, list(range(len(ids)))))


def test_without_ids_it_is_the_loss_of_clip() -> None:
    video, text = _units(6, 0), _units(6, 1)
    logits = 20 * video @ text.T
    truth = torch.arange(6)
    expected = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
    torch.testing.assert_close(contrastive_loss(video, text, 20), expected)


def test_a_second_copy_of_every_pair_with_the_same_ids_adds_log_2() -> None:
    """Each of two positives can have at most half of the probability."""
    video, text = _units(4, 0), _units(4, 1)
    once = contrastive_loss(video, text, 10, torch.arange(4))
    twice = contrastive_loss(video.repeat(2, 1), text.repeat(2, 1), 10, torch.arange(4).repeat(2))
    torch.testing.assert_close(twice, once + math.log(2))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 5), seed=st.integers(0, 99))
def test_positives_can_differ_between_the_two_directions(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    belongs = (torch.rand(count, count, generator=generator) < 0.4) | torch.eye(count).bool()
    video, text = _units(count, seed), _units(count, seed + 100)
    loss = contrastive_loss(video, text, 3.0, positives=(belongs, belongs.T))
    assert loss.item() == pytest.approx(slow_info_nce(video, text, 3.0, belongs.tolist()))


def test_half_precision_embeddings_are_compared_in_float32() -> None:
    video, text = _units(4, 0).bfloat16(), _units(4, 1).bfloat16()
    found = contrastive_loss(video, text, 10)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrastive_loss(video.float(), text.float(), 10))


def test_the_recognition_loss_is_the_mean_over_the_whole_batch() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0])
    parts = recognition_loss(logits[:4], labels[:4], 5) + recognition_loss(
        logits[4:], labels[4:], 5
    )
    torch.testing.assert_close(parts, F.cross_entropy(logits, labels))
    assert recognition_loss(logits[:0], labels[:0], 5).item() == 0
    alone = recognition_loss(logits[:1], labels[:1], 1)
    torch.testing.assert_close(alone, F.cross_entropy(logits[:1], labels[:1]))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_smoothed_and_mixed_labels_are_probabilities(smoothing: float) -> None:
    logits = _units(4, 3) * 5
    labels, other = torch.tensor([0, 2, 1, 4]), torch.tensor([1, 2, 3, 0])
    own, partner = F.one_hot(labels, 5).double(), F.one_hot(other, 5).double()
    for target in (own, 0.7 * own + 0.3 * partner):
        smooth = (1 - smoothing) * target + smoothing / 5
        expected = -(smooth * logits.log_softmax(1)).sum() / 4
        torch.testing.assert_close(recognition_loss(logits, target, 4, smoothing), expected)
    by_class = recognition_loss(logits, labels, 4, smoothing)
    torch.testing.assert_close(by_class, recognition_loss(logits, own, 4, smoothing))


def test_shapes_that_do_not_fit_are_refused() -> None:
    rows = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\[2, 3\] and texts of shape \[1, 3\]"):
        contrastive_loss(rows, rows[:1], 1.0)
    with pytest.raises(ValueError, match=r"ids have shape \[3\]"):
        contrastive_loss(rows, rows, 1.0, torch.zeros(3, dtype=torch.long))
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"positives have shapes \[\[2, 2\], \[1, 2\]\]"):
        contrastive_loss(rows, rows, 1.0, positives=(mask, mask[:1]))
    with pytest.raises(ValueError, match="empty on all processes"):
        contrastive_loss(rows[:0], rows[:0], 1.0)
    with pytest.raises(ValueError, match=r"labels of shape \[3\]"):
        recognition_loss(rows, torch.zeros(3, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="cannot be part of a batch of 1"):
        recognition_loss(rows, torch.zeros(2, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="cannot be part of a batch of 0"):
        recognition_loss(rows[:0], torch.zeros(0, dtype=torch.long), 0)


# The shares of two processes in a batch of four, and the ids of its pairs.
CASES: list[tuple[tuple[int, int], list[int] | None]] = [
    (shares, ids)
    for shares in ((2, 2), (3, 1), (4, 0), (0, 4))
    for ids in (None, [0, 1, 0, 1], [7, 7, 7, 2**40])
]


class _TwoTowers(nn.Module):
    """A minimal CLIP: two linear maps onto the sphere and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.video, self.text = nn.Linear(6, 4), nn.Linear(6, 4)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def loss(self, batch: Tensor, ids: Tensor | None) -> Tensor:
        video = F.normalize(self.video(batch), dim=1)
        text = F.normalize(self.text(batch.flip(1)), dim=1)
        return contrastive_loss(video, text, self.log_scale.exp(), ids)

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}


BATCH = torch.arange(24.0).cos().view(4, 6)


def _contrast(shares: list[int], rank: int, ids: list[int] | None) -> tuple[float, Any]:
    model = _TwoTowers()
    own = None if ids is None else torch.tensor(ids).split(shares)[rank]
    loss = model.loss(BATCH.split(shares)[rank], own)
    loss.backward()
    GradientSum(model.parameters()).finish()
    (total,) = sum_over_processes([loss.item()], torch.device("cpu"))
    return total, model.gradients()


def _contrast_without_model() -> None:
    """Runs the collective operations of a process with an empty share, which needs no model."""
    contrastive_loss(torch.zeros(0, 4), torch.zeros(0, 4), 1.0).backward()


def _recognise(mine: list[int]) -> tuple[float, Any]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    loss = recognition_loss(layer(BATCH[mine]), torch.tensor([0, 2, 1, 1])[mine], len(BATCH))
    loss.backward()
    GradientSum(layer.parameters()).finish()
    (total,) = sum_over_processes([loss.item()], torch.device("cpu"))
    return total, {"weight": layer.weight.grad, "bias": layer.bias.grad}


def _share(rank: int) -> dict[str, Any]:
    contrasts = [_contrast(list(shares), rank, ids) for shares, ids in CASES]
    if rank == 1:
        _contrast_without_model()
        alone = None
    else:
        model = _TwoTowers()
        model.loss(BATCH, None).backward()
        alone = model.gradients()
    recognitions = [_recognise(list(my_share(range(4)))), _recognise([[0, 1, 2], [3]][rank])]
    return {"contrasts": contrasts, "alone": alone, "recognitions": recognitions}


def test_two_processes_with_any_shares_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    found = run_together(_share, 2, tmp_path)
    for results in found:
        for (_, ids), result in zip(CASES, results["contrasts"], strict=True):
            torch.testing.assert_close(result, _contrast([4], 0, ids))
        for result in results["recognitions"]:
            torch.testing.assert_close(result, _recognise([0, 1, 2, 3]))
    torch.testing.assert_close(found[0]["alone"], _contrast([4], 0, None)[1])
