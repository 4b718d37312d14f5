"""Selection is exact, per frame and per video, and passes gradients on request."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stop_core.model.selection import choose_patches, min_max, prompt_presence, weighted_mean

# Values that differ by clearly more than float32 rounding.
distinct_rows = st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True)
tied_frames = st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=4)


@given(distinct_rows)
def test_min_max_maps_the_ends_to_zero_and_one_and_keeps_the_order(row: list[int]) -> None:
    values = torch.tensor(row, dtype=torch.float32)
    rescaled = min_max(values)
    assert rescaled.min() == 0
    assert rescaled.max() == 1
    assert torch.equal(rescaled.argsort(), values.argsort())
    wanted = (values - values.min()) / (values.max() - values.min())
    torch.testing.assert_close(rescaled, wanted, rtol=1e-6, atol=0)


@given(distinct_rows, st.sampled_from([0.125, 2.0, 64.0]))
def test_min_max_does_not_depend_on_the_scale(row: list[int], scale: float) -> None:
    values = torch.tensor(row, dtype=torch.float32)
    assert torch.equal(min_max(scale * values), min_max(values))


@pytest.mark.parametrize("value", [0.0, 1e-12, 3.7, 1e6])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_min_max_of_equal_values_is_one_half(value: float, count: int) -> None:
    assert torch.equal(min_max(torch.full((3, count), value)), torch.full((3, count), 0.5))


def test_min_max_with_a_floor_maps_rounding_errors_to_zero() -> None:
    values = 0.731 * (1 + 1e-7 * torch.tensor([[0.0, 3.0, -2.0, 1.0]]))
    assert torch.equal(min_max(values), torch.full((1, 4), 0.5))
    changed = torch.cat([values, torch.tensor([[1.5]])], dim=1)
    assert torch.equal(min_max(changed, floor=True), torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]]))


def test_min_max_rescales_rows_independently() -> None:
    rows = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(min_max(rows), torch.stack([min_max(row) for row in rows]))


@pytest.mark.parametrize(
    "row", [[1.0], [2.0, 2.0], [1.0, 3.0], [1.0, 1.0, 5.0], [0.1, 0.4, 0.9, 0.2]]
)
def test_min_max_gives_every_value_a_gradient(row: list[float]) -> None:
    values = torch.tensor(row, requires_grad=True)
    (gradient,) = torch.autograd.grad(min_max(values).sum(), values)
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


@given(tied_frames, st.integers(0, 5), st.booleans())
def test_exactly_n_s_patches_of_every_frame_are_selected_even_with_ties(
    frames: list[list[int]], n_s: int, straight_through: bool
) -> None:
    weight = torch.tensor([frames], dtype=torch.float32, requires_grad=True)
    r, _ = choose_patches(weight, n_s, straight_through=straight_through)
    assert ((r == 0) | (r == 1)).all()
    assert (r.sum(-1) == n_s).all()
    for row, chosen in zip(weight.detach()[0], r.detach()[0], strict=True):
        inside, outside = row[chosen == 1], row[chosen == 0]
        if len(inside) and len(outside):
            assert inside.min() >= outside.max()


@given(tied_frames, st.integers(0, 5))
def test_of_tied_patches_the_first_are_selected(frames: list[list[int]], n_s: int) -> None:
    weight = torch.tensor([frames], dtype=torch.float32)
    r, chosen = (out[0] for out in choose_patches(weight, n_s, straight_through=False))
    for row, marks, indices in zip(frames, r.tolist(), chosen.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        assert [j for j, mark in enumerate(marks) if mark] == sorted(order[:n_s])
        assert indices == order[:n_s]


@pytest.mark.parametrize("patches", [1, 2, 9])
def test_straight_through_selection_is_hard_selection_with_a_gradient(patches: int) -> None:
    generator = torch.Generator().manual_seed(patches)
    for n_s in range(1, patches + 1):
        weight = torch.rand(2, 3, patches, generator=generator, requires_grad=True)
        hard, _ = choose_patches(weight, n_s, straight_through=False)
        soft, _ = choose_patches(weight, n_s, straight_through=True)
        assert not hard.requires_grad
        assert torch.equal(soft, hard)
        (gradient,) = torch.autograd.grad(soft.sum(), weight)
        # A larger weight can only make a patch more chosen.
        assert (gradient > 0).all()
        assert gradient.isfinite().all()


def test_equal_weights_have_a_finite_straight_through_gradient() -> None:
    weight = torch.ones(1, 2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        choose_patches(weight, 2, straight_through=True)[0].sum(), weight
    )
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


@given(st.lists(st.integers(0, 64), min_size=1, max_size=8), st.integers(0, 32), st.integers(1, 6))
def test_a_gap_gets_the_ceiling_of_its_change_at_most_max_prompts(
    eighths: list[int], quarters: int, max_prompts: int
) -> None:
    eta = quarters / 4
    change = torch.tensor(eighths) / 8
    wanted = [min(math.ceil(eta * eighth / 8), max_prompts) for eighth in eighths]
    assert prompt_presence(change, eta, max_prompts, soft=False).sum(-1).tolist() == wanted


@settings(deadline=None)
@given(st.lists(st.floats(0, 4, width=32), min_size=1, max_size=6), st.integers(1, 6))
def test_the_first_slots_of_a_gap_are_present_and_no_others(
    changes: list[float], max_prompts: int
) -> None:
    change = torch.tensor(changes, requires_grad=True)
    counts = (1.5 * change.detach()).ceil()
    hard = prompt_presence(change, 1.5, max_prompts, soft=False)
    soft = prompt_presence(change, 1.5, max_prompts, soft=True)
    assert torch.equal(hard, torch.arange(max_prompts).lt(counts[:, None]).float())
    assert torch.equal(soft, hard)
    assert not hard.requires_grad
    assert _gradient(soft, change).gt(0).all()


def _gradient(out: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(out.sum(), of)[0]


def _slope(x: Tensor) -> Tensor:
    """Returns the derivative of the sigmoid."""
    return x.sigmoid() * (1 - x.sigmoid())


@pytest.mark.parametrize("n_s", range(1, 7))
def test_the_straight_through_gradient_is_that_of_a_step_between_the_last_and_the_next(
    n_s: int,
) -> None:
    weight = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(n_s)).double()
    weight[0, 0] = 0.5  # a frame whose patches are all alike has a step of width 1
    ranked = weight.sort(-1, descending=True).values
    step = (ranked[..., n_s - 1] + ranked[..., min(n_s, 5)])[..., None] / 2
    width = 0.1 * (ranked[..., :1] - ranked[..., -1:])
    width[0, 0] = 1
    weight.requires_grad_()
    direction = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(9)).double()
    r, _ = choose_patches(weight, n_s, straight_through=True)
    found = torch.autograd.grad((r * direction).sum(), weight)[0]
    wanted = direction * _slope((weight.detach() - step) / width) / width
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.5, 4.0])
def test_the_gradient_of_a_slot_is_that_of_a_step_in_its_middle(eta: float) -> None:
    change = torch.rand(2, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    direction = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).double()
    presence = prompt_presence(change, eta, 3, soft=True)
    found = torch.autograd.grad((presence * direction).sum(), change)[0]
    slopes = [_slope(eta * change.detach() - slot - 0.5) for slot in range(3)]
    wanted = (direction * eta * torch.stack(slopes, -1)).sum(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("floor", [False, True])
def test_the_gradient_of_min_max_treats_its_bounds_as_constants(floor: bool) -> None:
    values = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 1e-9, 1.0]], requires_grad=True)
    direction = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0], [7.0, 8.0, 9.0]])
    rescaled = min_max(values, floor=floor)
    found = torch.autograd.grad((rescaled * direction).sum(), values)[0]
    spread = torch.tensor([[2.0], [1.0], [1.0]])  # values that are alike have the gradient of 1
    torch.testing.assert_close(found, direction / spread)
    assert rescaled[2, 1].item() == (0 if floor else pytest.approx(1e-9))


@pytest.mark.parametrize("frames", [2, 4])
def test_the_mean_change_of_a_gap_weighs_the_selected_patches_of_the_later_frame(
    frames: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    energy = torch.rand(2, frames - 1, 5, generator=generator).double().requires_grad_()
    r = torch.rand(2, frames, 5, generator=generator).double().requires_grad_()
    wanted = ((1 + 0.5 * r[:, 1:]) * energy).mean(-1)
    torch.testing.assert_close(weighted_mean(energy, r, 0.5), wanted)
    assert torch.autograd.gradcheck(lambda energy, r: weighted_mean(energy, r, 0.5), (energy, r))
    torch.testing.assert_close(weighted_mean(energy, None, 0.5), energy.mean(-1))
    assert torch.autograd.gradcheck(lambda energy: weighted_mean(energy, None, 0.5), (energy,))
