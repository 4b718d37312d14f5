"""Patch tokens as a video volume, and the light 3-D convolution over it (N^s, N^t of the paper).

Shapes: B videos, T frames (or gaps), P = G x G patches, D channels of the tower, W hidden channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_volume(tokens_BTPW: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, T, P, W] -> [B, W, T, G, G]."""
    tokens_BTGGW: Tensor = tokens_BTPW.unflatten(2, grid)
    return tokens_BTGGW.permute(0, 4, 1, 2, 3)


def to_tokens(volume_BWTGG: Tensor) -> Tensor:
    """[B, W, T, G, G] -> [B, T, P, W]."""
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

    def forward(self, volume_BWTGG: Tensor) -> Tensor:
        """[B, W, T, G, G] -> [B, W, T, G, G]; an output frame sees one frame to each side."""
        padded: Tensor = F.pad(volume_BWTGG, (0, 0, 0, 0, 1, 1), mode="replicate")
        out: Tensor = self.conv(padded)
        return out


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
        volume = self.conv(to_volume(hidden_BTPW, self.grid))
        features_BTPV = F.pad(to_tokens(volume), (0, 1), value=1.0)  # V = W + 1, for the bias
        matrix_DV = torch.cat([self.up.weight, self.up.bias[:, None]], dim=1)
        gram_VV = matrix_DV.T @ matrix_DV / len(matrix_DV)
        energy_BTP: Tensor = ((features_BTPV @ gram_VV) * features_BTPV).sum(-1)
        return energy_BTP.clamp(min=0)  # rounding can leave it slightly below 0
