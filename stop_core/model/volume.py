"""Patch tokens as a video volume, and the light 3-D convolution over it (N^s, N^t of the paper).

Shapes: B videos, T frames (or gaps), P = G x G patches, D channels of the tower, W hidden channels.
"""

from typing import Any, cast

import torch
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
        return to_tokens(self.conv(to_volume(cast(Tensor, _RepeatEnds.apply(tokens_BTPW)), grid)))


class _RepeatEnds(torch.autograd.Function):
    """Repeats the first and the last frame."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x, x[:, -1:]], dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        out = gradient[:, 1:-1].clone()
        out[:, 0].add_(gradient[:, 0])
        out[:, -1].add_(gradient[:, -1])
        return out


class _Energy(torch.autograd.Function):
    """x^T G x for the rows of x, with the constant 1 as their last channel."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, gram: Tensor) -> Tensor:
        one = features.new_ones(1).expand(*features.shape[:-1], 1)
        x = torch.cat([features, one], dim=-1)
        mapped = x @ gram
        ctx.save_for_backward(x, mapped)
        return (x * mapped).sum(-1).clamp_(min=0)  # rounding can leave it slightly below 0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, mapped = ctx.saved_tensors
        scale = gradient[..., None]
        grad_gram = (x * scale).flatten(0, -2).T @ x.flatten(0, -2)
        return mapped[..., :-1] * (2 * scale), grad_gram


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
        matrix_DV = torch.cat([self.up.weight, self.up.bias[:, None]], dim=1)  # V = W + 1
        gram_VV = matrix_DV.T @ matrix_DV / len(matrix_DV)
        return cast(Tensor, _Energy.apply(features_BTPW, gram_VV))
