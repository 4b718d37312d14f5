"""Linear maps between the D channels of the tower and the W of a prompter, with cheap gradients.

Each function computes the same as a few lines of plain PyTorch, in fewer passes over tensors of D
channels. Tokens are packed: CLS and patches of a frame or video together, S sequences of N tokens.

Shapes: B videos, T frames, P patches per frame, D channels of the tower, W and V hidden channels,
K selected patches per frame.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.model.sequences import VideoTokens, patches_of

_EPSILON = 1e-5  # added to the variance by the layer norm


class _MapTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        variance: Tensor,
        mean: Tensor,
        watching: Tensor,
        weight: Tensor,
        bias: Tensor,
        layout: tuple[int, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The mean of a token is subtracted in the matrix, its deviation divided by in W channels.
        centred = weight - weight.mean(1, keepdim=True)
        matrix = torch.cat(
            [watching, centred, weight.new_full((1, weight.shape[1]), 1 / weight.shape[1])]
        )
        mapped = x @ matrix[:-1].T
        deviation = (variance + _EPSILON).rsqrt()
        ctx.save_for_backward(x, mean, deviation, mapped, matrix)
        ctx.set_materialize_grads(False)
        ctx.widths, ctx.layout = (len(watching), len(weight)), layout
        seen, plain = patches_of(mapped, *layout).split(ctx.widths, dim=-1)
        return x.view_as(x), seen, torch.addcmul(bias, plain, patches_of(deviation, *layout))

    @staticmethod
    def backward(
        ctx: Any, grad_x: Tensor | None, grad_seen: Tensor | None, grad_normed: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, mean, deviation, mapped, matrix = ctx.saved_tensors
        watched, width = ctx.widths
        # The gradients in the layout of `x`, 0 for CLS tokens; the last channel is for the mean.
        packed = torch.zeros(*x.shape[:2], len(matrix), dtype=x.dtype, device=x.device)
        grad_map, grad_mean = packed[..., watched:-1], packed[..., -1:]
        if grad_seen is not None:
            patches_of(packed, *ctx.layout)[..., :watched].copy_(grad_seen)
        if grad_normed is not None:
            inside = patches_of(grad_map, *ctx.layout)
            inside.addcmul_(grad_normed, patches_of(deviation, *ctx.layout))
        grad_matrix = packed.flatten(0, 1).T @ x.flatten(0, 1)
        grad_watching = None if grad_seen is None else grad_matrix[:watched]
        if grad_normed is None:
            return grad_x, None, None, grad_watching, None, None, None
        # The deviation depends on x too: d(1/s) = -(x - mean) / (D s^3).
        slope = (grad_map * mapped[..., watched:]).sum(-1, keepdim=True)
        slope = slope * deviation * deviation
        grad_mean.addcmul_(slope, mean)
        grad_x = torch.zeros_like(x) if grad_x is None else grad_x.contiguous()
        grad_x = torch.addcmul(grad_x, slope, x, value=-1 / x.shape[-1])
        grad_x.flatten(0, 1).addmm_(packed[..., watched:].flatten(0, 1), matrix[watched:])
        grad_weight = grad_matrix[watched : watched + width]
        grad_weight = grad_weight - grad_weight.mean(1, keepdim=True)
        grad_bias = grad_normed.sum((0, 1, 2))
        return grad_x, None, None, grad_watching, grad_weight, grad_bias, None


def map_tokens(
    tokens: VideoTokens,
    variance: Tensor,
    mean: Tensor,
    watching_VD: Tensor,
    weight_WD: Tensor,
    bias_W: Tensor,
) -> tuple[VideoTokens, Tensor, Tensor]:
    """Returns the tokens, h A^T [B, T, P, V], and norm(h) W^T + b [B, T, P, W].

    The norm is a layer norm without parameters; `variance` and `mean` [S, N, 1] are those of the
    channels of the packed tokens. The map by `watching` A trains that matrix and passes no gradient
    to h. The returned tokens are for later use, so that their gradient is added on the way.
    """
    args = variance, mean, watching_VD, weight_WD, bias_W, (tokens.frames, tokens.joint)
    packed, seen, normed = _MapTokens.apply(tokens.packed, *args)
    return tokens.with_packed(packed), seen, normed


class _AddPrompts(torch.autograd.Function):
    """x + r * (z U^T + b), without computing the prompts of unselected patches."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        r: Tensor,
        chosen: Tensor,
        z: Tensor,
        weight: Tensor,
        bias: Tensor,
        layout: tuple[int, bool],
    ) -> Tensor:
        z_chosen = z.gather(2, _expand(chosen, z))
        out = x.clone()
        h = patches_of(out, *layout)
        h.scatter_add_(2, _expand(chosen, h), F.linear(z_chosen, weight, bias))
        ctx.save_for_backward(r, chosen, z, z_chosen, weight, bias)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        r, chosen, z, z_chosen, weight, bias = ctx.saved_tensors
        gradient = patches_of(grad_out, *ctx.layout)
        at_chosen_KD = gradient.gather(2, _expand(chosen, gradient)).flatten(0, 2)
        grad_weight = at_chosen_KD.T @ z_chosen.flatten(0, 2)
        grad_bias = at_chosen_KD.sum(0)
        grad_r = None
        if ctx.needs_input_grad[1]:
            # (prompts of all patches) . gradient, without computing the prompts.
            both = patches_of(grad_out @ torch.cat([weight, bias[:, None]], dim=1), *ctx.layout)
            seen_BTPW, constant_BTP = both[..., :-1], both[..., -1]
            grad_r = (seen_BTPW * z).sum(-1) + constant_BTP
            grad_z = seen_BTPW * r[..., None]
        else:
            at_chosen = (at_chosen_KD @ weight).view_as(z_chosen)
            grad_z = torch.zeros_like(z).scatter(2, _expand(chosen, z), at_chosen)
        return grad_out, grad_r, None, grad_z, grad_weight, grad_bias, None


def add_prompts(
    tokens: VideoTokens,
    r_BTP: Tensor,
    chosen_BTK: Tensor,
    z_BTPW: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> VideoTokens:
    """Returns tokens with h^s = h + r * p^s and p^s = z U^T + b in place of h.

    `chosen` are the indices of the ones of `r`. The gradient of `r` is that of the equation, for
    selected and unselected patches.
    """
    layout = tokens.frames, tokens.joint
    args = tokens.packed, r_BTP, chosen_BTK, z_BTPW, weight, bias, layout
    return tokens.with_packed(cast(Tensor, _AddPrompts.apply(*args)))


class _MapDifferences(torch.autograd.Function):
    """Two linear maps of d_i = h_i - h_{i-1}; the first one passes no gradient to h."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, watching: Tensor, weight: Tensor, layout: tuple[int, bool]
    ) -> tuple[Tensor, Tensor]:
        matrix = torch.cat([watching, weight])
        ctx.save_for_backward(x, matrix)  # the next block stores x in any case
        ctx.set_materialize_grads(False)
        ctx.watched, ctx.layout = len(watching), layout
        # The differences are taken in W channels, so that those in D are never written.
        mapped = patches_of(x @ matrix.T, *layout)
        both = mapped[:, 1:] - mapped[:, :-1]
        return both[..., : len(watching)], both[..., len(watching) :]

    @staticmethod
    def backward(
        ctx: Any, grad_watched: Tensor | None, grad_first: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        # The differences are taken of the gradients, in the layout of `x`, 0 for CLS tokens.
        packed = torch.zeros(*x.shape[:2], len(matrix), dtype=x.dtype, device=x.device)
        inside = patches_of(packed, *ctx.layout)
        for gradient, part in (
            (grad_watched, inside[..., : ctx.watched]),
            (grad_first, inside[..., ctx.watched :]),
        ):
            if gradient is not None:
                part[:, 1:].copy_(gradient)
                part[:, :-1].sub_(gradient)
        grad_matrix = packed.flatten(0, 1).T @ x.flatten(0, 1)
        grad_x = None
        if grad_first is not None:
            grad_x = packed[..., ctx.watched :] @ matrix[ctx.watched :]
        grad_watching = None if grad_watched is None else grad_matrix[: ctx.watched]
        grad_weight = None if grad_first is None else grad_matrix[ctx.watched :]
        return grad_x, grad_watching, grad_weight, None


def map_differences(
    tokens: VideoTokens, watching_VD: Tensor, weight_WD: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns two linear maps of d = h_i - h_{i-1}: [B, T-1, P, V] and [B, T-1, P, W].

    The map by `watching` trains that matrix and passes no gradient to h.
    """
    args = tokens.packed, watching_VD, weight_WD, (tokens.frames, tokens.joint)
    return cast(tuple[Tensor, Tensor], _MapDifferences.apply(*args))


def _expand(index_BTK: Tensor, like: Tensor) -> Tensor:
    return index_BTK[..., None].expand(-1, -1, -1, like.shape[-1])
