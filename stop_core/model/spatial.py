"""Intra-frame spatial prompting (STOP, CVPR 2025, section 3.2).

    A_i    = Attn(h_cls, h_i)                      CLS-to-patch attention inside frame i
    M_ij   = 1/D * sum_k N^s(h)_ijk^2              temporal dynamics of patch j of frame i
    W_i^s  = alpha * A_i + (1 - alpha) * M_i
    r_ij   = 1 for the N_s largest W_ij^s of frame i, else 0 (`choose` has controls for this rule)
    p_i^s  = P^s(h_{i-1}, h_i, h_{i+1})
    h_i^s  = h_i + r_i * p_i^s

Shapes: B videos, T frames, P patches per frame, D channels of the tower, W hidden channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from stop_core.model.low_rank import add_prompts, map_tokens
from stop_core.model.selection import choose_patches, min_max
from stop_core.model.sequences import VideoTokens, patches_of
from stop_core.model.volume import LightConv3d, TemporalConv3d, keep_variance, to_tokens, to_volume
from stop_core.settings.stop import StopConfig

_PRIME = 2**31 - 1

Attend = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SpatialPrompts:
    """Results of spatial prompting, under the paper's names."""

    A_raw: Tensor  # [B, T, P] attention of the CLS token to the patches of a frame; sums to 1
    M_raw: Tensor  # [B, T, P] temporal dynamics
    A: Tensor  # [B, T, P] as mixed into W_s
    M: Tensor  # [B, T, P] as mixed into W_s
    W_s: Tensor  # [B, T, P] alpha * A + (1 - alpha) * M
    r: Tensor  # [B, T, P] 1 for the n_s selected patches of a frame, else 0
    p_s: Tensor | None  # [B, T, P, D] prompts of all patches, selected or not; None if not computed
    tokens: VideoTokens  # CLS and h_s

    @property
    def h_s(self) -> Tensor:
        """The prompted patches, h + r * p_s, [B, T, P, D]."""
        return self.tokens.h


class SpatialPrompter(nn.Module):
    """P^s: computes a prompt for every patch from its frame and the two neighbouring frames.

    Layer norm, linear map to W channels, then as in the paper: Conv3d, ReLU, Conv3d, Linear, ReLU,
    Linear, Dropout. The kernels have sizes 3 and 1 in time, so that a prompt sees exactly one frame
    to each side. The prompts of a block are added to the tokens that the next block's prompts are
    computed from: without a layer norm they would grow from block to block without bound.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.grid = grid
        self.down = nn.Linear(width, hidden)
        self.conv_in_time = TemporalConv3d(hidden)
        self.conv_in_space = nn.Conv3d(hidden, hidden, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        self.mix = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        keep_variance(self.down)
        keep_variance(self.conv_in_time.conv, before_relu=True)
        keep_variance(self.conv_in_space)
        keep_variance(self.mix, before_relu=True)
        # Nearly zero, so that training starts at the frozen tower. Larger prompts appear in the
        # frame differences wherever a patch is selected in one frame and not in the next, and
        # delayed or prevented learning (docs/model.md). Not exactly zero, or the layers before it
        # would get no gradient in the first step.
        nn.init.normal_(self.up.weight, std=0.001)
        nn.init.zeros_(self.up.bias)

    def features(self, hidden_BTPW: Tensor) -> Tensor:
        """Returns P^s without its last linear map and the dropout, from norm(h) after `down`."""
        hidden_BTPW = self.conv_in_time(hidden_BTPW, self.grid).relu()
        features_BTPW = to_tokens(self.conv_in_space(to_volume(hidden_BTPW, self.grid)))
        return cast(Tensor, self.mix(features_BTPW).relu())

    def prompts(self, features_BTPW: Tensor) -> Tensor:
        """Returns p^s of all patches, [B, T, P, D], from the `features`."""
        return cast(Tensor, self.dropout(self.up(features_BTPW)))


class SpatialPrompting(nn.Module):
    """Selects the `n_s` most relevant patches of every frame and adds a prompt to each.

    Relevance is a weighted sum of the CLS attention A and the temporal dynamics M of a patch;
    `alpha` is the weight of the attention.
    """

    def __init__(self, width: int, grid: tuple[int, int], config: StopConfig) -> None:
        super().__init__()
        self.config = config
        self.dynamics = LightConv3d(width, config.spatial_width, grid)
        self.prompter = SpatialPrompter(width, config.spatial_width, grid, config.dropout)
        if config.choose in ("random", "fixed"):
            # The initial seed is the same for all blocks; a random number is another for each.
            of_all = config.choose == "fixed"
            draw = torch.initial_seed() if of_all else int(torch.randint(_PRIME, ()))
            self.register_buffer("draw", torch.tensor(float(draw % 2**24)))
            self.draw: Tensor

    def _scores(self, W_s: Tensor) -> Tensor:
        """Returns the weights [B, T, P] whose largest are chosen.

        In training, random ones follow the seed of the step, as dropout does. In evaluation they
        are a hash of frame and patch, so that they do not depend on the batch of a video.
        """
        choose = self.config.choose
        if choose in ("learned", "lowest"):
            return W_s if choose == "learned" else -W_s
        if choose == "random" and self.training:
            return torch.rand_like(W_s)
        frames, patches = W_s.shape[1] if choose == "random" else 1, W_s.shape[2]
        # Whole numbers, which are the same on any device and in an exported model.
        places = 1 + torch.arange(frames * patches, device=W_s.device)
        mixed = (48_271 * places + 7_919 * self.draw.long()) % _PRIME
        for _ in range(2):
            mixed = (mixed * mixed + 1) % _PRIME
        return mixed.to(W_s.dtype).view(frames, patches).expand_as(W_s)

    def forward(
        self, tokens: VideoTokens, attend: Attend, *, every_prompt: bool = False
    ) -> SpatialPrompts:
        """Prompts the patches of `tokens`; `attend` computes A from the variance of their channels.

        With `every_prompt`, the result also holds the prompts of the unselected patches.
        """
        config, prompter = self.config, self.prompter
        with torch.no_grad():
            variance, mean = torch.var_mean(tokens.packed, dim=-1, correction=0, keepdim=True)
            A_raw = attend(patches_of(variance, tokens.frames, tokens.joint))
        # Straight-through gradients are estimates. They train the filter N^s and do not flow back
        # through the tokens into the prompts of earlier blocks (docs/model.md).
        down, watching = prompter.down, self.dynamics.down
        weights = watching.weight, down.weight, down.bias
        tokens, seen, normed = map_tokens(tokens, variance, mean, *weights)
        M_raw = self.dynamics.energy(seen + watching.bias)
        A, M = A_raw, M_raw
        if config.normalize != "none":
            A, M = min_max(torch.stack([A_raw, M_raw])).unbind()
        W_s = torch.lerp(M, A, config.alpha)
        soft = config.selection == "ste" and config.choose in ("learned", "lowest")
        r, chosen = choose_patches(self._scores(W_s), config.n_s, straight_through=soft)
        z_BTPW = prompter.features(normed)
        drops = prompter.training and prompter.dropout.p > 0
        p_s = prompter.prompts(z_BTPW) if every_prompt or drops else None
        if p_s is not None and config.n_s:
            tokens = tokens.with_h(tokens.h + r[..., None] * p_s)
        elif config.n_s:
            tokens = add_prompts(tokens, r, chosen, z_BTPW, prompter.up.weight, prompter.up.bias)
        return SpatialPrompts(A_raw, M_raw, A, M, W_s, r, p_s, tokens)
