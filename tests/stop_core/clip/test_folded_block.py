"""A folded block computes the same function as the block, for any norms, scales and biases."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from stop_core.clip.folded_block import FoldedBlock

WIDTH, HEADS = 12, 3
KINDS = list(itertools.product((QuickGELU, nn.GELU), (None, 0.3)))


@pytest.fixture(params=KINDS, ids=str)
def block(request: pytest.FixtureRequest) -> ResidualAttentionBlock:
    """Returns a block whose norms, scales and biases are not at their initial values."""
    activation, scale = request.param
    made = ResidualAttentionBlock(
        WIDTH, HEADS, ls_init_value=scale, act_layer=activation, norm_layer=LayerNorm
    ).double()
    made.ln_1.eps, made.ln_2.eps = 1e-3, 1e-1
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.requires_grad_(False).eval()


def run(folded: FoldedBlock, tokens: Tensor) -> Tensor:
    """Runs the folded block by the equations of a transformer."""
    normed = folded.norm_1(tokens)
    query = folded.query(normed)
    key, value = folded.key_value(normed).chunk(2, -1)
    heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    out = tokens + folded.out(mixed)
    return out + folded.proj(folded.activation(folded.fc(folded.norm_2(out))))


def test_output_and_gradient_are_those_of_the_block(block: ResidualAttentionBlock) -> None:
    folded = FoldedBlock(block, torch.float64, None)
    tokens = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    ours, plain = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    out, wanted = run(folded, ours), block(plain)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).double()
    out.backward(direction)
    wanted.backward(direction)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-12)


def test_the_centred_keys_are_the_scaled_keys_of_centred_tokens(
    block: ResidualAttentionBlock,
) -> None:
    folded = FoldedBlock(block, torch.float64, None)
    x = 3 + torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    key = folded.key_value(x - x.mean(-1, keepdim=True))[:, :WIDTH]
    bias = folded.key_value(torch.zeros(1, WIDTH).double())[:, :WIDTH]
    heads, width = folded.centred_key.shape[:2]
    wanted = ((key - bias) * width**-0.5).unflatten(-1, (heads, width))
    found = torch.einsum("nd,hed->nhe", x, folded.centred_key)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_weights_are_folded_in_float64_and_held_in_the_type_asked_for(
    block: ResidualAttentionBlock,
) -> None:
    block.float()
    exact = FoldedBlock(copy.deepcopy(block).double(), torch.float64, None)
    for dtype in (torch.float32, torch.bfloat16):
        folded = FoldedBlock(block, dtype, None)
        for name in ("qkv", "out", "fc", "proj"):
            ours, best = getattr(folded, name), getattr(exact, name)
            assert torch.equal(ours.weight, best.weight.to(dtype)), name
            assert torch.equal(ours.bias, best.bias.to(dtype)), name
            assert ours.weight.is_contiguous()
            assert not ours.weight.requires_grad


def test_a_folded_block_passes_no_gradient_to_the_weights(block: ResidualAttentionBlock) -> None:
    folded = FoldedBlock(block.requires_grad_(True), torch.float32, None)
    for linear in (folded.qkv, folded.out, folded.fc, folded.proj):
        assert not linear.weight.requires_grad
        assert not linear.bias.requires_grad
