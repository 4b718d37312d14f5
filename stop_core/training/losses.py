"""Losses over a batch that is divided among processes, in shares of any size.

Shapes: B rows of this process's share, G rows of the global batch, N classes, D channels.

Every process computes its part of the loss and calls `backward()` on it. The sum of the parts is
the loss of the whole batch, and `GradientSum` sums the gradients. So the result does not depend
on the number of processes, up to float32 rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.runtime.distributed import all_rows, gather_with_gradient, rank


def recognition_loss(
    logits_BN: Tensor, targets: Tensor, total: int, smoothing: float = 0.0
) -> Tensor:
    """Returns this share's part of the mean cross-entropy over a batch of `total` clips.

    Raises ValueError if the shapes do not fit, or the share is larger than the batch.

    Args:
        logits_BN: of the clips of this share, [B, N]; B can be 0.
        targets: their true classes, [B], or the probabilities of all classes, [B, N].
        total: number of clips of the whole batch.
        smoothing: probability of the target that is spread evenly over all classes.
    """
    if logits_BN.ndim != 2 or targets.shape not in (logits_BN.shape[:1], logits_BN.shape):
        raise ValueError(
            f"logits of shape {list(logits_BN.shape)} and labels of shape {list(targets.shape)} "
            "do not fit; give [B, N] and [B], or [B, N] twice"
        )
    if total < max(1, len(targets)):
        raise ValueError(
            f"a share of {len(targets)} clips cannot be part of a batch of {total}; give the "
            "number of clips over all processes"
        )
    loss = F.cross_entropy(logits_BN, targets, reduction="sum", label_smoothing=smoothing)
    return loss / total


def contrastive_loss(
    video_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor | float,
    ids_B: Tensor | None = None,
    *,
    positives: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Returns this share's part of the symmetric InfoNCE over the global batch (CLIP).

    Rows i of `video` and of `text` are a pair, and the rows of all processes are negatives of each
    other: (1 / 2G) sum_i [CE(scale v_i . t, i) + CE(scale t_i . v, i)].

    A collective operation, forward and backward: every process calls it, and then `backward()` on
    the result, even if its share is empty ([0, D] tensors).

    Raises ValueError if the shapes do not fit, here or between processes, or no process has a row.

    Args:
        video_BD: embeddings of unit length, [B, D]; B can be 0 and differ between processes.
        text_BD: those of the texts, [B, D].
        scale: CLIP's logit scale, 1 / temperature.
        ids_B: the video or caption of each row, int64 [B]; given by all processes or by none. Rows
            with the same id, on any process, are positives of each other: the target of the
            cross-entropy is uniform over them, as in SupCon's L_out (Khosla et al., NeurIPS
            2020). Default: each row is its own only positive.
        positives: instead of ids, the positives of each video among the texts of all processes,
            and of each text among the videos, bool [B, G] each, in the order of the ranks.
    """
    if video_BD.ndim != 2 or text_BD.shape != video_BD.shape:
        raise ValueError(
            f"videos of shape {list(video_BD.shape)} and texts of shape {list(text_BD.shape)} do "
            "not fit; give [B, D] twice, one text for each video"
        )
    if ids_B is not None and ids_B.shape != video_BD.shape[:1]:
        raise ValueError(
            f"ids have shape {list(ids_B.shape)}; give one for each of the {len(video_BD)} rows"
        )
    if positives is not None and any(len(some) != len(video_BD) for some in positives):
        found = [list(some.shape) for some in positives]
        raise ValueError(
            f"positives have shapes {found}; give one row for each of the {len(video_BD)} videos "
            "and texts"
        )
    if ids_B is None:  # a different id for every row of every process
        ids_B = (rank() << 32) + torch.arange(len(video_BD), device=video_BD.device)
    ids_G = all_rows(ids_B)
    if len(ids_G) == 0:
        raise ValueError("the batch is empty on all processes: skip it")
    # At least float32, for the sums of the gradients. One message: the gradients of two could be
    # sent in a different order on another process.
    pairs_B2D = torch.cat([video_BD, text_BD], 1)
    pairs_B2D = pairs_B2D.to(torch.promote_types(pairs_B2D.dtype, torch.float32))
    own_video_BD, own_text_BD = pairs_B2D.chunk(2, 1)
    all_video_GD, all_text_GD = gather_with_gradient(pairs_B2D).chunk(2, 1)
    if positives is None:
        same_BG = ids_B[:, None] == ids_G
        positives = same_BG, same_BG
    targets = [some.to(pairs_B2D) / some.sum(1, keepdim=True) for some in positives]
    to_text = F.cross_entropy(scale * own_video_BD @ all_text_GD.T, targets[0], reduction="sum")
    to_video = F.cross_entropy(scale * own_text_BD @ all_video_GD.T, targets[1], reduction="sum")
    return (to_text + to_video) / (2 * len(ids_G))
