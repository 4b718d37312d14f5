"""Intra-frame spatial prompting (STOP, CVPR 2025, section 3.2).

Shapes: B videos, T frames, P patches of a frame, D channels of the tower, W hidden channels.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stop_core.model.low_rank import add_prompts
from stop_core.model.selection import choose_patches, min_max
from stop_core.model.volume import LightConv3d, TemporalConv3d, keep_variance, to_tokens, to_volume
from stop_core.settings.stop import StopConfig


@dataclass(frozen=True)
class SpatialPrompts:
    """What spatial prompting computed, under the paper's names."""

    A_raw: Tensor  # [B, T, P] attention of the CLS token to the patches of a frame; sums to 1
    M_raw: Tensor  # [B, T, P] temporal dynamics
    A: Tensor  # [B, T, P] as mixed into W_s
    M: Tensor  # [B, T, P] as mixed into W_s
    W_s: Tensor  # [B, T, P] alpha * A + (1 - alpha) * M
    r: Tensor  # [B, T, P] 1 for the n_s patches of a frame that are chosen, else 0
    p_s: Tensor | None  # [B, T, P, D] prompts of all patches, chosen or not; only when asked for
    h_s: Tensor  # [B, T, P, D] h + r * p_s


class SpatialPrompter(nn.Module):
    """P^s: makes a prompt for every patch from the frame and its two neighbours.

    Conv3d, ReLU, Conv3d, Linear, ReLU, Linear, Dropout, behind a layer norm and a linear map to
    few channels. The kernels reach 3 and then 1 in time, so the prompt of a frame sees one frame
    to each side.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.grid = grid
        # A prompt is added to the tokens that the next block's prompt is made from. Unless the
        # input is brought to one scale, prompts grow from block to block without bound.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
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
        # Nearly zero, so that training starts at the frozen tower. A larger start shows up in the
        # frame differences wherever a patch is chosen in one frame and not in the next, and
        # learning took off late or not at all (docs/model.md). Not exactly zero, or the layers
        # before it would get no gradient in the first step.
        nn.init.normal_(self.up.weight, std=0.001)
        nn.init.zeros_(self.up.bias)

    def features(self, h_BTPD: Tensor) -> Tensor:
        """All of P^s but its last linear map and the dropout, [B, T, P, W]."""
        # The normalised tokens are made again for the gradient: they would be an eighth of the
        # memory of a step.
        hidden: Tensor = checkpoint(
            self._narrow, h_BTPD, use_reentrant=False, preserve_rng_state=False
        )
        volume = to_volume(hidden, self.grid)
        volume = self.conv_in_space(self.conv_in_time(volume).relu())
        features_BTPW: Tensor = self.mix(to_tokens(volume)).relu()
        return features_BTPW

    def _narrow(self, h_BTPD: Tensor) -> Tensor:
        hidden_BTPW: Tensor = self.down(self.norm(h_BTPD))
        return hidden_BTPW

    def prompts(self, features_BTPW: Tensor) -> Tensor:
        """p^s of all patches, [B, T, P, D], from the `features`."""
        prompts_BTPD: Tensor = self.dropout(self.up(features_BTPW))
        return prompts_BTPD


class SpatialPrompting(nn.Module):
    """Chooses the patches that matter in each frame and adds a prompt to them.

    A patch matters by where the CLS token looks (A) and by how much the scene changes there (M);
    `alpha` weighs the one against the other.
    """

    def __init__(self, width: int, grid: tuple[int, int], config: StopConfig) -> None:
        super().__init__()
        self.config = config
        self.dynamics = LightConv3d(width, config.spatial_width, grid)
        self.prompter = SpatialPrompter(width, config.spatial_width, grid, config.dropout)

    def forward(
        self, h_BTPD: Tensor, attention_BTP: Tensor, *, every_prompt: bool = False
    ) -> SpatialPrompts:
        """Prompts the patch tokens `h`; `attention` is the frozen block's own A.

        With `every_prompt`, the result also holds the prompts of the patches not chosen.
        """
        config = self.config
        # Straight-through gradients are estimates. They train the filter that they are for, and do
        # not reach back through the tokens into the prompts of earlier blocks (docs/model.md).
        M_raw = self.dynamics.energy(self.dynamics.down(h_BTPD.detach()))
        rescale = config.normalize == "per_frame"
        A = min_max(attention_BTP) if rescale else attention_BTP
        M = min_max(M_raw) if rescale else M_raw
        W_s = config.alpha * A + (1 - config.alpha) * M
        r = choose_patches(W_s, config.n_s, straight_through=config.selection == "ste")
        h_s, p_s = self._prompt(h_BTPD, r, every_prompt)
        return SpatialPrompts(attention_BTP, M_raw, A, M, W_s, r, p_s, h_s)

    def _prompt(
        self, h_BTPD: Tensor, r: Tensor, every_prompt: bool
    ) -> tuple[Tensor, Tensor | None]:
        """h^s, and p^s where it was computed."""
        prompter = self.prompter
        features_BTPW = prompter.features(h_BTPD)
        dropping = prompter.training and prompter.dropout.p > 0
        p_s = prompter.prompts(features_BTPW) if every_prompt or dropping else None
        if self.config.n_s == 0:
            return h_BTPD, p_s
        if p_s is not None:
            return h_BTPD + r[..., None] * p_s, p_s
        up = prompter.up
        chosen_BTN = r.detach().topk(self.config.n_s, sorted=False).indices
        return add_prompts(h_BTPD, r, chosen_BTN, features_BTPW, up.weight, up.bias), None
