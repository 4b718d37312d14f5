"""Adapters in a frozen tower: small layers between its blocks, or inside of them.

Shapes: B videos, T frames, N = 1 + P tokens of a frame, D channels of the tower, W of an adapter.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.model.video_model import VideoModel, frame_positions
from stop_core.model.volume import to_tokens, to_volume
from stop_core.settings.method_options import MOST_FRAMES, AimOptions, StAdapterOptions


class ConvAdapter(nn.Module):
    """h + up(conv(down(h))), conv being depthwise over (T, G, G), in 3-D, and zero at the start."""

    def __init__(self, width: int, grid: tuple[int, int], options: StAdapterOptions) -> None:
        super().__init__()
        hidden = max(1, round(options.adapter_ratio * width))
        kernel = (3, 1, 1) if options.adapter_kernel == "3x1x1" else (3, 3, 3)
        self.grid = grid
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv3d(hidden, hidden, kernel, padding="same", groups=hidden)
        self.up = nn.Linear(hidden, width)
        for zero in (self.conv.weight, self.conv.bias, self.down.bias, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, h_BTPD: Tensor) -> Tensor:
        """Returns the adapted patch tokens, [B, T, P, D]."""
        volume = self.conv(to_volume(self.down(h_BTPD), self.grid))
        return cast(Tensor, h_BTPD + self.up(to_tokens(volume)))


class StAdapter(VideoModel):
    """ST-Adapter (Pan et al., NeurIPS 2022): an adapter on the patches before every block.

    Each frame attends to itself; frame embeddings are averaged. As in the authors' code, there is
    no activation between convolution and `up`, and the CLS tokens are not adapted.
    """

    def __init__(self, clip: FrozenClip, options: StAdapterOptions) -> None:
        super().__init__(clip)
        tower = self.tower
        self.adapters = nn.ModuleList(
            ConvAdapter(tower.width, tower.grid, options) for _ in range(tower.depth)
        )

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        tokens_BTND = self.embed_frames(frames)
        for index, adapter in enumerate(self.adapters):
            cls, h = tokens_BTND.split([1, self.tower.patches], dim=2)
            packed = torch.cat([cls, adapter(h)], dim=2).flatten(0, 1)
            last = index + 1 == self.tower.depth
            packed, _ = self.tower.run_block(index, packed, only_cls=last)
            tokens_BTND = packed.unflatten(0, frames.shape[:2])
        return self.embed_video(tokens_BTND[:, :, 0])


class Bottleneck(nn.Module):
    """up(gelu(down(x))); `up` starts at zero."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(ratio * width))
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return cast(Tensor, self.up(F.gelu(self.down(tokens))))


class Aim(VideoModel):
    """AIM (Yang et al., ICLR 2023): the frozen attention reused over time, and three adapters.

    In every block: attention over the frames of each token, adapted; attention over the tokens of
    each frame, with a residual adapter; the MLP, with a parallel adapter. Frame embeddings are
    averaged. The learned frame positions are added behind the tower's first layer norm, and not
    before it as in the authors' code; there is no stochastic depth.
    """

    def __init__(self, clip: FrozenClip, options: AimOptions) -> None:
        super().__init__(clip)
        width, ratio = self.tower.width, options.adapter_ratio
        self.scale = options.adapter_scale
        self.positions = nn.Parameter(torch.zeros(MOST_FRAMES, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: Bottleneck(width, ratio) for name in ("time", "space", "joint")})
            for _ in range(self.tower.depth)
        )

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        tokens_BTND = self.embed_frames(frames)
        tokens_BTND = tokens_BTND + frame_positions(self.positions, frames.shape[1])[:, None]
        shape = tokens_BTND.transpose(1, 2).shape[:2]
        for index, adapters in enumerate(cast(Iterable[nn.ModuleDict], self.blocks)):
            over_time = self.tower.attend(index, tokens_BTND.transpose(1, 2).flatten(0, 1))
            in_time = adapters["time"](over_time).unflatten(0, shape).transpose(1, 2)
            packed = (tokens_BTND + in_time).flatten(0, 1)
            over_space = self.tower.attend(index, packed)
            packed = packed + over_space + adapters["space"](over_space)
            normed = self.tower.blocks[index].ln_2(packed)
            joint = self.scale * adapters["joint"](normed)
            packed = packed + self.tower.feed_forward(index, packed) + joint
            tokens_BTND = packed.unflatten(0, frames.shape[:2])
        return self.embed_video(tokens_BTND[:, :, 0])
