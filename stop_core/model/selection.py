"""Patch selection and prompt counts, with surrogate gradients (straight-through estimators).

Neither top-N_s nor ceil passes a gradient, so without a surrogate the filters N^s and N^t of the
paper would not learn. The gradients are written by hand: a GPU spends more time on starting the
many small operations of plain PyTorch than on computing them.

Shapes: B videos, T frames, P patches per frame, K maximum prompts per gap, N selected patches.
"""

from typing import Any, cast

import torch
from torch import Tensor

# Differences below this share of the largest value are float32 rounding, not signal.
_ROUNDING = 2e-6
_SOFT_WIDTH = 0.1  # width of the soft step, as a share of the range of a frame's weights


class _MinMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, floor: bool) -> Tensor:
        low, high = values.aminmax(dim=-1, keepdim=True)
        spread, noise = high - low, _ROUNDING * high
        equal = spread <= noise
        out = values - low
        if floor:
            out.masked_fill_(out <= noise, 0.0)
        out.div_(spread).masked_fill_(equal, 0.5)
        ctx.save_for_backward(spread.masked_fill_(equal, 1.0))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (spread,) = ctx.saved_tensors
        return gradient / spread, None


def min_max(values: Tensor, *, floor: bool = False) -> Tensor:
    """Rescales the last dimension of values from 0 to [0, 1]; where all are equal, to 1/2.

    With `floor`, values within float32 rounding of the minimum become exactly 0. Without it, `ceil`
    would give a prompt to the rounding error of a repeated frame.

    The gradient treats the bounds as constants, so that every entry keeps a gradient. Otherwise the
    rescaled values of a clip with one or two gaps could not move.
    """
    return cast(Tensor, _MinMax.apply(values, floor))


class _ChoosePatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, n_s: int) -> tuple[Tensor, Tensor]:
        # A sort instead of a threshold: a threshold selects more than n_s patches when weights tie.
        ranked, order = weight.sort(dim=-1, descending=True, stable=True)
        chosen = order[..., :n_s]
        ctx.mark_non_differentiable(chosen)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, ranked)
        ctx.n_s = n_s
        return torch.zeros_like(weight).scatter_(-1, chosen, 1.0), chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        weight, ranked = ctx.saved_tensors
        if ctx.n_s == 0 or gradient is None:
            return None, None
        last, first_out = ctx.n_s - 1, min(ctx.n_s, weight.shape[-1] - 1)
        step = torch.lerp(ranked[..., last : last + 1], ranked[..., first_out : first_out + 1], 0.5)
        # The range instead of std(), which is undefined for a frame of one patch.
        width = _SOFT_WIDTH * (ranked[..., :1] - ranked[..., -1:])
        width.masked_fill_(width == 0, 1.0)
        soft = weight.sub(step).div_(width).sigmoid_()
        return torch.ops.aten.sigmoid_backward(gradient, soft) / width, None


def choose_patches(
    weight_BTP: Tensor, n_s: int, *, straight_through: bool
) -> tuple[Tensor, Tensor]:
    """Returns r, [B, T, P], 1 for the `n_s` largest weights of every frame, else 0; and their
    indices, [B, T, N].

    Exactly `n_s` patches of a frame are selected. Of tied patches, those of the lowest index are:
    the sort is stable, so that equal frames get equal selections. With `straight_through`, the
    gradient is that of a sigmoid step between the smallest selected and largest other weight.
    """
    if not straight_through:
        weight_BTP = weight_BTP.detach()
    return cast(tuple[Tensor, Tensor], _ChoosePatches.apply(weight_BTP, n_s))


class _WeightedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, energy: Tensor, r: Tensor | None, beta: float) -> Tensor:
        weighted = energy
        if r is not None:
            r = r[:, 1:]
            weighted = torch.addcmul(energy, energy, r, value=beta)
        ctx.save_for_backward(energy, r)
        ctx.beta = beta
        return weighted.mean(-1, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        energy, r = ctx.saved_tensors
        gradient = (gradient / energy.shape[-1]).to(energy.dtype)[..., None]
        if r is None:
            return gradient.expand_as(energy), None, None
        grad_r = None
        if ctx.needs_input_grad[1]:
            grad_r = energy.new_zeros(r.shape[0], r.shape[1] + 1, r.shape[2])
            grad_r[:, 1:].addcmul_(gradient, energy, value=ctx.beta)
        return torch.addcmul(gradient, gradient, r, value=ctx.beta), grad_r, None


def weighted_mean(energy_BTP: Tensor, r_BTP: Tensor | None, beta: float) -> Tensor:
    """Returns the mean over the patches of (1 + beta * r) * energy, [B, T-1], in float64.

    `energy` is that of the gaps, `r` that of the frames; None: no patch is selected. In float64
    because min-max magnifies the last bit where the gaps of a video are nearly alike.
    """
    return cast(Tensor, _WeightedMean.apply(energy_BTP, r_BTP, beta))


class _Presence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, change: Tensor, eta: float, max_prompts: int) -> Tensor:
        slots = torch.arange(max_prompts, dtype=change.dtype, device=change.device)
        scaled = eta * change[..., None]
        ctx.save_for_backward(scaled, slots)
        ctx.eta = eta
        return (slots < scaled).to(change.dtype)  # as good as slots < scaled.ceil()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        scaled, slots = ctx.saved_tensors
        soft = (scaled - (slots + 0.5)).sigmoid_()
        return ctx.eta * torch.ops.aten.sigmoid_backward(gradient, soft).sum(-1), None, None


def prompt_presence(change: Tensor, eta: float, max_prompts: int, *, soft: bool) -> Tensor:
    """Returns the presence of each slot of a gap, [..., K]: 1 for the first N^t slots, else 0.

    N^t is min(ceil(eta * W^t), K). With `soft`, slot k has the gradient of a sigmoid step at
    eta * W^t = k + 1/2.
    """
    return cast(Tensor, _Presence.apply(change if soft else change.detach(), eta, max_prompts))
