"""Linear maps between the D channels of the tower and the W of a prompter, with cheap gradients.

Each function computes the same as a line of plain PyTorch, in fewer passes over tensors of D
channels.

Shapes: B videos, T frames, P patches per frame, D channels of the tower, W and V hidden channels,
N selected patches per frame.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


class _AddPrompts(torch.autograd.Function):
    """h + r * (z U^T + b), without computing the prompts of unselected patches."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, r: Tensor, chosen: Tensor, z: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        z_chosen = z.gather(2, _expand(chosen, z))
        prompts_BTND = F.linear(z_chosen, weight, bias)
        out = h.clone(memory_format=torch.contiguous_format)
        out.scatter_add_(2, _expand(chosen, h), prompts_BTND)
        ctx.save_for_backward(r, chosen, z, z_chosen, weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        r, chosen, z, z_chosen, weight, bias = ctx.saved_tensors
        at_chosen_ND = gradient.gather(2, _expand(chosen, gradient)).flatten(0, 2)
        grad_weight = at_chosen_ND.T @ z_chosen.flatten(0, 2)
        grad_bias = at_chosen_ND.sum(0)
        grad_r = None
        if ctx.needs_input_grad[1]:
            # (prompts of all patches) . gradient, without computing the prompts.
            both = gradient @ torch.cat([weight, bias[:, None]], dim=1)
            seen_BTPW, constant_BTP = both[..., :-1], both[..., -1]
            grad_r = (seen_BTPW * z).sum(-1) + constant_BTP
            grad_z = seen_BTPW * r[..., None]
        else:
            at_chosen = (at_chosen_ND @ weight).view_as(z_chosen)
            grad_z = torch.zeros_like(z).scatter(2, _expand(chosen, z), at_chosen)
        return gradient, grad_r, None, grad_z, grad_weight, grad_bias


def add_prompts(
    h_BTPD: Tensor, r_BTP: Tensor, chosen_BTN: Tensor, z_BTPW: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Returns h^s = h + r * p^s with p^s = z U^T + b, [B, T, P, D].

    `chosen` are the indices of the ones of `r`. The gradient of `r` is that of the equation, for
    selected and unselected patches.
    """
    return cast(Tensor, _AddPrompts.apply(h_BTPD, r_BTP, chosen_BTN, z_BTPW, weight, bias))


class _MapDifferences(torch.autograd.Function):
    """Two linear maps of d_i = h_i - h_{i-1}; the second one passes no gradient to h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, watching: Tensor) -> tuple[Tensor, ...]:
        d = h[:, 1:] - h[:, :-1]
        both = d @ torch.cat([weight, watching]).T
        ctx.save_for_backward(h, weight)  # h instead of d: the next block stores h in any case
        ctx.mark_non_differentiable(d)
        ctx.set_materialize_grads(False)
        first, second = both.split([len(weight), len(watching)], dim=-1)
        return d, first, second

    @staticmethod
    def backward(
        ctx: Any, _: Tensor | None, gradient: Tensor | None, gradient_watching: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        h, weight = ctx.saved_tensors
        rows = (h[:, 1:] - h[:, :-1]).flatten(0, 2)
        grad_h = grad_weight = grad_watching = None
        if gradient is not None:
            grad_weight = gradient.flatten(0, 2).T @ rows
            # The difference is taken in W channels; only the result is mapped to D.
            padded = F.pad(gradient, (0, 0, 0, 0, 1, 1))
            grad_h = (padded[:, :-1] - padded[:, 1:]) @ weight
        if gradient_watching is not None:
            grad_watching = gradient_watching.flatten(0, 2).T @ rows
        return grad_h, grad_weight, grad_watching


def map_differences(
    h_BTPD: Tensor, weight_WD: Tensor, watching_VD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns d = h_i - h_{i-1} and its two linear maps: [B, T-1, P, D], [..., W], [..., V].

    No gradient flows through d itself. The map by `watching` trains that matrix and passes no
    gradient to h.
    """
    return cast(
        tuple[Tensor, Tensor, Tensor],
        _MapDifferences.apply(h_BTPD, weight_WD, watching_VD),
    )


def _expand(index_BTN: Tensor, like: Tensor) -> Tensor:
    """Patch indices for all channels of `like`."""
    return index_BTN[..., None].expand(-1, -1, -1, like.shape[-1])
