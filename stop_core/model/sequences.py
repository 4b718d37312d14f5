"""Packing the tokens of a video into the sequences that a frozen block takes.

Shapes: B videos, T frames, P patches per frame, K prompt slots per gap, D channels. C is the number
of CLS tokens of a video: 1 in joint attention, T (one per frame) in frame attention.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from stop_core.settings.stop import Attention


def patches_of(packed: Tensor, frames: int, joint: bool) -> Tensor:
    """Returns the patches [B, T, P, ...] of packed sequences, a view."""
    if joint:
        return cast(Tensor, packed[:, 1:].unflatten(1, (frames, -1)))
    return cast(Tensor, packed.unflatten(0, (-1, frames))[:, :, 1:])


@dataclass(frozen=True)
class VideoTokens:
    """The tokens of a batch between two blocks, packed as a frozen block takes them.

    The order of the paper is CLS, h_1, p_2, h_2, ...; here the prompts follow all patches. The
    attention of the frozen blocks is independent of the order, so both give the same output.
    """

    packed: Tensor  # joint [B, 1 + T*P, D], frame [B*T, 1 + P, D]
    frames: int
    joint: bool

    @classmethod
    def pack(cls, cls_BCD: Tensor, h_BTPD: Tensor, attention: Attention) -> "VideoTokens":
        """Packs CLS and patch tokens into the sequences of `attention`."""
        joint, frames = attention == "joint", h_BTPD.shape[1]
        if joint:
            return cls(torch.cat([cls_BCD, h_BTPD.flatten(1, 2)], dim=1), frames, joint)
        packed = torch.cat([cls_BCD[:, :, None], h_BTPD], dim=2).flatten(0, 1)
        return cls(packed, frames, joint)

    @property
    def cls(self) -> Tensor:
        """The CLS tokens, [B, C, D]."""
        if self.joint:
            return self.packed[:, :1]
        return cast(Tensor, self.packed[:, 0].unflatten(0, (-1, self.frames)))

    @property
    def h(self) -> Tensor:
        """The patch tokens, [B, T, P, D]."""
        return patches_of(self.packed, self.frames, self.joint)

    def with_h(self, h_BTPD: Tensor) -> "VideoTokens":
        """Returns the tokens with other patches."""
        return VideoTokens.pack(self.cls, h_BTPD, "joint" if self.joint else "frame")

    def with_packed(self, packed: Tensor) -> "VideoTokens":
        """Returns other tokens in the same layout."""
        return VideoTokens(packed, self.frames, self.joint)


def pack_prompts(
    p_BTKD: Tensor, presence_BTK: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Returns the prompts of the T-1 gaps and their presence for the sequences of `pack`.

    Joint: [B, (T-1)*K, D]. Frame: [B*T, K, D], of the gap before each frame; the first has none.
    """
    if attention == "joint":
        return p_BTKD.flatten(1, 2), presence_BTK.flatten(1, 2)
    # The slots of the first frame are empty, so any tokens can fill them.
    tokens = torch.cat([p_BTKD[:, :1].detach(), p_BTKD], dim=1)
    presence = torch.cat([torch.zeros_like(presence_BTK[:, :1]), presence_BTK], dim=1)
    return tokens.flatten(0, 1), presence.flatten(0, 1)
