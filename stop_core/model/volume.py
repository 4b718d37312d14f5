"""Patch tokens as a video volume, and the light 3-D convolution over it (N^s, N^t of the paper).

Shapes: B videos, T frames (or gaps), P = G x G patches, D channels of the tower, W hidden channels.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_volume(tokens_BTPW: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, T, P, W] -> [B, W, T, G, G], a view: the layout that PyTorch calls channels-last."""
    tokens_BTGGW: Tensor = tokens_BTPW.unflatten(2, grid)
    return tokens_BTGGW.permute(0, 4, 1, 2, 3)


def to_tokens(volume_BWTGG: Tensor) -> Tensor:
    """[B, W, T, G, G] -> [B, T, P, W], a view if the volume is channels-last."""
    return volume_BWTGG.permute(0, 2, 3, 4, 1).flatten(2, 3)


def keep_variance(layer: nn.Linear | nn.Conv3d, *, before_relu: bool = False) -> None:
    """Initialises a layer (Kaiming normal, zero bias) so that it preserves the signal's variance.

    PyTorch's default reduces the variance to a third in every layer. After four layers the prompts
    of all videos would be alike, and training would need long to separate them.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if before_relu else "linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class TemporalConv3d(nn.Module):
    """A 3 x 3 x 3 convolution with replicate padding in time.

    Zero padding in time would look like a scene change at both ends of the clip.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=(0, 1, 1))

    def forward(self, tokens_BTPW: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, T, P, W] -> [B, T, P, W]; an output frame sees one frame to each side."""
        args = tokens_BTPW, self.conv.weight, self.conv.bias, grid
        return cast(Tensor, _ConvInTime.apply(*args))


class _ConvInTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]) -> Tensor:
        padded = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
        ctx.save_for_backward(padded, weight)
        ctx.grid = grid
        return to_tokens(F.conv3d(to_volume(padded, grid), weight, bias, padding=(0, 1, 1)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight = ctx.saved_tensors
        grad_volume, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            *(to_volume(gradient, ctx.grid), to_volume(padded, ctx.grid), weight, [len(weight)]),
            *([1, 1, 1], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1, [True, True, True]),
        )
        grad_padded = to_tokens(grad_volume)
        grad_padded[:, 1].add_(grad_padded[:, 0])
        grad_padded[:, -2].add_(grad_padded[:, -1])
        return grad_padded[:, 1:-1], grad_weight, grad_bias, None


class _Energy(torch.autograd.Function):
    """|U x + b|^2 / D for the rows of x: a quadratic form of x with a 1 as its last channel."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        matrix = torch.cat([weight, bias[:, None]], dim=1)
        gram = _scaled_product(matrix.T, matrix, 1 / len(matrix))
        x = torch.cat([features, features.new_ones(1).expand(*features.shape[:-1], 1)], dim=-1)
        mapped = x @ gram
        ctx.save_for_backward(x, mapped, matrix)
        return (x * mapped).sum(-1).clamp_(min=0)  # rounding can leave it slightly below 0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, mapped, matrix = ctx.saved_tensors
        scale = 2 * gradient[..., None]
        grad_gram = (x * scale).flatten(0, -2).T @ x.flatten(0, -2)
        # Two products: parts of one would be copied into the gradients.
        grad_weight, grad_bias = (
            _scaled_product(matrix, part, 1 / len(matrix))
            for part in grad_gram.split([-1 + len(grad_gram), 1], 1)
        )
        return mapped[..., :-1] * scale, grad_weight, grad_bias[:, 0]


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)


class LightConv3d(nn.Module):
    """N^s and N^t: a 3-D convolution over (T, G, G) in a few channels.

    A linear map to `hidden` channels, the convolution, and a linear map back to `width`: the
    receptive field of a full convolution at a hundredth of its cost.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.down = nn.Linear(width, hidden)
        self.conv = TemporalConv3d(hidden)
        self.up = nn.Linear(hidden, width)

    def energy(self, hidden_BTPW: Tensor) -> Tensor:
        """Returns 1/D * sum_k out_k^2, [B, T, P], for inputs that went through `down` already.

        The D output channels are not computed: |U x + b|^2 is a quadratic form of the W inputs.
        """
        features_BTPW = self.conv(hidden_BTPW, self.grid)
        return cast(Tensor, _Energy.apply(features_BTPW, self.up.weight, self.up.bias))
