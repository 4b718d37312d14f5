"""The baselines ("floors") of a STOP step: the frozen tower only, on the same tokens.

There are two, each forward and backward to the tokens that enter it:

    open_clip   the tower as open_clip runs it
    lean        the same function in plain linear maps and scaled_dot_product_attention, with the
                layer norms' affine maps and QuickGELU's factor multiplied into the weights

Shapes: S sequences of N tokens, D channels.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core import StopModel
from stop_core.clip.tower import FrozenTower
from stop_core.settings.stop import Attention

Work = Callable[[], object]
SUBJECTS = ("open_clip", "lean", "STOP")


def training_steps(
    model: StopModel, frames: Tensor, attention: Attention, *, bf16: bool, compiled: bool = False
) -> dict[str, Work]:
    """Returns forward and backward: the floors to their input tokens, STOP to its weights."""
    tokens = model.first_tokens(frames, attention).packed
    texts = model.encode_text([f"class {number}" for number in range(len(frames))])
    labels = torch.arange(len(frames), device=tokens.device)

    def to_tokens(run: Callable[[Tensor], Tensor]) -> Work:
        def step() -> None:
            leaf = tokens.clone().requires_grad_()
            with _precision(tokens, bf16):
                loss = run(leaf)[:, 0].float().sum()
            loss.backward()  # type: ignore[no-untyped-call]

        return step

    run_stop = torch.compile(model) if compiled else model

    def stop() -> None:
        model.zero_grad(set_to_none=True)
        with _precision(tokens, bf16):
            loss = F.cross_entropy(run_stop(frames, texts), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return {
        "open_clip": to_tokens(model.tower.visual.transformer),
        "lean": to_tokens(_lean(model.tower, bf16, compiled)),
        "STOP": stop,
    }


def forward_passes(
    model: StopModel, frames: Tensor, attention: Attention, *, bf16: bool, compiled: bool = False
) -> dict[str, Work]:
    """Returns the forward without a graph: STOP starts from pixels, the floors from tokens."""
    tokens = model.first_tokens(frames, attention).packed

    def without_graph(run: Callable[[Tensor], Tensor], argument: Tensor) -> Work:
        def step() -> None:
            with torch.no_grad(), _precision(tokens, bf16):
                run(argument)

        return step

    encode = torch.compile(model.encode_video) if compiled else model.encode_video
    return {
        "open_clip": without_graph(model.tower.visual.transformer, tokens),
        "lean": without_graph(_lean(model.tower, bf16, compiled), tokens),
        "STOP": without_graph(encode, frames),
    }


class LeanTower:
    """The frozen blocks, written in as few plain operations as possible."""

    def __init__(self, tower: FrozenTower, bf16: bool) -> None:
        self.width, self.heads = tower.width, tower.heads
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.blocks = [_fold(block, self.dtype) for block in tower.blocks]

    def __call__(self, x: Tensor) -> Tensor:
        """Passes tokens [S, N, D] through all blocks; returns [S, N, D]."""
        for weights in self.blocks:
            x = self._block(x, weights)
        return x

    def _block(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        qkv, qkv_bias, out, out_bias, fc, fc_bias, proj, proj_bias = weights
        normed = F.layer_norm(x, (self.width,)).to(self.dtype)
        parts = F.linear(normed, qkv, qkv_bias).chunk(3, -1)
        query, key, value = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, out, out_bias)
        hidden = F.linear(F.layer_norm(x, (self.width,)).to(self.dtype), fc, fc_bias)
        return x + F.linear(F.silu(hidden), proj, proj_bias)


def _lean(tower: FrozenTower, bf16: bool, compiled: bool) -> Callable[[Tensor], Tensor]:
    lean = LeanTower(tower, bf16)
    return torch.compile(lean.__call__) if compiled else lean


@torch.no_grad()
def _fold(block: torch.nn.Module, dtype: torch.dtype) -> list[Tensor]:
    attention, mlp = block.attn, block.mlp
    first, second, quick = block.ln_1, block.ln_2, 1.702
    weights = [
        attention.in_proj_weight * first.weight,
        attention.in_proj_bias + attention.in_proj_weight @ first.bias,
        attention.out_proj.weight,
        attention.out_proj.bias,
        quick * mlp.c_fc.weight * second.weight,
        quick * (mlp.c_fc.bias + mlp.c_fc.weight @ second.bias),
        mlp.c_proj.weight / quick,
        mlp.c_proj.bias,
    ]
    return [weight.to(dtype) for weight in weights]


def _precision(like: Tensor, bf16: bool) -> torch.autocast | nullcontext[None]:
    return torch.autocast(like.device.type, torch.bfloat16) if bf16 else nullcontext()
