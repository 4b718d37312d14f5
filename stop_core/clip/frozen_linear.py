"""A linear map with constant weights, in the fastest form that this machine has.

On a CPU, PyTorch computes float32 products with MKL, which reaches less than half of the speed on
processors of other vendors than Intel. oneDNN, which PyTorch includes, does not have this problem
and can pack constant weights once. Its operator is private to PyTorch, so it is tested before use;
the fallback is `F.linear`.
"""

from functools import cache, cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_PACKED_TYPES = (torch.float32, torch.bfloat16)
# oneDNN chooses the packed layout by the number of rows, and then accepts any number.
_TYPICAL_ROWS = 1024


class FrozenLinear:
    """x W^T + b with gradients only for x. `weight` [out, in] and `bias` [out] must not change."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def part(self, start: int, stop: int) -> "FrozenLinear":
        """Returns the map to the outputs `start` to `stop` - 1."""
        return FrozenLinear(self.weight[start:stop], self.bias[start:stop])

    def __getstate__(self) -> dict[str, Tensor]:
        # Packed weights can be neither copied nor pickled; a copy packs them again.
        return {"weight": self.weight, "bias": self.bias}

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if self._is_plain(x):
            return F.linear(x, self.weight, self.bias)
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, _Packed.apply(x, self))
        return _multiply(x, self._packed, self.bias)

    def _is_plain(self, x: Tensor) -> bool:
        # A compiler optimises constant weights itself.
        return x.device.type != "cpu" or torch.compiler.is_compiling() or not _can_pack(x.dtype)

    @cached_property
    def _packed(self) -> Tensor:
        return _pack(self.weight)

    @cached_property
    def _packed_backward(self) -> Tensor:
        return _pack(self.weight.T)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: FrozenLinear) -> Tensor:
        ctx.linear = linear
        return _multiply(x, linear._packed, linear.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _multiply(gradient.contiguous(), ctx.linear._packed_backward, None), None


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""))


@torch.no_grad()
def _pack(weight: Tensor) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS))


@cache
@torch.no_grad()
def _can_pack(dtype: torch.dtype) -> bool:
    """Returns whether this PyTorch has the operator and it agrees with `F.linear`."""
    if dtype not in _PACKED_TYPES or not torch.backends.mkldnn.is_available():
        return False
    # Integers, so that both results are exact.
    x = torch.arange(12).view(1, 3, 4).to(dtype)
    weight, bias = torch.arange(8).view(2, 4).to(dtype), torch.ones(2, dtype=dtype)
    try:
        out = _multiply(x, _pack(weight), bias)
    except (AttributeError, RuntimeError):  # no such operator, or not for this type or processor
        return False
    return torch.equal(out, F.linear(x, weight, bias))
