"""The hand-written gradients equal those of autograd on the plain equations, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.model.volume import LightConv3d, TemporalConv3d, to_tokens, to_volume

GRID, WIDTH = (2, 3), 3


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outcome(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Returns the output and the gradients of its sum with random weights."""
    gradients = torch.autograd.grad((out * noise(9, *out.shape)).sum(), inputs)
    return [out.detach(), *gradients]


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_a_convolution_in_time_repeats_the_ends_of_a_clip(frames: int) -> None:
    own = TemporalConv3d(WIDTH).double()
    x = noise(0, 2, frames, 6, WIDTH).requires_grad_()
    inputs = [x, *own.parameters()]
    padded = F.pad(to_volume(x, GRID), (0, 0, 0, 0, 1, 1), mode="replicate")
    wanted = outcome(to_tokens(own.conv(padded)), inputs)
    torch.testing.assert_close(outcome(own(x, GRID), inputs), wanted, rtol=0, atol=1e-12)
    strided = noise(0, WIDTH, 6, frames, 2).permute(3, 2, 1, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: own(x, GRID), (strided,))


def test_the_energy_is_the_mean_square_of_the_filtered_channels() -> None:
    own = LightConv3d(5, WIDTH, GRID).double()
    hidden = noise(0, 2, 3, 6, WIDTH).requires_grad_()
    inputs = [hidden, *own.conv.parameters(), *own.up.parameters()]
    wanted = outcome(own.up(own.conv(hidden, GRID)).square().mean(-1), inputs)
    torch.testing.assert_close(outcome(own.energy(hidden), inputs), wanted, rtol=0, atol=1e-12)


def test_an_energy_of_nothing_is_not_below_zero() -> None:
    own = LightConv3d(5, WIDTH, GRID)
    nn.init.zeros_(own.up.bias)
    nn.init.zeros_(own.conv.conv.bias)
    hidden = 1e-3 * noise(0, 2, 3, 6, WIDTH).float()
    assert (own.energy(hidden) >= 0).all()
