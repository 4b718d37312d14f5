"""How the tokens of a video become the sequences that a frozen block sees.

Shapes: B videos, T frames, P patches of a frame, K prompt slots of a gap, D channels. C is the
number of CLS tokens: 1 a video in joint attention, T (one a frame) in frame attention.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stop_core.settings.stop import Attention


@dataclass(frozen=True)
class VideoTokens:
    """The tokens of a batch between two blocks."""

    cls: Tensor  # [B, C, D]
    h: Tensor  # [B, T, P, D]


@dataclass(frozen=True)
class GapPrompts:
    """Prompt tokens of the gaps between frames, with the slots that are empty."""

    tokens: Tensor  # [B, T-1, K, D]
    presence: Tensor  # [B, T-1, K]


def pack(tokens: VideoTokens, attention: Attention) -> Tensor:
    """Joint: [B, 1 + T*P, D]. Frame: [B*T, 1 + P, D].

    The paper's order is CLS, h_1, p_2, h_2, ...; here the prompts follow all patches instead. The
    attention of the frozen blocks knows no order, so the two give the same output.
    """
    if attention == "joint":
        return torch.cat([tokens.cls, tokens.h.flatten(1, 2)], dim=1)
    return torch.cat([tokens.cls[:, :, None], tokens.h], dim=2).flatten(0, 1)


def unpack(packed: Tensor, like: VideoTokens) -> VideoTokens:
    """The inverse of `pack`; `like` tells the shapes."""
    batch, frames, patches, _ = like.h.shape
    # split, not two slices: its gradient is one copy, that of a slice one copy each.
    cls, h = packed.split([1, packed.shape[1] - 1], dim=1)
    if packed.shape[0] == batch and like.cls.shape[1] == 1:
        return VideoTokens(cls, h.unflatten(1, (frames, patches)))
    return VideoTokens(cls.view(batch, frames, -1), h.unflatten(0, (batch, frames)))


def pack_prompts(prompts: GapPrompts, attention: Attention) -> tuple[Tensor, Tensor]:
    """Prompts and their presence beside the sequences of `pack`.

    Joint: [B, (T-1)*K, D]. Frame: [B*T, K, D], the prompts of the gap before each frame; the first
    frame has none.
    """
    if attention == "joint":
        return prompts.tokens.flatten(1, 2), prompts.presence.flatten(1, 2)
    tokens = torch.cat([torch.zeros_like(prompts.tokens[:, :1]), prompts.tokens], dim=1)
    presence = torch.cat([torch.zeros_like(prompts.presence[:, :1]), prompts.presence], dim=1)
    return tokens.flatten(0, 1), presence.flatten(0, 1)
