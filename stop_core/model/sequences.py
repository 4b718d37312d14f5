"""Packing the tokens of a video into the sequences that a frozen block takes.

Shapes: B videos, T frames, P patches per frame, K prompt slots per gap, D channels. C is the number
of CLS tokens of a video: 1 in joint attention, T (one per frame) in frame attention.
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
    """Prompt tokens of the gaps between frames, and which of their slots are used."""

    tokens: Tensor  # [B, T-1, K, D]
    presence: Tensor  # [B, T-1, K]


def pack(tokens: VideoTokens, attention: Attention) -> Tensor:
    """Returns the sequences: joint [B, 1 + T*P, D], frame [B*T, 1 + P, D].

    The order of the paper is CLS, h_1, p_2, h_2, ...; here the prompts follow all patches. The
    attention of the frozen blocks is independent of the order, so both give the same output.
    """
    if attention == "joint":
        return torch.cat([tokens.cls, tokens.h.flatten(1, 2)], dim=1)
    return torch.cat([tokens.cls[:, :, None], tokens.h], dim=2).flatten(0, 1)


def unpack(packed: Tensor, like: VideoTokens) -> VideoTokens:
    """Inverts `pack`; the result has the shapes of `like`."""
    batch, frames, patches, _ = like.h.shape
    # One split instead of two slices: each slice would add a copy of the gradient.
    cls, h = packed.split([1, packed.shape[1] - 1], dim=1)
    if like.cls.shape[1] == 1:
        return VideoTokens(cls, h.unflatten(1, (frames, patches)))
    return VideoTokens(cls.view(batch, frames, -1), h.unflatten(0, (batch, frames)))


def pack_prompts(prompts: GapPrompts, attention: Attention) -> tuple[Tensor, Tensor]:
    """Returns the prompts and their presence for the sequences of `pack`.

    Joint: [B, (T-1)*K, D]. Frame: [B*T, K, D], the prompts of the gap before each frame; the first
    frame has none.
    """
    if attention == "joint":
        return prompts.tokens.flatten(1, 2), prompts.presence.flatten(1, 2)
    tokens = torch.cat([torch.zeros_like(prompts.tokens[:, :1]), prompts.tokens], dim=1)
    presence = torch.cat([torch.zeros_like(prompts.presence[:, :1]), prompts.presence], dim=1)
    return tokens.flatten(0, 1), presence.flatten(0, 1)
