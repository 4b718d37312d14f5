"""Metrics of action recognition.

All functions of logits raise ValueError if there is no clip, or the labels do not fit the logits.

Shapes: M clips, N classes.
"""

import torch
from torch import Tensor


def recognition_metrics(logits_MN: Tensor, labels_M: Tensor) -> dict[str, float]:
    """Returns top1, top5 and mean_class accuracy, each from 0 to 1.

    A tie counts against the model: a class ranks behind every class with the same or a larger
    logit. `mean_class` is the mean top-1 accuracy of the classes that occur in `labels`.
    """
    rank_M = rank_of_truth(logits_MN, labels_M)
    return {
        "top1": (rank_M == 1).double().mean().item(),
        "top5": (rank_M <= 5).double().mean().item(),
        "mean_class": per_class_accuracy(logits_MN, labels_M).nanmean().item(),
    }


def harmonic_mean(first: float, second: float) -> float:
    """Returns the harmonic mean of two shares; 0 if one of them is 0."""
    return 2 * first * second / (first + second) if first and second else 0.0


def per_class_accuracy(logits_MN: Tensor, labels_M: Tensor) -> Tensor:
    """Returns the top-1 accuracy of every class, [N], from 0 to 1; NaN for one without clips."""
    counts_NN = confusion_matrix(logits_MN, labels_M)
    return counts_NN.diagonal().double() / counts_NN.sum(1)  # 0 / 0 is NaN


def confusion_matrix(logits_MN: Tensor, labels_M: Tensor) -> Tensor:
    """Returns the number of clips by true class (row) and predicted class (column), [N, N].

    A row sums to the number of clips of its class, and the diagonal to top1 * M: the predictions
    are those of `predicted_classes`.
    """
    predicted_M = predicted_classes(logits_MN, labels_M)
    classes = logits_MN.shape[1]
    cells = torch.bincount(labels_M * classes + predicted_M, minlength=classes * classes)
    return cells.view(classes, classes)


def predicted_classes(logits_MN: Tensor, labels_M: Tensor) -> Tensor:
    """Returns the predicted class of every clip, [M]: the true class exactly where top1 counts it.

    The true class is predicted only if its logit is larger than all others; on a tie, the
    prediction is the largest of the other classes (the first if several are equal). A NaN ranks
    above all numbers in another class and below them in the true class.
    """
    wrong_M = rank_of_truth(logits_MN, labels_M) != 1
    predicted_M = labels_M.clone()
    if wrong_M.any():
        # Without the column of the true class, argmax cannot return it on a tie.
        true_W1 = labels_M[wrong_M][:, None]
        others = torch.arange(logits_MN.shape[1] - 1, device=labels_M.device)
        others_WN = others.expand(len(true_W1), -1)
        others_WN = others_WN + (others_WN >= true_W1)
        best_W1 = logits_MN[wrong_M].gather(1, others_WN).argmax(1, keepdim=True)
        predicted_M[wrong_M] = others_WN.gather(1, best_W1)[:, 0]
    return predicted_M


def rank_of_truth(logits_MN: Tensor, labels_M: Tensor) -> Tensor:
    """Returns the rank of every clip's true class, [M], from 1; ties count against it."""
    if len(labels_M) == 0:
        raise ValueError("there is no clip to evaluate; check that the split is not empty")
    if logits_MN.ndim != 2 or labels_M.shape != logits_MN.shape[:1]:
        raise ValueError(
            f"logits of shape {list(logits_MN.shape)} and labels of shape {list(labels_M.shape)} "
            "do not fit; give [M, N] and [M]"
        )
    classes = logits_MN.shape[1]
    strange = labels_M[(labels_M < 0) | (labels_M >= classes)]
    if len(strange):
        raise ValueError(
            f"label {strange[0].item()} is not one of the {classes} classes of the logits; give "
            f"labels from 0 to {classes - 1}"
        )
    true_logit_M1 = logits_MN.gather(1, labels_M[:, None])
    # The true class is counted, too, so the best rank is 1. "Not smaller" instead of "at least":
    # a NaN compares false both ways.
    return (~(logits_MN < true_logit_M1)).sum(1)
