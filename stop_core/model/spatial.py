"""Intra-frame spatial prompting (STOP, CVPR 2025, section 3.2).

    A_i    = Attn(h_cls, h_i)                      CLS-to-patch attention inside frame i
    M_ij   = 1/D * sum_k N^s(h)_ijk^2              temporal dynamics of patch j of frame i
    W_i^s  = alpha * A_i + (1 - alpha) * M_i
    r_ij   = 1 for the N_s largest W_ij^s of frame i, else 0 (`choose` has controls for this rule)
    p_i^s  = P^s(h_{i-1}, h_i, h_{i+1})
    h_i^s  = h_i + r_i * p_i^s

Shapes: B videos, T frames, P patches per frame, D channels of the tower, W hidden channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stop_core.model.low_rank import add_prompts
from stop_core.model.selection import choose_patches, min_max
from stop_core.model.volume import LightConv3d, TemporalConv3d, keep_variance, to_tokens, to_volume
from stop_core.settings.stop import StopConfig

_PRIME = 2**31 - 1


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
    h_s: Tensor  # [B, T, P, D] h + r * p_s


class SpatialPrompter(nn.Module):
    """P^s: computes a prompt for every patch from its frame and the two neighbouring frames.

    Layer norm, linear map to W channels, then as in the paper: Conv3d, ReLU, Conv3d, Linear, ReLU,
    Linear, Dropout. The kernels have sizes 3 and 1 in time, so that a prompt sees exactly one frame
    to each side.
    """

    def __init__(self, width: int, hidden: int, grid: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.grid = grid
        # The prompts of a block are added to the tokens that the next block's prompts are computed
        # from. Without a layer norm they would grow from block to block without bound.
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
        # Nearly zero, so that training starts at the frozen tower. Larger prompts appear in the
        # frame differences wherever a patch is selected in one frame and not in the next, and
        # delayed or prevented learning (docs/model.md). Not exactly zero, or the layers before it
        # would get no gradient in the first step.
        nn.init.normal_(self.up.weight, std=0.001)
        nn.init.zeros_(self.up.bias)

    def features(self, h_BTPD: Tensor) -> Tensor:
        """Returns P^s without its last linear map and the dropout, [B, T, P, W]."""
        # The normalised tokens are recomputed in the backward pass: storing them would take an
        # eighth of the memory of a step. A compiler decides that itself, and may fail if told to.
        hidden: Tensor
        if torch.compiler.is_compiling():
            hidden = self._normed_down(h_BTPD)
        else:
            hidden = checkpoint(
                self._normed_down, h_BTPD, use_reentrant=False, preserve_rng_state=False
            )
        volume = to_volume(hidden, self.grid)
        volume = self.conv_in_space(self.conv_in_time(volume).relu())
        features_BTPW: Tensor = self.mix(to_tokens(volume)).relu()
        return features_BTPW

    def _normed_down(self, h_BTPD: Tensor) -> Tensor:
        hidden: Tensor = self.down(self.norm(h_BTPD))
        return hidden

    def prompts(self, features_BTPW: Tensor) -> Tensor:
        """Returns p^s of all patches, [B, T, P, D], from the `features`."""
        prompts_BTPD: Tensor = self.dropout(self.up(features_BTPW))
        return prompts_BTPD


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
        self, h_BTPD: Tensor, attention_BTP: Tensor, *, every_prompt: bool = False
    ) -> SpatialPrompts:
        """Prompts the patch tokens `h`; `attention` is A, computed by the frozen block.

        With `every_prompt`, the result also holds the prompts of the unselected patches.
        """
        config, prompter = self.config, self.prompter
        # Straight-through gradients are estimates. They train the filter N^s and do not flow back
        # through the tokens into the prompts of earlier blocks (docs/model.md).
        M_raw = self.dynamics.energy(self.dynamics.down(h_BTPD.detach()))
        rescale = config.normalize != "none"
        A = min_max(attention_BTP) if rescale else attention_BTP
        M = min_max(M_raw) if rescale else M_raw
        W_s = config.alpha * A + (1 - config.alpha) * M
        soft = config.selection == "ste" and config.choose in ("learned", "lowest")
        r = choose_patches(self._scores(W_s), config.n_s, straight_through=soft)
        features_BTPW = prompter.features(h_BTPD)
        drops = prompter.training and prompter.dropout.p > 0
        p_s = prompter.prompts(features_BTPW) if every_prompt or drops else None
        if config.n_s == 0:
            h_s = h_BTPD
        elif p_s is not None:
            h_s = h_BTPD + r[..., None] * p_s
        else:
            up = prompter.up
            chosen_BTN = r.detach().topk(config.n_s, sorted=False).indices
            h_s = add_prompts(h_BTPD, r, chosen_BTN, features_BTPW, up.weight, up.bias)
        return SpatialPrompts(attention_BTP, M_raw, A, M, W_s, r, p_s, h_s)
