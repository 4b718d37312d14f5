"""STOP with one half or both halves of it replaced by constants (CVPR 2025, arXiv 2503.15973).

What STOP without a half, or with another rule, would be is a matter of `StopConfig`
(docs/model.md, "Ablations"). What needs other layers is here.

Shapes: B videos, T frames, P patches of a frame, K prompts in one gap, S static prompts of a
block, X prompts beside a packed sequence, N sequences, D channels of the tower, E of the joint
space.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import FrozenTower
from stop_core.model.prompted import BlockInput, PromptedModel
from stop_core.model.selection import choose_patches
from stop_core.model.sequences import GapPrompts, VideoTokens, pack, pack_prompts
from stop_core.model.temporal import TemporalPrompting, TemporalPrompts
from stop_core.settings.stop import StopConfig

# Near zero, so that training starts at the frozen tower; not at zero, or what chooses or weighs
# the prompts would get no gradient in the first step.
_START = 0.02


class AblatedStop(PromptedModel, ABC):
    """Prompts the first `depth` blocks, as STOP does, with prompting layers of another kind.

    Raises:
        ValueError: if `config` does not fit the tower; the message names the field.
    """

    def __init__(self, clip: FrozenClip, config: StopConfig) -> None:
        super().__init__(clip, config)
        layers = 1 if config.share else self.prompted_blocks
        self.prompting = nn.ModuleList(self.make_layer(self.tower) for _ in range(layers))

    @abstractmethod
    def make_layer(self, tower: FrozenTower) -> nn.Module:
        """A new layer for the input of one block: `VideoTokens` -> `BlockInput`."""

    def prompt(self, index: int, tokens: VideoTokens) -> BlockInput:
        """Prompts the tokens that enter block `index`, one of the first `depth`."""
        given: BlockInput = self.prompting[0 if self.config.share else index](tokens)
        return given


class StaticStop(AblatedStop):
    """STOP's prompts in STOP's places, blind to the video: what "dynamic" is measured against.

    Every quantity that STOP computes from the video is a learned constant: which `n_s` patches are
    prompted, their prompts, and the tokens of a gap. Each gap holds `max_prompts` of them, or none
    if `eta` is 0. `depth`, `share`, `attention`, `selection` and `dropout` mean what they mean to
    STOP; the other fields have nothing to act on.
    """

    def make_layer(self, tower: FrozenTower) -> nn.Module:
        """A new layer for the input of one block: `VideoTokens` -> `BlockInput`."""
        return _StaticLayer(tower, self.config)


class TemporalBesideStatic(AblatedStop):
    """STOP's temporal prompts beside deep static ones, without spatial prompts.

    The control for the spatial half: it shows what that half gains over prompts in the same
    blocks that do not look at the video. `prompts` learned tokens a block are those of VPT-deep
    (Jia et al., ECCV 2022); with `eta` 0 nothing else is left. No patch is chosen, so that `n_s`,
    `alpha`, `beta`, `spatial_width` and `difference` have nothing to act on.

    Raises:
        ValueError: if `prompts` is below 1, or `config` does not fit the tower.
    """

    def __init__(self, clip: FrozenClip, config: StopConfig, prompts: int) -> None:
        if prompts < 1:
            raise ValueError(f"static_prompts must be at least 1, got {prompts}")
        self.static_prompts = prompts
        super().__init__(clip, config)

    def make_layer(self, tower: FrozenTower) -> nn.Module:
        """A new layer for the input of one block: `VideoTokens` -> `BlockInput`."""
        return _TemporalBesideStaticLayer(tower, self.config, self.static_prompts)


class StaticSpatial(nn.Module):
    """A learned prompt for `n_s` learned patches, the same ones in every frame.

    `weight` [P] stands for W^s and `prompts` [P, D] for p^s (STOP, section 3.2).
    """

    def __init__(self, width: int, patches: int, config: StopConfig) -> None:
        super().__init__()
        self.config = config
        # On the scale of a W^s that is normalised: in [0, 1], and no two alike.
        self.weight = nn.Parameter(torch.rand(patches))
        self.prompts = nn.Parameter(_START * torch.randn(patches, width))

    def forward(self, h_BTPD: Tensor) -> Tensor:
        """Returns h^s = h + r p^s, [B, T, P, D], with r and p^s alike for all frames."""
        config = self.config
        weight_11P = self.weight[None, None]  # as of one frame of one video
        r_11P = choose_patches(weight_11P, config.n_s, straight_through=config.selection == "ste")
        p_s = F.dropout(self.prompts.expand_as(h_BTPD), config.dropout, self.training)
        return h_BTPD + r_11P[..., None] * p_s


class StaticTemporal(nn.Module):
    """The same `max_prompts` learned tokens in every gap.

    `prompts` [K, D] stands for p^t (STOP, section 3.3), and N^t is K everywhere.
    """

    def __init__(self, width: int, config: StopConfig) -> None:
        super().__init__()
        self.config = config
        self.prompts = nn.Parameter(_START * torch.randn(config.max_prompts, width))

    def forward(self, batch: int, gaps: int) -> GapPrompts:
        """Returns the prompts of `gaps` gaps, [B, T-1, K, D], with all slots present."""
        tokens_BTKD = self.prompts.expand(batch, gaps, -1, -1)
        p_t = F.dropout(tokens_BTKD, self.config.dropout, self.training)
        return GapPrompts(p_t, p_t.new_ones(p_t.shape[:3]))


class _StaticLayer(nn.Module):
    """Both halves as constants; a half that is turned off has no tensors."""

    def __init__(self, tower: FrozenTower, config: StopConfig) -> None:
        super().__init__()
        self.config = config
        # Named as STOP's halves are: the trainer knows the spatial tensors by it.
        self.spatial = StaticSpatial(tower.width, tower.patches, config) if config.n_s else None
        self.temporal = StaticTemporal(tower.width, config) if config.eta else None

    def forward(self, tokens: VideoTokens) -> BlockInput:
        batch, frames = tokens.h.shape[:2]
        attention = self.config.attention
        if self.spatial is not None:
            tokens = VideoTokens(tokens.cls, self.spatial(tokens.h))
        sequence = pack(tokens, attention)
        if self.temporal is None or frames == 1:
            return BlockInput(sequence)
        return BlockInput(sequence, *pack_prompts(self.temporal(batch, frames - 1), attention))


class _TemporalBesideStaticLayer(nn.Module):
    """The temporal prompts of STOP on plain tokens, and `prompts` learned ones beside them."""

    def __init__(self, tower: FrozenTower, config: StopConfig, prompts: int) -> None:
        super().__init__()
        self.config = config
        self.temporal = TemporalPrompting(tower.width, tower.grid, config) if config.eta else None
        self.prompts = nn.Parameter(_START * torch.randn(prompts, tower.width))

    def forward(self, tokens: VideoTokens) -> BlockInput:
        attention, h = self.config.attention, tokens.h
        sequence = pack(tokens, attention)
        static_NSD = self.prompts.expand(sequence.shape[0], -1, -1)
        there_NS = h.new_ones(static_NSD.shape[:2])
        if self.temporal is None or h.shape[1] == 1:
            return BlockInput(sequence, static_NSD, there_NS)
        dynamic: TemporalPrompts = self.temporal(h, h.new_zeros(h.shape[:3]))
        p_t, presence = pack_prompts(GapPrompts(dynamic.p_t, dynamic.presence), attention)
        prompts = torch.cat([p_t, static_NSD], dim=1)
        return BlockInput(sequence, prompts, torch.cat([presence, there_NS], dim=1))
