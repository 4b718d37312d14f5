"""The hand-written gradients equal those of autograd on the plain equations, in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.model.low_rank import add_prompts, map_differences, map_tokens
from stop_core.model.sequences import VideoTokens
from stop_core.settings.stop import Attention

B, T, P, D, W, V = 2, 4, 5, 7, 3, 2
CLOSE = {"rtol": 0, "atol": 1e-12}
BOTH: list[Attention] = ["frame", "joint"]


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


def tokens_of(packed: Tensor, attention: Attention, frames: int = T) -> VideoTokens:
    return VideoTokens(packed, frames, attention == "joint")


def noise_tokens(attention: Attention, frames: int = T) -> Tensor:
    """Returns packed tokens whose channels have a mean."""
    return 2 + noise(0, *((B, 1 + frames * P) if attention == "joint" else (B * frames, 1 + P)), D)


def results(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], learns: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Returns the outputs and the gradients of their sum with random weights."""
    own = [x.detach().requires_grad_(on) for x, on in zip(inputs, learns, strict=True)]
    outs = list(function(*own))
    # The gradients are not contiguous, because later blocks can produce such gradients.
    weights = [
        noise(99 + index, *reversed(out.shape)).permute(*reversed(range(out.ndim)))
        for index, out in enumerate(outs)
    ]
    torch.autograd.backward(
        [out for out in outs if out.requires_grad],
        [weight for out, weight in zip(outs, weights, strict=True) if out.requires_grad],
    )
    return [out.detach() for out in outs], [x.grad for x in own]


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("used", [(0, 1, 2), (0, 2), (0, 1), (2,)])
def test_tokens_are_mapped_with_the_gradients_of_the_equation(
    attention: Attention, used: tuple[int, ...]
) -> None:
    inputs = (noise_tokens(attention), noise(1, V, D), noise(2, W, D), noise(3, W))

    def ours(x: Tensor, watching: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        variance, mean = torch.var_mean(x.detach(), -1, correction=0, keepdim=True)
        tokens, *maps = map_tokens(tokens_of(x, attention), variance, mean, watching, weight, bias)
        return [(tokens.packed, *maps)[index] for index in used]

    def equation(x: Tensor, watching: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        h = tokens_of(x, attention).h
        maps = h.detach() @ watching.T, F.linear(F.layer_norm(h, (D,)), weight, bias)
        return [(x, *maps)[index] for index in used]

    learns = (True, True, True, True)
    torch.testing.assert_close(
        results(ours, inputs, learns), results(equation, inputs, learns), **CLOSE
    )


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("selection_learns", [True, False])
@pytest.mark.parametrize("n_s", range(P + 1))
def test_prompts_are_added_with_the_gradients_of_the_equation(
    n_s: int, selection_learns: bool, attention: Attention
) -> None:
    chosen = choices(n_s, n_s)
    inputs = (noise_tokens(attention), ones_at(chosen), noise(1, B, T, P, W), noise(2, D, W))
    inputs += (noise(3, D),)
    learns = (True, selection_learns, True, True, True)

    def ours(x: Tensor, r: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        return [add_prompts(tokens_of(x, attention), r, chosen, z, weight, bias).packed]

    def equation(x: Tensor, r: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        tokens = tokens_of(x, attention)
        return [tokens.with_h(tokens.h + r[..., None] * (z @ weight.T + bias)).packed]

    found, wanted = results(ours, inputs, learns), results(equation, inputs, learns)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert n_s == 0 or all(gradient.any() for gradient in found[1] if gradient is not None)


def test_adding_prompts_leaves_its_input_as_it_was_and_takes_any_layout() -> None:
    chosen = choices(0, 2)
    x = noise_tokens("frame")
    before = x.clone()
    z, weight, bias = noise(1, W, P, T, B).permute(3, 2, 1, 0), noise(2, W, D).T, noise(3, D)
    tokens = tokens_of(x, "frame")
    out = add_prompts(tokens, ones_at(chosen), chosen, z, weight, bias)
    assert torch.equal(x, before)
    wanted = tokens.h + ones_at(chosen)[..., None] * (z @ weight.T + bias)
    torch.testing.assert_close(out.h, wanted, **CLOSE)
    assert torch.equal(out.cls, tokens.cls)


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("frames", [2, 3, T])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_differences_are_mapped_with_the_gradients_of_the_equation(
    frames: int, used: tuple[int, ...], attention: Attention
) -> None:
    inputs = (noise_tokens(attention, frames), noise(1, V, D), noise(2, W, D))

    def ours(x: Tensor, watching: Tensor, weight: Tensor) -> list[Tensor]:
        maps = map_differences(tokens_of(x, attention, frames), watching, weight)
        return [maps[index] for index in used]

    def equation(x: Tensor, watching: Tensor, weight: Tensor) -> list[Tensor]:
        h = tokens_of(x, attention, frames).h
        d = h[:, 1:] - h[:, :-1]
        # The first map trains its own matrix and passes no gradient to h.
        maps = d.detach() @ watching.T, d @ weight.T
        return [maps[index] for index in used]

    learns = (True, True, True)
    torch.testing.assert_close(
        results(ours, inputs, learns), results(equation, inputs, learns), **CLOSE
    )
