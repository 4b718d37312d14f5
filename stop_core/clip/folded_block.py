"""A frozen transformer block with its constants folded into the weights: the same function, faster.

The affine maps of the layer norms, the layer scales and the factor of QuickGELU are multiplied into
the neighbouring matrices (in float64), and the matrices are stored in the compute type. The output
agrees with open_clip's block up to float32 rounding.
"""

from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from stop_core.clip.frozen_linear import FrozenLinear

# open_clip's modules are untyped, hence the casts in this file.

HIDING_WIDTH = 8
"""Channels per head that hide keys; the flash kernels take multiples of 8."""
_QUICK = 1.702  # QuickGELU(x) = x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702


class FoldedBlock:
    """The linear maps of one block, for inputs that are normalised without affine.

    The constants of `block` are folded into its matrices, in `dtype`; `made_from` identifies the
    weights that were folded. With `hiding`, each head has `HIDING_WIDTH` more channels: the first
    is 1 in every query and 0 in every key, so that a large negative number there hides a key.
    """

    @torch.no_grad()
    def __init__(
        self,
        block: ResidualAttentionBlock,
        dtype: torch.dtype,
        made_from: object,
        *,
        hiding: bool = False,
    ) -> None:
        attention, mlp = block.attn, block.mlp
        self.width, self.heads = int(attention.embed_dim), int(attention.num_heads)
        self.eps_1, self.eps_2 = float(block.ln_1.eps), float(block.ln_2.eps)
        self.activation = cast(Callable[[Tensor], Tensor], mlp.gelu)
        self.made_from = made_from
        fc = _after_norm(block.ln_2, mlp.c_fc.weight, mlp.c_fc.bias)
        proj = _before_scale(block.ls_2, mlp.c_proj.weight, mlp.c_proj.bias)
        if isinstance(mlp.gelu, QuickGELU):
            self.activation = F.silu
            fc = (_QUICK * fc[0], _QUICK * fc[1])
            proj = (proj[0] / _QUICK, proj[1])
        out = _before_scale(block.ls_1, attention.out_proj.weight, attention.out_proj.bias)
        qkv = _after_norm(block.ln_1, attention.in_proj_weight, attention.in_proj_bias)
        self.inner = self.width
        if hiding:
            self.inner += self.heads * HIDING_WIDTH
            weight = torch.cat([_widen(part, self.heads) for part in qkv[0].chunk(3)])
            query, key, value = (_widen(part, self.heads) for part in qkv[1].chunk(3))
            query.view(self.heads, -1)[:, -HIDING_WIDTH] = 1
            qkv = weight, torch.cat([query, key, value])
            out = _widen(out[0].T, self.heads).T, out[1]
        self.qkv, self.out, self.fc, self.proj = (
            FrozenLinear(*(part.to(dtype).contiguous() for part in weight_and_bias))
            for weight_and_bias in (qkv, out, fc, proj)
        )

    def norm_1(self, tokens: Tensor) -> Tensor:
        """The layer norm before the attention, without its affine map."""
        return F.layer_norm(tokens, (self.width,), eps=self.eps_1)

    def norm_2(self, tokens: Tensor) -> Tensor:
        """The layer norm before the MLP, without its affine map."""
        return F.layer_norm(tokens, (self.width,), eps=self.eps_2)

    @cached_property
    def query(self) -> FrozenLinear:
        """The part of `qkv` that computes the queries."""
        return self.qkv.part(0, self.inner)

    @cached_property
    def key_value(self) -> FrozenLinear:
        """The part of `qkv` that computes the keys and values."""
        return self.qkv.part(self.inner, 3 * self.inner)

    @cached_property
    def centred_key(self) -> Tensor:
        """The matrix of the scaled keys by head, [H, E, D], for tokens that are not centred."""
        # The layer norm subtracts the mean of a token; here it is subtracted from the rows.
        keys_HED = self.qkv.weight[self.inner : 2 * self.inner].unflatten(0, (self.heads, -1))
        scaled_HED = keys_HED.double() * keys_HED.shape[1] ** -0.5
        centred_HED: Tensor = scaled_HED - scaled_HED.mean(-1, keepdim=True)
        return centred_HED.to(keys_HED.dtype)


def _after_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the layer norm's affine map followed by the linear map."""
    matrix = weight.double()
    return matrix * norm.weight.double(), bias.double() + matrix @ norm.bias.double()


def _before_scale(scale: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the linear map followed by the layer scale, if there is one."""
    factor = getattr(scale, "gamma", None)
    if factor is None:
        return weight.double(), bias.double()
    return factor.double()[:, None] * weight.double(), factor.double() * bias.double()


def _widen(rows: Tensor, heads: int) -> Tensor:
    """Appends `HIDING_WIDTH` rows of zeros to those of each head."""
    by_head = rows.unflatten(0, (heads, -1))
    zeros = by_head.new_zeros(heads, HIDING_WIDTH, *rows.shape[1:])
    return torch.cat([by_head, zeros], dim=1).flatten(0, 1)
