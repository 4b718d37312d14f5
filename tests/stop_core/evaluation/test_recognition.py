"""Laws of the recognition metrics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stop_core.evaluation.recognition import (
    confusion_matrix,
    harmonic_mean,
    per_class_accuracy,
    recognition_metrics,
)

NAN = float("nan")
# Few values, so that ties are common.
LOGITS = st.sampled_from([-math.inf, -1.0, 0.0, 1.0, NAN])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits, [M, N], full of ties, and labels."""
    clips, classes = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    values = draw(st.lists(LOGITS, min_size=clips * classes, max_size=clips * classes))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=clips, max_size=clips))
    return torch.tensor(values).view(clips, classes), torch.tensor(labels)


def _is_right(row: list[float], label: int) -> bool:
    """Returns whether the true class is above every other; with one class it always is."""
    return all(row[label] > other for n, other in enumerate(row) if n != label)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_harmonic_mean_is_that_of_the_reciprocals_and_0_with_0(a: float, b: float) -> None:
    assert harmonic_mean(a, 0.0) == harmonic_mean(0.0, b) == 0
    if min(a, b) > 1e-6:
        assert harmonic_mean(a, b) == pytest.approx(2 / (1 / a + 1 / b))


def test_top1_and_top5_count_the_rank_of_the_true_class() -> None:
    logits = torch.arange(8.0).repeat(3, 1)  # class 7 first, class 0 last
    metrics = recognition_metrics(logits, torch.tensor([7, 3, 0]))
    assert metrics["top1"] == pytest.approx(1 / 3)
    assert metrics["top5"] == pytest.approx(1 / 3 + 1 / 3)


def test_a_tie_counts_against_the_model() -> None:
    metrics = recognition_metrics(torch.zeros(4, 6), torch.arange(4))
    assert metrics["top1"] == 0.0
    assert metrics["top5"] == 0.0


def test_nan_is_never_correct() -> None:
    logits = torch.tensor([[NAN, NAN], [1.0, NAN]])
    assert recognition_metrics(logits, torch.tensor([0, 0]))["top1"] == 0.0


def test_mean_class_gives_every_class_the_same_weight() -> None:
    logits = torch.tensor([[1.0, 0.0]] * 10)
    metrics = recognition_metrics(logits, torch.tensor([0] * 9 + [1]))
    assert metrics["top1"] == pytest.approx(0.9)
    assert metrics["mean_class"] == pytest.approx(0.5)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no clip"):
        recognition_metrics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_column_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} is not one of the 3 classes"):
        recognition_metrics(torch.zeros(2, 3), torch.tensor([0, label]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] and labels of shape \[1\]"):
        recognition_metrics(torch.zeros(2, 3), torch.tensor([0]))


@settings(max_examples=100, deadline=None)
@given(predictions())
def test_per_class_accuracy_is_that_of_counting(drawn: tuple[Tensor, Tensor]) -> None:
    logits, labels = drawn
    accuracies = per_class_accuracy(logits, labels).tolist()
    assert len(accuracies) == logits.shape[1]
    present = []
    for label, accuracy in enumerate(accuracies):
        of_class = [
            _is_right(row, label)
            for row, truth in zip(logits.tolist(), labels.tolist(), strict=True)
            if truth == label
        ]
        if not of_class:
            assert math.isnan(accuracy)
            continue
        assert accuracy == pytest.approx(sum(of_class) / len(of_class))
        present.append(accuracy)
    found = recognition_metrics(logits, labels)["mean_class"]
    assert found == pytest.approx(sum(present) / len(present))


@settings(max_examples=100, deadline=None)
@given(predictions())
def test_the_confusions_sum_to_the_clips_and_the_diagonal_to_top1(
    drawn: tuple[Tensor, Tensor],
) -> None:
    logits, labels = drawn
    classes = logits.shape[1]
    confusions = confusion_matrix(logits, labels)
    assert confusions.sum(1).tolist() == torch.bincount(labels, minlength=classes).tolist()
    top1 = recognition_metrics(logits, labels)["top1"]
    assert confusions.trace().item() / len(labels) == pytest.approx(top1)


def test_a_tie_predicts_the_wrong_class() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0]] * 3)
    assert confusion_matrix(logits, torch.tensor([0, 1, 2])).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
        [1, 0, 0],
    ]


def test_without_ties_the_prediction_is_the_largest_logit() -> None:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    expected = torch.zeros(5, 5, dtype=torch.long)
    for truth, row in zip(labels.tolist(), logits, strict=True):
        expected[truth, int(row.argmax())] += 1
    assert torch.equal(confusion_matrix(logits, labels), expected)


def test_the_first_strange_label_is_the_one_that_is_named() -> None:
    for strange in (-3, 4):
        labels = torch.tensor([0, strange, 9])
        with pytest.raises(
            ValueError, match=f"label {strange} is not one of the 4 classes.* to 3$"
        ):
            recognition_metrics(torch.zeros(3, 4), labels)
