"""Laws of the recognition measures."""

import pytest
import torch

from stop_core.metrics import recognition_metrics


def test_top1_and_top5_count_the_rank_of_the_true_class() -> None:
    logits = torch.arange(8.0).repeat(3, 1)  # class 7 first, class 0 last
    metrics = recognition_metrics(logits, torch.tensor([7, 3, 0]))
    assert metrics["top1"] == pytest.approx(1 / 3)
    assert metrics["top5"] == pytest.approx(1 / 3 + 1 / 3)


def test_a_tie_counts_against_the_model() -> None:
    metrics = recognition_metrics(torch.zeros(4, 6), torch.arange(4))
    assert metrics["top1"] == 0.0
    assert metrics["top5"] == 0.0


def test_not_a_number_is_never_right() -> None:
    logits = torch.tensor([[float("nan"), float("nan")], [1.0, float("nan")]])
    assert recognition_metrics(logits, torch.tensor([0, 0]))["top1"] == 0.0


def test_mean_class_weighs_every_class_alike() -> None:
    logits = torch.tensor([[1.0, 0.0]] * 10)
    metrics = recognition_metrics(logits, torch.tensor([0] * 9 + [1]))
    assert metrics["top1"] == pytest.approx(0.9)
    assert metrics["mean_class"] == pytest.approx(0.5)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no clip"):
        recognition_metrics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
