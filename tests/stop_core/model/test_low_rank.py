"""The hand-written gradients equal those of autograd on the plain equations, in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from stop_core.model.low_rank import add_prompts, map_differences

B, T, P, D, W, V = 2, 4, 5, 7, 3, 2
CLOSE = {"rtol": 0, "atol": 1e-12}


def noise(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ones_at(chosen_BTN: Tensor) -> Tensor:
    """Returns the mask r of the patches `chosen`."""
    return torch.zeros(B, T, P, dtype=torch.float64).scatter(2, chosen_BTN, 1.0)


def choices(seed: int, n_s: int) -> Tensor:
    """Returns different patches for each frame, in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, T, P, generator=generator).argsort(-1)[..., :n_s]


def results(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], learns: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Returns the output and the gradients of its sum with random weights."""
    own = [x.detach().requires_grad_(on) for x, on in zip(inputs, learns, strict=True)]
    out = function(*own)
    if out.requires_grad:
        # The gradient is not contiguous, because later blocks can produce such gradients.
        out.backward(noise(99, *reversed(out.shape)).permute(*reversed(range(out.ndim))))
    return out.detach(), [x.grad for x in own]


@pytest.mark.parametrize("selection_learns", [True, False])
@pytest.mark.parametrize("n_s", range(P + 1))
def test_prompts_are_added_with_the_gradients_of_the_equation(
    n_s: int, selection_learns: bool
) -> None:
    chosen = choices(n_s, n_s)
    inputs = (noise(0, B, T, P, D), ones_at(chosen), noise(1, B, T, P, W), noise(2, D, W))
    inputs += (noise(3, D),)
    learns = (True, selection_learns, True, True, True)

    def ours(h: Tensor, r: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return add_prompts(h, r, chosen, z, weight, bias)

    def equation(h: Tensor, r: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return h + r[..., None] * (z @ weight.T + bias)

    found, wanted = results(ours, inputs, learns), results(equation, inputs, learns)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert n_s == 0 or all(gradient.any() for gradient in found[1] if gradient is not None)


def test_adding_prompts_leaves_its_input_as_it_was_and_takes_any_layout() -> None:
    chosen = choices(0, 2)
    h = noise(0, D, P, T, B).permute(3, 2, 1, 0)
    before = h.clone()
    z, weight, bias = noise(1, W, P, T, B).permute(3, 2, 1, 0), noise(2, W, D).T, noise(3, D)
    out = add_prompts(h, ones_at(chosen), chosen, z, weight, bias)
    assert torch.equal(h, before)
    torch.testing.assert_close(out, h + ones_at(chosen)[..., None] * (z @ weight.T + bias), **CLOSE)


@pytest.mark.parametrize("frames", [2, 3, T])
@pytest.mark.parametrize("used", ["first", "second", "both"])
def test_differences_are_mapped_with_the_gradients_of_the_equation(frames: int, used: str) -> None:
    inputs = (noise(0, B, frames, P, D), noise(1, W, D), noise(2, V, D))

    def pick(first: Tensor, second: Tensor) -> Tensor:
        return {"first": first, "second": second, "both": torch.cat([first, second], -1)}[used]

    def ours(h: Tensor, weight: Tensor, watching: Tensor) -> Tensor:
        return pick(*map_differences(h, weight, watching)[1:])

    def equation(h: Tensor, weight: Tensor, watching: Tensor) -> Tensor:
        d = h[:, 1:] - h[:, :-1]
        # The second map trains its own matrix and passes no gradient to h.
        return pick(d @ weight.T, d.detach() @ watching.T)

    learns = (True, True, True)
    found, wanted = results(ours, inputs, learns), results(equation, inputs, learns)
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_the_difference_itself_is_a_constant() -> None:
    h = noise(0, B, T, P, D).requires_grad_()
    d, first, second = map_differences(h, noise(1, W, D), noise(2, V, D))
    torch.testing.assert_close(d, h.detach()[:, 1:] - h.detach()[:, :-1], **CLOSE)
    assert not d.requires_grad
    assert first.requires_grad
    (gradient,) = torch.autograd.grad(second.sum(), h, allow_unused=True)
    assert gradient is None
