"""The average of the prompts follows its equation and does not change the trained weights."""

from collections.abc import Callable

import pytest
import torch

from stop_core.clip.loading import FrozenClip
from stop_core.model.baselines import StaticPrompts, ZeroShot
from stop_core.training.ema import MovingAverage

NAME = "prompts"


@pytest.fixture
def model(make_clip: Callable[..., FrozenClip]) -> StaticPrompts:
    return StaticPrompts(make_clip(), 2, "frame")


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.99])
def test_the_average_follows_its_equation(model: StaticPrompts, decay: float) -> None:
    wanted = model.prompts.detach().clone().double()
    average = MovingAverage(model, decay)
    for step in range(1, 25):
        with torch.no_grad():
            model.prompts.normal_(generator=torch.Generator().manual_seed(step))
        average.update(step)
        d = min(decay, step / (step + 9))
        wanted = d * wanted + (1 - d) * model.prompts.detach().double()
    torch.testing.assert_close(average.average[NAME].double(), wanted, rtol=0, atol=1e-6)
    assert not average.average[NAME].requires_grad


def test_the_model_has_the_average_only_inside_of_the_context(model: StaticPrompts) -> None:
    average = MovingAverage(model, 0.5)
    before = average.weights()[NAME]
    with torch.no_grad():
        model.prompts += 1
    trained = model.prompts.detach().clone()

    def interrupted() -> None:
        with average.in_place():
            assert torch.equal(model.prompts, before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(model.prompts, trained)
    # The returned tensors are copies.
    average.weights()[NAME].zero_()
    assert torch.equal(average.average[NAME], before)


def test_without_a_decay_there_is_no_average(model: StaticPrompts) -> None:
    average = MovingAverage(model, 0.0)
    assert average.average == {}
    average.update(1)
    with average.in_place():
        assert torch.equal(average.weights()[NAME], model.prompts)
    with torch.no_grad():
        model.prompts += 1
    assert torch.equal(average.weights()[NAME], model.prompts)


def test_an_average_is_taken_up_from_a_checkpoint_of_the_same_training(
    model: StaticPrompts, make_clip: Callable[..., FrozenClip]
) -> None:
    average = MovingAverage(model, 0.5)
    saved = {NAME: torch.full_like(model.prompts, 3.0)}
    average.load(saved)
    saved[NAME].zero_()
    assert average.weights()[NAME].eq(3).all()
    with pytest.raises(ValueError, match="another `ema`"):
        average.load({})
    with pytest.raises(ValueError, match="another `ema`"):
        MovingAverage(ZeroShot(make_clip()), 0.5).load(saved)
