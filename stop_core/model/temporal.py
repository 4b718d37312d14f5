"""Inter-frame temporal prompting (STOP, CVPR 2025, section 3.3).

    d_i    = h_i^s - h_{i-1}^s                     i = 2..T: T-1 gaps
    W_i^t  = 1/(P*D) * sum_j (1 + beta*r_ij) * sum_k N^t(d)_ijk^2
    N_i^t  = min(ceil(eta * W_i^t), K)             number of prompts put into gap i
    p_i^t  = first N_i^t tokens of P^t(d_i, W_i^t)

Shapes: B videos, T frames, P patches per frame, K maximum prompts per gap, D channels of the tower,
W hidden channels.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from stop_core.model.low_rank import map_differences
from stop_core.model.running_scale import RunningScale
from stop_core.model.selection import min_max, prompt_presence, weighted_mean
from stop_core.model.sequences import VideoTokens
from stop_core.model.volume import LightConv3d, TemporalConv3d, keep_variance, to_tokens, to_volume
from stop_core.settings.stop import StopConfig


@dataclass(frozen=True)
class TemporalPrompts:
    """Results of temporal prompting, under the paper's names; a clip of one frame has 0 gaps."""

    tokens: VideoTokens  # T frames, from whose patches the prompts are computed
    exact: Tensor  # [B, T-1] W_t_raw in float64
    W_t: Tensor  # [B, T-1] as multiplied by eta
    p_t: Tensor  # [B, T-1, K, D] prompts of all slots, present or not
    presence: Tensor  # [B, T-1, K] 1 for the first N_t slots, else 0; carries the soft gradient

    @property
    def d(self) -> Tensor:
        """The frame differences, [B, T-1, P, D], detached."""
        h = self.tokens.h.detach()
        return h[:, 1:] - h[:, :-1]

    @property
    def W_t_raw(self) -> Tensor:
        """The weighted mean square of the filtered differences, [B, T-1]."""
        return self.exact.to(self.W_t.dtype)

    @property
    def N_t(self) -> Tensor:
        """The number of prompts in each gap, [B, T-1]."""
        return self.presence.detach().sum(-1)

    @property
    def p_t_mask(self) -> Tensor:
        """True for the first N_t slots of a gap, [B, T-1, K]."""
        return self.presence.detach() > 0.5


class TemporalPrompter(nn.Module):
    """P^t: computes K prompt tokens for a gap from the frame difference across it.

    As in the paper: attention over the tokens of the gap, Conv3d, ReLU, Conv3d, a linear map that
    also sees W^t, and Dropout. Before that map, K learned queries pool the P patches into K tokens.
    """

    def __init__(self, width: int, grid: tuple[int, int], config: StopConfig) -> None:
        super().__init__()
        hidden = config.temporal_width
        self.grid = grid
        self.down = nn.Linear(width, hidden)
        # No bias: a softmax over keys does not depend on the bias of the keys.
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=False)
        self.conv_in_time = TemporalConv3d(hidden)
        self.conv_in_space = nn.Conv3d(hidden, hidden, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        self.gather = nn.Linear(hidden, config.max_prompts, bias=False)
        self.up = nn.Linear(hidden + 1, width, bias=False)
        self.slot_bias = nn.Parameter(torch.empty(config.max_prompts, width))
        self.dropout = nn.Dropout(config.dropout)
        # The attention starts close to the identity: at full strength the mean over the patches
        # drowns the few that move, and learning starts late (docs/model.md).
        with torch.no_grad():
            self.query_key_value.weight[2 * hidden :] *= 0.1
        for layer in (self.down, self.conv_in_space, self.gather, self.up):
            keep_variance(layer)
        keep_variance(self.conv_in_time.conv, before_relu=True)
        nn.init.normal_(self.slot_bias, std=0.02)

    def forward(self, hidden_BTPW: Tensor, change_BT: Tensor) -> Tensor:
        """Returns p^t, [B, T-1, K, D], from d after the map `down`, and the weights W^t."""
        # One attention head over the patches of a gap, with a residual connection.
        query, key, value = self.query_key_value(hidden_BTPW).chunk(3, dim=-1)
        attended_BTPW = nn.functional.scaled_dot_product_attention(query, key, value)
        seen_BTPW = self.conv_in_time(hidden_BTPW + attended_BTPW, self.grid).relu()
        features_BTPW = to_tokens(self.conv_in_space(to_volume(seen_BTPW, self.grid)))
        share_BTPK = self.gather(features_BTPW).softmax(dim=2)
        gathered_BTKW = share_BTPK.transpose(2, 3) @ features_BTPW
        change_BTK1 = change_BT[..., None, None].expand(*gathered_BTKW.shape[:3], 1)
        prompts_BTKD = self.up(torch.cat([gathered_BTKW, change_BTK1], dim=-1)) + self.slot_bias
        return cast(Tensor, self.dropout(prompts_BTKD))


class TemporalPrompting(nn.Module):
    """Measures the change in every gap between frames and computes up to K prompts for it."""

    def __init__(self, width: int, grid: tuple[int, int], config: StopConfig) -> None:
        super().__init__()
        self.config = config
        self.change = LightConv3d(width, config.temporal_width, grid)
        self.prompter = TemporalPrompter(width, grid, config)
        self.scale = RunningScale() if config.normalize == "running" else None

    def forward(self, tokens: VideoTokens, r_BTP: Tensor | None) -> TemporalPrompts:
        """Computes the prompts of the gaps; patches selected by `r`, if any, weigh 1 + beta."""
        config, h_BTPD = self.config, tokens.h
        batch, frames, patches, width = h_BTPD.shape
        if frames == 1:
            none_B0 = h_BTPD.new_zeros(batch, 0)
            p_t = h_BTPD.new_zeros(batch, 0, config.max_prompts, width)
            return TemporalPrompts(tokens, none_B0, none_B0, p_t, p_t[..., 0])
        down, watching = self.prompter.down, self.change.down
        # As in the spatial selection, the surrogate gradient of N^t does not reach the tokens.
        watched, hidden = map_differences(tokens, watching.weight, down.weight)
        energy_BTP = self.change.energy(watched + watching.bias)
        # In float64: where the gaps of a video are nearly alike, min-max magnifies the last bit.
        exact = weighted_mean(energy_BTP, r_BTP, config.beta)
        rescaled = exact
        if config.normalize == "per_frame":
            rescaled = min_max(exact, floor=True)
        elif self.scale is not None:
            still_11PW = watching.bias.expand(1, 1, patches, -1)
            still_BTP = self.change.energy(still_11PW).expand_as(energy_BTP)
            rescaled = self.scale(exact, weighted_mean(still_BTP, r_BTP, config.beta))
        W_t = rescaled.to(energy_BTP.dtype)
        soft = config.selection == "ste"
        presence = prompt_presence(W_t, config.eta, config.max_prompts, soft=soft)
        # With selection "hard", N^t gets no gradient at all.
        p_t = self.prompter(hidden + down.bias, W_t if soft else W_t.detach())
        return TemporalPrompts(tokens, exact, W_t, p_t, presence)
