"""A frozen linear map equals `F.linear`, packed or not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stop_core.clip import frozen_linear
from stop_core.clip.frozen_linear import FrozenLinear


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["as it runs here", "without the private operator"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "as it runs here":
        monkeypatch.setattr(frozen_linear, "_can_pack", lambda dtype: False)


@given(
    rows=st.integers(1, 70), inner=st.integers(1, 40), outer=st.integers(1, 40), seed=st.integers(0)
)
def test_output_and_gradient_are_those_of_linear(
    rows: int, inner: int, outer: int, seed: int
) -> None:
    x, weight, bias = noise(seed % 99, 2, rows, inner), noise(1, outer, inner), noise(2, outer)
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, wanted = FrozenLinear(weight, bias)(ours), F.linear(plain, weight, bias)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    direction = noise(3, *out.shape)
    out.backward(direction)
    wanted.backward(direction)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_path")
def test_a_part_is_the_slice_of_the_whole() -> None:
    linear = FrozenLinear(noise(0, 12, 8), noise(1, 12))
    x = noise(2, 3, 8)
    torch.testing.assert_close(linear.part(4, 9)(x), linear(x)[:, 4:9], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_path")
def test_non_contiguous_inputs_and_gradients_are_accepted() -> None:
    linear = FrozenLinear(noise(0, 6, 8), noise(1, 6))
    x = noise(2, 8, 5).T.requires_grad_()
    out = linear(x)
    torch.testing.assert_close(out, F.linear(x, linear.weight, linear.bias), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(out, x, noise(3, 6, 5).T)
    torch.testing.assert_close(gradient, noise(3, 6, 5).T @ linear.weight, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_path")
def test_types_that_cannot_be_packed_are_multiplied_by_the_fallback() -> None:
    linear = FrozenLinear(noise(0, 6, 8).double(), noise(1, 6).double())
    x = noise(2, 3, 8).double()
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


def test_an_operator_with_wrong_results_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frozen_linear, "_multiply", lambda x, packed, bias: x.new_zeros(1, 3, 2))
    frozen_linear._can_pack.cache_clear()
    try:
        assert not frozen_linear._can_pack(torch.float32)
    finally:
        frozen_linear._can_pack.cache_clear()


def test_a_copy_of_a_map_that_was_used_computes_the_same() -> None:
    linear = FrozenLinear(noise(0, 6, 8), noise(1, 6))
    x = noise(2, 3, 8)
    out = linear(x)
    assert torch.equal(copy.deepcopy(linear)(x), out)


def test_a_missing_operator_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Tensor) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(frozen_linear, "_multiply", missing)
    frozen_linear._can_pack.cache_clear()
    try:
        assert not frozen_linear._can_pack(torch.float32)
    finally:
        frozen_linear._can_pack.cache_clear()


def test_an_operator_with_right_results_is_used_where_no_compiler_or_device_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frozen_linear, "_pack", lambda weight: weight)
    monkeypatch.setattr(frozen_linear, "_multiply", F.linear)
    frozen_linear._can_pack.cache_clear()
    try:
        for dtype in (torch.float32, torch.bfloat16):
            assert frozen_linear._can_pack(dtype) == torch.backends.mkldnn.is_available()
        assert not frozen_linear._can_pack(torch.float64)
    finally:
        frozen_linear._can_pack.cache_clear()
    monkeypatch.setattr(frozen_linear, "_can_pack", lambda dtype: True)
    linear, x = FrozenLinear(noise(0, 6, 8), noise(1, 6)), noise(2, 3, 8)
    assert not linear._is_plain(x)
    assert linear._is_plain(x.to("meta"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert linear._is_plain(x)
