"""Measures of action recognition.

Shapes: V views, M clips, N classes.
"""

from typing import Literal

import torch
from torch import Tensor


def recognition_metrics(logits_MN: Tensor, labels_M: Tensor) -> dict[str, float]:
    """Returns top1, top5 and mean_class accuracy, each from 0 to 1.

    A tie counts against the model: a class ranks behind every class of the same or a larger logit.
    `mean_class` averages the top-1 accuracy over the classes that occur in `labels`.

    Raises:
        ValueError: if there is no clip to measure, or the labels do not fit the logits.
    """
    rank_M = rank_of_truth(logits_MN, labels_M)
    return {
        "top1": (rank_M == 1).double().mean().item(),
        "top5": (rank_M <= 5).double().mean().item(),
        "mean_class": per_class_accuracy(logits_MN, labels_M, logits_MN.shape[1]).nanmean().item(),
    }


def per_class_accuracy(logits_MN: Tensor, labels_M: Tensor, classes: int) -> Tensor:
    """Returns the top-1 accuracy of every class, [N], from 0 to 1; NaN where it has no clip.

    Args:
        logits_MN: one column a class, [M, N].
        labels_M: the true class of every clip, [M].
        classes: N; it must be the number of columns.

    Raises:
        ValueError: as `recognition_metrics`, or if `classes` is not the number of columns.
    """
    counts_NN = confusion_matrix(logits_MN, labels_M, classes)
    return counts_NN.diagonal().double() / counts_NN.sum(1)  # 0 / 0 is NaN


def confusion_matrix(logits_MN: Tensor, labels_M: Tensor, classes: int) -> Tensor:
    """Counts the clips of every true class (row) by the class predicted for them (column), [N, N].

    A row sums to the number of clips of its class, and the diagonal to top1 * M, since the
    predicted class is that of `predicted_classes`.

    Args:
        logits_MN: one column a class, [M, N].
        labels_M: the true class of every clip, [M].
        classes: N; it must be the number of columns.

    Raises:
        ValueError: as `recognition_metrics`, or if `classes` is not the number of columns.
    """
    if classes != logits_MN.shape[-1]:
        raise ValueError(
            f"the logits have {logits_MN.shape[-1]} columns but there are {classes} classes; give "
            "the logits over the classes that the labels number"
        )
    predicted_M = predicted_classes(logits_MN, labels_M)
    cells = torch.bincount(labels_M * classes + predicted_M, minlength=classes * classes)
    return cells.view(classes, classes)


def predicted_classes(logits_MN: Tensor, labels_M: Tensor) -> Tensor:
    """Returns the class that is predicted for every clip, [M]: the true one just where top1 counts.

    So a tie predicts a wrong class: the true one only if its logit is larger than every other, and
    otherwise the largest of the others (the first of them where they tie as well). A NaN is larger
    than any number in another class and smaller in the true one.

    Raises:
        ValueError: as `recognition_metrics`.
    """
    wrong_M = rank_of_truth(logits_MN, labels_M) != 1
    predicted_M = labels_M.clone()
    if wrong_M.any():
        # The other classes' columns: without the true one, argmax cannot return it on a tie.
        true_W1 = labels_M[wrong_M][:, None]
        others = torch.arange(logits_MN.shape[1] - 1, device=labels_M.device)
        others_WN = others.expand(len(true_W1), -1)
        others_WN = others_WN + (others_WN >= true_W1)
        best_W1 = logits_MN[wrong_M].gather(1, others_WN).argmax(1, keepdim=True)
        predicted_M[wrong_M] = others_WN.gather(1, best_W1)[:, 0]
    return predicted_M


def average_views(
    logits_VN: Tensor, clip_of_V: Tensor, average: Literal["probabilities", "logits"]
) -> Tensor:
    """Joins several views of a clip, temporal clips or spatial crops, into one row, [M, N].

    Args:
        logits_VN: one row a view, [V, N].
        clip_of_V: the number of the clip that a view shows, [V], from 0 to M - 1 in any order.
        average: "probabilities" takes the mean of the views' softmax, as the multi-view protocol
            of video recognition does; "logits" the mean of the logits, which lets one sure view
            outweigh several unsure ones.

    Returns:
        float64 rows that rank the classes, to be given to `recognition_metrics`. In float32 a
        probability beside a confident one becomes 0, and zeros tie.

    Raises:
        ValueError: if the shapes do not fit, a clip has no view, or `average` is unknown.
    """
    if average not in ("probabilities", "logits"):
        raise ValueError(f"average is {average!r}; choose 'probabilities' or 'logits'")
    if logits_VN.ndim != 2 or clip_of_V.shape != logits_VN.shape[:1] or len(clip_of_V) == 0:
        raise ValueError(
            f"logits of shape {list(logits_VN.shape)} and clip numbers of shape "
            f"{list(clip_of_V.shape)} do not fit; give [V, N] and [V], V at least 1"
        )
    if clip_of_V.min() < 0:
        raise ValueError(f"clip number {int(clip_of_V.min())} is negative; number them from 0")
    views_M = torch.bincount(clip_of_V)
    if not views_M.all():
        missing = (views_M == 0).nonzero()[0].item()
        raise ValueError(f"clip {missing} has no view; number the clips without a gap from 0")
    rows_VN = logits_VN.double()
    if average == "probabilities":
        rows_VN = rows_VN.softmax(1)
    sums_MN = rows_VN.new_zeros(len(views_M), logits_VN.shape[1])
    return sums_MN.index_add_(0, clip_of_V, rows_VN) / views_M[:, None]


def rank_of_truth(logits_MN: Tensor, labels_M: Tensor) -> Tensor:
    """Returns the rank of every clip's true class, [M], from 1; behind all that it ties with.

    Raises:
        ValueError: as `recognition_metrics`.
    """
    if len(labels_M) == 0:
        raise ValueError("there is no clip to measure; check that the split is not empty")
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
    # The class itself is among those counted, so the best rank is 1. A NaN compares false both
    # ways, hence "not smaller" rather than "at least".
    return (~(logits_MN < true_logit_M1)).sum(1)
