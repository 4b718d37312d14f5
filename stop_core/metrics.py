"""Measures of action recognition.

Shapes: M clips, N classes.
"""

from torch import Tensor


def recognition_metrics(logits_MN: Tensor, labels_M: Tensor) -> dict[str, float]:
    """Returns top1, top5 and mean_class accuracy, each from 0 to 1.

    A tie counts against the model: a class ranks behind every class of the same or a larger logit.
    `mean_class` averages the top-1 accuracy over the classes that occur in `labels`.

    Raises:
        ValueError: if there is no clip to measure.
    """
    if len(labels_M) == 0:
        raise ValueError("there is no clip to measure; check that the split is not empty")
    true_logit_M1 = logits_MN.gather(1, labels_M[:, None])
    # The class itself is among those counted, so the best rank is 1. A NaN compares false both
    # ways, hence "not smaller" rather than "at least".
    rank_M = (~(logits_MN < true_logit_M1)).sum(1)
    correct_M = (rank_M == 1).double()
    per_class = [correct_M[labels_M == label].mean() for label in labels_M.unique()]
    return {
        "top1": correct_M.mean().item(),
        "top5": (rank_M <= 5).double().mean().item(),
        "mean_class": (sum(per_class) / len(per_class)).item(),  # type: ignore[union-attr]
    }
