"""STOP: a frozen CLIP with dynamic spatial and temporal prompts (CVPR 2025, arXiv 2503.15973).

Shapes: B videos, T frames, P patches per frame, D channels of the tower, E of the joint space.
"""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from stop_core.clip.loading import load_clip
from stop_core.model.methods import check_tower
from stop_core.model.prompted import BlockInput, PromptedModel
from stop_core.model.sequences import VideoTokens, pack_prompts
from stop_core.model.spatial import SpatialPrompting, SpatialPrompts
from stop_core.model.temporal import TemporalPrompting, TemporalPrompts
from stop_core.model.trace import PromptTrace
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig


class StopModel(PromptedModel):
    """Integrated spatial-temporal dynamic prompting of a frozen CLIP.

    At the input of every prompted block, spatial prompts are added to `n_s` patches of each frame
    (section 3.2) and up to `max_prompts` tokens are inserted between two frames (section 3.3).
    Raises ValueError if `config` does not fit the tower.
    """

    def make_layer(self) -> nn.ModuleDict:
        """Returns the spatial and temporal prompting at the input of one block."""
        sizes = self.tower.width, self.tower.grid, self.config
        parts = {"spatial": SpatialPrompting(*sizes), "temporal": TemporalPrompting(*sizes)}
        return nn.ModuleDict(parts)

    @torch.no_grad()
    def trace(self, frames: Tensor) -> list[PromptTrace]:
        """Returns every symbol of the paper, a trace per prompted block, in evaluation mode."""
        was_training = self.training
        self.eval()
        try:
            traces: list[PromptTrace] = []
            self.encode_with(lambda index, tokens: self.prompt(index, tokens, traces), frames)
            return traces
        finally:
            self.train(was_training)

    def prompt(
        self, index: int, tokens: VideoTokens, traces: list[PromptTrace] | None = None
    ) -> BlockInput:
        """Prompts the tokens that enter block `index`; adds a trace to `traces`, if given."""
        config = self.config
        layer = cast(nn.ModuleDict, self.layer(index))
        tracing = traces is not None
        prompted, r = tokens, None
        # Prompting that is turned off (n_s = 0, eta = 0) is computed only for a trace.
        has_temporal = config.eta > 0 and tokens.frames > 1
        if config.n_s or tracing:
            attend = partial(self.tower.cls_attention, index, tokens.cls, tokens.h)
            spatial: SpatialPrompts = layer["spatial"](tokens, attend, every_prompt=tracing)
            prompted, r = spatial.tokens, spatial.r
        sequence = prompted.packed
        if has_temporal or tracing:
            source = prompted if config.difference == "prompted" else tokens
            temporal: TemporalPrompts = layer["temporal"](source, r)
        if traces is not None:
            traces.append(PromptTrace.of(tokens.h, spatial, temporal))
        if not has_temporal:
            return BlockInput(sequence)
        packed = pack_prompts(temporal.p_t, temporal.presence, config.attention)
        return BlockInput(sequence, *packed)


def build_model(
    name: str, pretrained: str | None = None, config: StopConfig | None = None
) -> StopModel:
    """Builds STOP on the CLIP called `name`.

    Args:
        name: "tiny" (the embedded default) or "tiny-64", which have their own weights, or any
            open_clip ViT.
        pretrained: an open_clip tag, a local file or folder of weights, or "random": see
            `stop_core.clip.pretrained`. None for the tiny towers.
        config: the settings of the prompting layers; default: `StopConfig()`.

    Raises:
        ValueError: if the tower is unknown or unsupported, or `config` does not fit it.
        OSError: if the weights cannot be read or downloaded.
    """
    check_tower(ExperimentConfig(tower=name, pretrained=pretrained))
    return StopModel(load_clip(name, pretrained), config or StopConfig())
