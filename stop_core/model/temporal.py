"""Inter-frame temporal prompting (STOP, CVPR 2025, section 3.3).

Shapes: B videos, T frames and T - 1 gaps between them, P patches of a frame, K most prompts in
one gap, D channels of the tower, W hidden channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stop_core.model.low_rank import map_differences
from stop_core.model.selection import count_prompts, min_max, prompt_presence
from stop_core.model.volume import LightConv3d, TemporalConv3d, keep_variance, to_tokens, to_volume
from stop_core.settings.stop import StopConfig


@dataclass(frozen=True)
class TemporalPrompts:
    """What temporal prompting computed, under the paper's names; a clip of one frame has 0 gaps."""

    d: Tensor  # [B, T-1, P, D] change from one frame to the next, detached
    W_t_raw: Tensor  # [B, T-1] weighted mean square of the filtered change
    W_t: Tensor  # [B, T-1] as multiplied by eta
    N_t: Tensor  # [B, T-1] prompts put into the gap: ceil(eta * W_t), at most K
    p_t: Tensor  # [B, T-1, K, D] prompts of all slots, present or not
    presence: Tensor  # [B, T-1, K] 1 for the first N_t slots, else 0; carries the soft gradient

    @property
    def p_t_mask(self) -> Tensor:
        """True for the first N_t slots of a gap, [B, T-1, K]."""
        return self.presence.detach() > 0.5


class TemporalPrompter(nn.Module):
    """P^t: makes K prompt tokens for a gap from the change across it.

    Attention over the tokens of the gap, Conv3d, ReLU, Conv3d, then one linear map that also sees
    W^t, and Dropout. K learned queries gather the P patches into K tokens before that map.
    """

    def __init__(self, width: int, grid: tuple[int, int], config: StopConfig) -> None:
        super().__init__()
        hidden = config.temporal_width
        self.grid = grid
        self.down = nn.Linear(width, hidden)
        # No biases: a softmax over keys cannot feel theirs, so it would never learn.
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=False)
        self.conv_in_time = TemporalConv3d(hidden)
        self.conv_in_space = nn.Conv3d(hidden, hidden, kernel_size=(1, 3, 3), padding=(0, 1, 1))
        self.gather = nn.Linear(hidden, config.max_prompts, bias=False)
        self.up = nn.Linear(hidden + 1, width, bias=False)
        self.slot_bias = nn.Parameter(torch.empty(config.max_prompts, width))
        self.dropout = nn.Dropout(config.dropout)
        # Starts as little more than the tokens themselves: at full strength the mean over the
        # patches drowns the few that move, and learning takes off late (docs/model.md).
        with torch.no_grad():
            self.query_key_value.weight[2 * hidden :] *= 0.1
        for layer in (self.down, self.conv_in_space, self.gather, self.up):
            keep_variance(layer)
        keep_variance(self.conv_in_time.conv, before_relu=True)
        nn.init.normal_(self.slot_bias, std=0.02)

    def forward(self, hidden_BTPW: Tensor, change_BT: Tensor) -> Tensor:
        """Returns p^t, [B, T-1, K, D], from what `down` made of d, and the weights W^t."""
        tokens_BTPW = self._attend(hidden_BTPW)
        volume = self.conv_in_time(to_volume(tokens_BTPW, self.grid)).relu()
        features_BTPW = to_tokens(self.conv_in_space(volume))
        share_BTPK = self.gather(features_BTPW).softmax(dim=2)
        gathered_BTKW = share_BTPK.transpose(2, 3) @ features_BTPW
        seen_BTK1 = change_BT[..., None, None].expand(*gathered_BTKW.shape[:3], 1)
        prompts_BTKD = self.up(torch.cat([gathered_BTKW, seen_BTK1], dim=-1)) + self.slot_bias
        out: Tensor = self.dropout(prompts_BTKD)
        return out

    def _attend(self, tokens_BTPW: Tensor) -> Tensor:
        """Lets the patches of one gap see each other; one head, with a residual path."""
        query, key, value = self.query_key_value(tokens_BTPW).chunk(3, dim=-1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return tokens_BTPW + attended


class TemporalPrompting(nn.Module):
    """Measures the change in every gap and makes as many prompts as it deserves."""

    def __init__(self, width: int, grid: tuple[int, int], config: StopConfig) -> None:
        super().__init__()
        self.config = config
        self.change = LightConv3d(width, config.temporal_width, grid)
        self.prompter = TemporalPrompter(width, grid, config)

    def forward(self, h_BTPD: Tensor, r_BTP: Tensor) -> TemporalPrompts:
        """Prompts the gaps of the patch tokens `h`, whose chosen patches `r` weigh more."""
        config = self.config
        if h_BTPD.shape[1] == 1:
            return self._no_gaps(h_BTPD)
        down, watching = self.prompter.down, self.change.down
        # N^t passes no gradient on to the tokens, as for the spatial choice.
        d, hidden, watched = map_differences(h_BTPD, down.weight, watching.weight)
        energy_BTP = self.change.energy(watched + watching.bias)
        # In float64: where the gaps of a video are nearly alike, min-max magnifies the last bit.
        exact = ((1 + config.beta * r_BTP[:, 1:]) * energy_BTP).mean(-1, dtype=torch.float64)
        W_t_raw = exact.to(energy_BTP.dtype)
        rescale = config.normalize == "per_frame"
        W_t = min_max(exact, floor=True).to(energy_BTP.dtype) if rescale else W_t_raw
        N_t = count_prompts(W_t, config.eta, config.max_prompts)
        soft = config.selection == "ste"
        # "hard" is as published: nothing at all teaches the filter of the change.
        seen = W_t if soft else W_t.detach()
        presence = prompt_presence(W_t, config.eta, config.max_prompts, soft=soft)
        p_t = self.prompter(hidden + down.bias, seen)
        return TemporalPrompts(d, W_t_raw, W_t, N_t, p_t, presence)

    def _no_gaps(self, h_BTPD: Tensor) -> TemporalPrompts:
        """The empty result for clips of a single frame."""
        batch, _, patches, width = h_BTPD.shape
        slots = self.config.max_prompts
        gaps_B0 = h_BTPD.new_zeros(batch, 0)
        return TemporalPrompts(
            d=h_BTPD.new_zeros(batch, 0, patches, width),
            W_t_raw=gaps_B0,
            W_t=gaps_B0,
            N_t=gaps_B0,
            p_t=h_BTPD.new_zeros(batch, 0, slots, width),
            presence=h_BTPD.new_zeros(batch, 0, slots),
        )
