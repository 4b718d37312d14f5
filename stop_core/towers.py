"""The frozen CLIP vision tower, run block by block on open_clip's own weights.

Shapes: S sequences of N tokens, X extra prompt tokens a sequence, D channels, H heads.
"""

from typing import cast

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

# open_clip's modules are untyped, hence the casts in this file.


UNFIT_ADVICE = "choose a CLIP vision transformer such as ViT-B-32-quickgelu, ViT-B-16 or ViT-L-14"


class FrozenTower(nn.Module):
    """A frozen open_clip vision transformer whose blocks take extra prompt tokens.

    Prompt tokens are keys and values to the other tokens. They are themselves carried through a
    block only on request: where the next block replaces them, their output is not computed.

    Raises:
        ValueError: if the tower is not a CLIP vision transformer with a CLS token.
    """

    def __init__(self, name: str, visual: nn.Module) -> None:
        super().__init__()
        _refuse_unsupported(name, visual)
        self.visual = cast(VisionTransformer, visual).requires_grad_(False).eval()
        first = cast(ResidualAttentionBlock, self.visual.transformer.resblocks[0])
        self.heads = int(first.attn.num_heads)
        self.width = int(first.attn.embed_dim)
        self.depth = len(self.visual.transformer.resblocks)
        self.grid: tuple[int, int] = tuple(self.visual.grid_size)
        self.image_size = int(self.visual.image_size[0])
        mean, std = visual.image_mean, visual.image_std
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def patches(self) -> int:
        """P, the number of patches of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        """The frozen transformer blocks, in order."""
        return list(self.visual.transformer.resblocks)

    def train(self, mode: bool = True) -> "FrozenTower":
        """Stays in evaluation mode: a frozen tower has nothing to train."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """uint8 frames [F, H, W, 3] -> tokens [F, 1 + P, D], the CLS token first.

        Pixels are normalised here, on the tower's device, so that frames travel as bytes.
        """
        pixels = frames.to(self.mean.device).permute(0, 3, 1, 2).float().div(255)
        normalised = (pixels - self.mean) / self.std
        # A convolution whose stride is its kernel, written as open_clip has it.
        return cast(Tensor, self.visual._embeds(normalised))

    @torch.no_grad()
    def cls_attention(self, index: int, cls_BCD: Tensor, h_BTPD: Tensor) -> Tensor:
        """A_raw: attention of the CLS tokens to the patches of each frame, [B, T, P].

        Uses block `index`'s own query and key projections, softmax over the patches of one frame,
        averaged over the heads. `cls` is [B, 1, D] (one a video) or [B, T, D] (one a frame).
        """
        block = self.blocks[index]
        weight_q, weight_k, _ = block.attn.in_proj_weight.chunk(3)
        bias_q, bias_k, _ = block.attn.in_proj_bias.chunk(3)
        query = F.linear(block.ln_1(cls_BCD), weight_q, bias_q).unflatten(-1, (self.heads, -1))
        key = F.linear(block.ln_1(h_BTPD), weight_k, bias_k).unflatten(-1, (self.heads, -1))
        query = query.expand(-1, h_BTPD.shape[1], -1, -1)
        scores_BTHP = torch.einsum("bthe,btphe->bthp", query, key) * query.shape[-1] ** -0.5
        attention_BTP: Tensor = scores_BTHP.softmax(-1).mean(2)
        return attention_BTP

    def run_block(
        self,
        index: int,
        tokens_SND: Tensor,
        prompts_SXD: Tensor | None = None,
        presence_SX: Tensor | None = None,
        *,
        carry_prompts: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs block `index` on the tokens and the prompts beside them.

        `presence` is 1 for a prompt that is there and 0 for an empty slot, which is not attended
        to; its gradient, if any, is that of scaling the prompt's value. Empty means all are there.

        Returns the tokens, [S, N, D], and the prompts, [S, X, D] if `carry_prompts`, else None.
        """
        block = self.blocks[index]
        if prompts_SXD is None:
            return self._block(block, tokens_SND, tokens_SND.shape[1], None), None
        count = tokens_SND.shape[1]
        all_tokens = torch.cat([tokens_SND, prompts_SXD], dim=1)
        queries = all_tokens.shape[1] if carry_prompts else count
        presence_SL = None
        if presence_SX is not None:
            presence_SL = torch.cat([presence_SX.new_ones(len(tokens_SND), count), presence_SX], 1)
        out = self._block(block, all_tokens, queries, presence_SL)
        return out[:, :count], out[:, count:] if carry_prompts else None

    def _block(
        self, block: ResidualAttentionBlock, tokens: Tensor, queries: int, presence: Tensor | None
    ) -> Tensor:
        """One pre-norm transformer block; only the first `queries` tokens are computed."""
        attention = block.attn
        normed = block.ln_1(tokens)
        weight_q, weight_kv = attention.in_proj_weight.split([self.width, 2 * self.width])
        bias_q, bias_kv = attention.in_proj_bias.split([self.width, 2 * self.width])
        query = F.linear(normed[:, :queries], weight_q, bias_q)
        key, value = F.linear(normed, weight_kv, bias_kv).chunk(2, dim=-1)
        mask = None
        if presence is not None:
            if presence.requires_grad:
                value = value * presence[..., None]
            mask = (presence.detach() > 0.5)[:, None, None]
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        residual = tokens[:, :queries]
        out = residual + block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        return cast(Tensor, out + block.ls_2(block.mlp(block.ln_2(out))))

    def project(self, cls: Tensor) -> Tensor:
        """CLS tokens [..., D] after the last block -> the joint space [..., E], not normalised."""
        out = self.visual.ln_post(cls)
        return cast(Tensor, out if self.visual.proj is None else out @ self.visual.proj)


def _refuse_unsupported(name: str, visual: nn.Module) -> None:
    """Raises ValueError for a tower that STOP's equations do not fit."""
    advice = UNFIT_ADVICE
    if not isinstance(visual, VisionTransformer):
        kind = type(visual).__name__
        raise ValueError(f"{name} has a vision tower of kind {kind}, not open_clip's ViT; {advice}")
    height, width = visual.image_size
    if height != width:
        raise ValueError(f"{name} takes images of {height}x{width} pixels, not square; {advice}")
    if visual.attn_pool is not None or visual.pool_type != "tok":
        raise ValueError(f"{name} does not pool its frames with a CLS token; {advice}")
    if not all(type(b) is ResidualAttentionBlock for b in visual.transformer.resblocks):
        raise ValueError(f"{name} has transformer blocks of an unusual kind; {advice}")
