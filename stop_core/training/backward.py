"""The gradient of a batch, embedded as a whole or in micro-batches: the same, up to rounding.

A contrastive loss needs all embeddings of a batch at once. Micro-batches use gradient caching
(Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021):
embed every part without a graph, compute the loss and its gradient with respect to the embeddings,
then embed every part again and backpropagate its rows of that gradient.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from stop_core.runtime.devices import within_memory
from stop_core.training.objectives import Objective

Seed = Callable[[int], None]
Around = AbstractContextManager[object]
_NOTHING: Around = nullcontext()


def backward(
    objective: Objective,
    frames: Tensor,
    clips: Sequence[int],
    *,
    epoch: int,
    total: int,
    micro_batch: int | None = None,
    seed: Seed = lambda part: None,
    last: Around = _NOTHING,
) -> Tensor:
    """Accumulates the gradients of this process's share of a batch.

    Returns its part of the loss, a scalar in float64 on the device: the host does not wait for it.

    Args:
        objective: computes outputs and loss.
        frames: of `clips`, [B, T, H, W, 3], on the model's device; B can be 0.
        clips: this process's share of the batch.
        epoch: from 0; it determines the caption of a clip.
        total: number of clips of the whole batch, over all processes.
        micro_batch: number of clips to embed at a time; None: all.
        seed: called with the number of a part before it is embedded, so that dropout is the same
            when gradient caching embeds it a second time.
        last: entered around the backward pass of the last part, which completes the gradients.
    """

    def backward_from(outputs: Tensor, own: Sequence[int], around: Around = _NOTHING) -> Tensor:
        loss = objective.loss(outputs, own, epoch, total)
        if loss.requires_grad:
            with around:
                loss.backward()
        return loss.detach().double()

    size = micro_batch or max(1, len(clips))
    starts = range(0, len(clips), size)
    parts = [(frames[s : s + size], clips[s : s + size]) for s in starts]
    if not parts:  # it still takes part in the collective operations
        return backward_from(objective.no_outputs(), clips)
    if len(parts) == 1 or objective.additive:
        loss = torch.zeros((), dtype=torch.float64, device=frames.device)
        for number, (part, own) in enumerate(parts):
            seed(number)
            outputs = objective.outputs(part, own, epoch)
            loss += backward_from(outputs, own, last if number + 1 == len(parts) else _NOTHING)
        return loss
    rows = []
    with torch.no_grad():
        for number, (part, own) in enumerate(parts):
            seed(number)
            rows.append(objective.outputs(part, own, epoch))
    outputs = torch.cat(rows).requires_grad_()
    loss = backward_from(outputs, clips)
    assert outputs.grad is not None
    gradients = outputs.grad.split([len(own) for _, own in parts])
    for number, ((part, own), gradient) in enumerate(zip(parts, gradients, strict=True)):
        seed(number)
        outputs = objective.outputs(part, own, epoch)
        with last if number + 1 == len(parts) else _NOTHING:
            outputs.backward(gradient)
    return loss


def largest_that_fits(objective: Objective, frames: Tensor, epoch: int) -> int:
    """Returns how many of these clips, halved until they fit, can be trained on; not collective."""

    def fits(part: Tensor) -> bool:
        def work() -> bool:
            objective.outputs(part, range(len(part)), epoch).sum().backward()
            return True

        return within_memory(work) or False

    count = len(frames) // 2
    while count and not fits(frames[:count]):
        torch.cuda.empty_cache()  # after the error and the tensors of the attempt are gone
        count //= 2
    return count
