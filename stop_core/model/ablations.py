"""STOP with constants in place of its spatial or temporal prompting (arXiv 2503.15973).

Ablations that only turn a part off or change a rule are fields of `StopConfig` (docs/model.md,
"Ablations"). The ones here need other layers.

Shapes: B videos, T frames, P patches per frame, K prompts per gap, S static prompts per block,
N packed sequences, D channels of the tower.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import FrozenTower
from stop_core.model.prompted import BlockInput, PromptedModel
from stop_core.model.selection import choose_patches
from stop_core.model.sequences import VideoTokens, pack_prompts
from stop_core.model.temporal import TemporalPrompting, TemporalPrompts
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig

# Near zero, so that training starts at the frozen tower. Not zero, or the parameters that select
# or scale the prompts would get no gradient in the first step.
_START = 0.02


class StaticStop(PromptedModel):
    """STOP with constant prompts in the same places: the control for "dynamic".

    The `n_s` patches, their prompts and the tokens of a gap are learned constants. Each gap has
    `max_prompts` tokens, or none if `eta` is 0. `depth`, `share`, `attention`, `selection` and
    `dropout` have the same meaning as in STOP; the other fields have no effect.
    """

    def make_layer(self) -> nn.Module:
        """Returns a new prompting layer."""
        return _StaticLayer(self.tower, self.config)


class TemporalWithStatic(PromptedModel):
    """STOP's temporal prompts together with deep static prompts, without spatial prompts.

    The control for the spatial prompts: it shows their gain over prompts in the same blocks that do
    not depend on the video. The static prompts are those of VPT-deep (Jia et al., ECCV 2022):
    `prompts` learned tokens per block. With `eta` 0 there are no others. No patch is selected, so
    `n_s`, `choose`, `alpha`, `beta`, `spatial_width` and `difference` have no effect.
    """

    def __init__(self, clip: FrozenClip, config: StopConfig, prompts: int) -> None:
        if prompts < 1:
            raise ValueError(f"static_prompts must be at least 1, got {prompts}")
        self.static_prompts = prompts
        super().__init__(clip, config)

    @classmethod
    def build(
        cls, clip: FrozenClip, config: ExperimentConfig, classes: int
    ) -> "TemporalWithStatic":
        """Returns the method with the settings of an experiment."""
        del classes
        return cls(clip, config.stop, config.static_prompts)

    def make_layer(self) -> nn.Module:
        """Returns a new prompting layer."""
        return _TemporalWithStaticLayer(self.tower, self.config, self.static_prompts)


class StaticSpatial(nn.Module):
    """Learned W^s [P] and p^s [P, D], the same for every frame (STOP, section 3.2)."""

    def __init__(self, width: int, patches: int, config: StopConfig) -> None:
        super().__init__()
        self.config = config
        # On the scale of a normalised W^s: in [0, 1], all different.
        self.weight = nn.Parameter(torch.rand(patches))
        self.prompts = nn.Parameter(_START * torch.randn(patches, width))

    def forward(self, h_BTPD: Tensor) -> Tensor:
        """Returns h^s = h + r * p^s, [B, T, P, D], with the same r and p^s for all frames."""
        config = self.config
        weight_11P = self.weight[None, None]
        soft = config.selection == "ste"
        r_11P, _ = choose_patches(weight_11P, config.n_s, straight_through=soft)
        p_s = F.dropout(self.prompts.expand_as(h_BTPD), config.dropout, self.training)
        return h_BTPD + r_11P[..., None] * p_s


class StaticTemporal(nn.Module):
    """Learned p^t [K, D], the same in every gap, and N^t is always K (STOP, section 3.3)."""

    def __init__(self, width: int, config: StopConfig) -> None:
        super().__init__()
        self.config = config
        self.prompts = nn.Parameter(_START * torch.randn(config.max_prompts, width))

    def forward(self, batch: int, gaps: int) -> tuple[Tensor, Tensor]:
        """Returns the prompts of `gaps` gaps, [B, T-1, K, D], and their presence, all 1."""
        tokens_BTKD = self.prompts.expand(batch, gaps, -1, -1)
        p_t = F.dropout(tokens_BTKD, self.config.dropout, self.training)
        return p_t, p_t.new_ones(p_t.shape[:3])


class _StaticLayer(nn.Module):
    """Constant spatial and temporal prompts; a kind that is turned off has no tensors."""

    def __init__(self, tower: FrozenTower, config: StopConfig) -> None:
        super().__init__()
        self.config = config
        # Named as in STOP: the trainer finds the spatial tensors by this name (`spatial_rate`).
        self.spatial = StaticSpatial(tower.width, tower.patches, config) if config.n_s else None
        self.temporal = StaticTemporal(tower.width, config) if config.eta else None

    def forward(self, tokens: VideoTokens) -> BlockInput:
        batch, frames = tokens.h.shape[:2]
        if self.spatial is not None:
            tokens = tokens.with_h(self.spatial(tokens.h))
        sequence = tokens.packed
        if self.temporal is None or frames == 1:
            return BlockInput(sequence)
        p_t, presence = self.temporal(batch, frames - 1)
        return BlockInput(sequence, *pack_prompts(p_t, presence, self.config.attention))


class _TemporalWithStaticLayer(nn.Module):
    """STOP's temporal prompts from unprompted tokens, and `prompts` learned tokens."""

    def __init__(self, tower: FrozenTower, config: StopConfig, prompts: int) -> None:
        super().__init__()
        self.config = config
        self.temporal = TemporalPrompting(tower.width, tower.grid, config) if config.eta else None
        self.prompts = nn.Parameter(_START * torch.randn(prompts, tower.width))

    def forward(self, tokens: VideoTokens) -> BlockInput:
        attention, h, sequence = self.config.attention, tokens.h, tokens.packed
        static_NSD = self.prompts.expand(sequence.shape[0], -1, -1)
        present_NS = h.new_ones(static_NSD.shape[:2])
        if self.temporal is None or h.shape[1] == 1:
            return BlockInput(sequence, static_NSD, present_NS)
        dynamic: TemporalPrompts = self.temporal(tokens, None)
        p_t, presence = pack_prompts(dynamic.p_t, dynamic.presence, attention)
        prompts = torch.cat([p_t, static_NSD], dim=1)
        return BlockInput(sequence, prompts, torch.cat([presence, present_NS], dim=1))
