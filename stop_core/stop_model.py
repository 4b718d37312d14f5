"""STOP: a frozen CLIP whose prompts follow the video (CVPR 2025, arXiv 2503.15973).

Shapes: B videos, T frames, P patches of a frame, D channels of the tower, E of the joint space.
"""

from typing import cast

import torch
from torch import Tensor, nn

from stop_core.clip import FrozenClip, load_clip
from stop_core.config import StopConfig
from stop_core.sequences import GapPrompts, VideoTokens, pack, pack_prompts, unpack
from stop_core.spatial import SpatialPrompting, SpatialPrompts
from stop_core.temporal import TemporalPrompting, TemporalPrompts
from stop_core.trace import PromptTrace
from stop_core.video_model import VideoModel


class PromptingLayer(nn.Module):
    """The spatial and temporal prompting at the input of one block."""

    def __init__(self, width: int, grid: tuple[int, int], config: StopConfig) -> None:
        super().__init__()
        self.spatial = SpatialPrompting(width, grid, config)
        self.temporal = TemporalPrompting(width, grid, config)


class StopModel(VideoModel):
    """Integrated spatial-temporal dynamic prompting of a frozen CLIP.

    Raises:
        ValueError: if `config` does not fit the tower; the message names the field.
    """

    def __init__(self, clip: FrozenClip, config: StopConfig) -> None:
        super().__init__(clip)
        tower = self.tower
        if config.n_s > tower.patches:
            raise ValueError(
                f"n_s must be at most {tower.patches}, the patches of a frame of {clip.name}; "
                f"got {config.n_s}"
            )
        if config.depth is not None and config.depth > tower.depth:
            raise ValueError(
                f"depth must be at most {tower.depth}, the blocks of {clip.name}; "
                f"got {config.depth}"
            )
        self.config = config
        self.prompted_blocks = tower.depth if config.depth is None else config.depth
        layers = 1 if config.share else self.prompted_blocks
        self.prompting = nn.ModuleList(
            PromptingLayer(tower.width, tower.grid, config) for _ in range(layers)
        )

    def encode_video(self, frames: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3] -> video embeddings [B, E], L2-normalised."""
        return self._encode(frames, None)

    @torch.no_grad()
    def trace(self, frames: Tensor) -> list[PromptTrace]:
        """Returns every symbol of the paper, one `PromptTrace` a prompted block, in order.

        Computed as in evaluation: without dropout, whatever mode the model is in.
        """
        was_training = self.training
        self.eval()
        try:
            traces: list[PromptTrace] = []
            self._encode(frames, traces)
            return traces
        finally:
            self.train(was_training)

    def _encode(self, frames: Tensor, traces: list[PromptTrace] | None) -> Tensor:
        tower, attention = self.tower, self.config.attention
        tokens = self.first_tokens(frames, attention)
        prompts: Tensor | None = None
        presence: Tensor | None = None
        for index in range(tower.depth):
            if index < self.prompted_blocks:
                tokens, gaps = self._prompt(index, tokens, traces)
                prompts, presence = pack_prompts(gaps, attention) if gaps else (None, None)
            last = index + 1 == tower.depth
            packed, prompts = tower.run_block(
                index,
                pack(tokens, attention),
                prompts,
                presence,
                # What the next block replaces need not be computed, nor what follows the last,
                carry_prompts=self.prompted_blocks <= index + 1 and not last,
                # of which the CLS tokens alone are looked at.
                only_cls=last,
            )
            if not last:
                tokens = unpack(packed, tokens)
        return self.embed_video(packed.view(len(frames), -1, tower.width))

    def _prompt(
        self, index: int, tokens: VideoTokens, traces: list[PromptTrace] | None
    ) -> tuple[VideoTokens, GapPrompts | None]:
        """Prompts the input of block `index`: the prompted tokens, and the prompts of the gaps."""
        layer = cast(PromptingLayer, self.prompting[0 if self.config.share else index])
        tracing = traces is not None
        h = h_s = tokens.h
        r, gaps = h.new_zeros(h.shape[:3]), None
        # A half that is turned off is computed for a trace alone.
        has_temporal = self.config.eta > 0 and h.shape[1] > 1
        if self.config.n_s or tracing:
            attention = self.tower.cls_attention(index, tokens.cls, h)
            spatial: SpatialPrompts = layer.spatial(h, attention, every_prompt=tracing)
            h_s, r = spatial.h_s, spatial.r
        if has_temporal or tracing:
            source = h_s if self.config.difference == "prompted" else h
            temporal: TemporalPrompts = layer.temporal(source, r)
            gaps = GapPrompts(temporal.p_t, temporal.presence) if has_temporal else None
        if traces is not None:
            traces.append(PromptTrace.of(h, spatial, temporal))
        return VideoTokens(tokens.cls, h_s), gaps


def build_model(
    name: str, pretrained: str | None = None, config: StopConfig | None = None
) -> StopModel:
    """Builds STOP on the CLIP called `name`.

    Args:
        name: "tiny" (the embedded default, with its own weights) or any open_clip ViT.
        pretrained: an open_clip tag, a local weights file, or None for random weights.
        config: the settings of the prompting layers; default `StopConfig()`.

    Raises:
        ValueError: if the tower is unknown or unfit, or `config` does not fit it.
        OSError: if the weights cannot be read or fetched.
    """
    return StopModel(load_clip(name, pretrained), config or StopConfig())
