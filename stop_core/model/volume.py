"""Patch tokens as a video volume, and the light 3-D convolution over it.

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
    """Draws weights that pass a signal on at its own strength, and no bias.

    torch's default shrinks it to a third of its variance in every layer. After four of them, the
    prompts of all videos would be alike, and training would take long to tell them apart.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if before_relu else "linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class TemporalConv3d(nn.Module):
    """A 3 x 3 x 3 convolution whose first and last frame are repeated at the ends of the clip.

    Zeros there would look like a change of scene.
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
    """N^s and N^t: a 3-D convolution over (T, G, G) run in few channels.

    A linear map to `hidden` channels, the convolution, and a linear map back to `width`: the same
    reach as a full convolution at a hundredth of its cost.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.down = nn.Linear(width, hidden)
        self.conv = TemporalConv3d(hidden)
        self.up = nn.Linear(hidden, width)

    def energy(self, hidden_BTPW: Tensor) -> Tensor:
        """1/D * sum_k out_k^2 of the output, [B, T, P], from what `down` made of the input.

        The D channels are never computed: |U x + b|^2 is a quadratic form of the few that go in.
        """
        volume = self.conv(to_volume(hidden_BTPW, self.grid))
        features_BTPV = F.pad(to_tokens(volume), (0, 1), value=1.0)
        matrix_DV = torch.cat([self.up.weight, self.up.bias[:, None]], dim=1)
        gram_VV = matrix_DV.T @ matrix_DV / len(matrix_DV)
        energy_BTP: Tensor = ((features_BTPV @ gram_VV) * features_BTPV).sum(-1)
        return energy_BTP.clamp(min=0)  # rounding may leave it a hair below
