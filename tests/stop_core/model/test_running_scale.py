"""The running scale of W^t: absolute change is kept, and a clip does not depend on its batch."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.model.running_scale import RunningScale
from stop_core.model.stop import StopModel
from stop_core.model.temporal import TemporalPrompting, TemporalPrompts
from stop_core.settings.stop import StopConfig
from tests.stop_core.reference import packed

GRID, WIDTH = (3, 2), 10
changes = st.lists(st.lists(st.floats(0.01, 5), min_size=3, max_size=3), min_size=1, max_size=4)


def alone(values: object, device: torch.device) -> list[float]:
    del device
    return list(values)  # type: ignore[call-overload, no-any-return]


def layer(normalize: str = "running") -> TemporalPrompting:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = StopConfig(normalize=normalize, max_prompts=8)  # type: ignore[arg-type]
        return TemporalPrompting(WIDTH, GRID, config)


def trained() -> TemporalPrompting:
    own, moving = layer(), clip(0)
    for _ in range(3):
        prompted(own.train(), moving)
        own.scale.end_step(alone)  # type: ignore[union-attr]
    return own.eval()


def clip(seed: int, strength: float = 1.0, frames: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    still, change = torch.randn(2, 3, frames, GRID[0] * GRID[1], WIDTH, generator=generator)
    return still[:, :1] + strength * change


@torch.no_grad()
def prompted(own: TemporalPrompting, h: Tensor) -> TemporalPrompts:
    found: TemporalPrompts = own(packed(h), None)
    return found


def test_a_still_clip_gets_no_prompts_and_less_change_gets_fewer() -> None:
    own = trained()
    strong, weak, faint, still = (
        prompted(own, clip(0, strength)).N_t.sum() for strength in (1.0, 0.3, 0.03, 0.0)
    )
    assert strong > weak > faint > still == 0
    # min-max gives all of them as many.
    usual = [prompted(layer("per_frame"), clip(0, strength)).N_t for strength in (1.0, 0.03)]
    assert usual[0].sum() < 2 * usual[1].sum()


def test_the_largest_change_of_a_usual_clip_is_1() -> None:
    own = trained()
    largest = prompted(own, clip(0)).W_t.amax(-1)
    torch.testing.assert_close(largest.mean(), torch.tensor(1.0), rtol=0.02, atol=0)


@given(changes, changes)
def test_the_scale_is_the_mean_over_clips_however_they_are_divided(
    first: list[list[float]], second: list[list[float]]
) -> None:
    a, b = torch.tensor(first), torch.tensor(second)
    whole, parts, twice = (RunningScale().train() for _ in range(3))
    whole(torch.cat([a, b]), torch.zeros(()))
    for _ in range(2):  # as gradient caching and activation checkpointing embed a clip twice
        twice(torch.cat([a, b]), torch.zeros(()))
    parts(a, torch.zeros(()))
    other = RunningScale().train()  # another process
    other(b, torch.zeros(()))
    theirs = other._seen.tolist()  # type: ignore[union-attr]
    whole.end_step(alone)
    twice.end_step(alone)
    parts.end_step(lambda own, device: [x + y for x, y in zip(own, theirs, strict=True)])
    torch.testing.assert_close(parts.running, whole.running)
    torch.testing.assert_close(twice.running, whole.running)
    mean = torch.cat([a, b]).amax(-1).mean()
    torch.testing.assert_close(whole.running[0] / whole.running[1], mean)


def test_only_training_steps_move_the_scale() -> None:
    own = trained()
    before = own.scale.running.clone()  # type: ignore[union-attr]
    prompted(own, clip(1, 9.0))
    own.scale.end_step(alone)  # type: ignore[union-attr]
    assert torch.equal(own.scale.running, before)  # type: ignore[union-attr]
    prompted(own.train(), clip(1, 9.0))
    assert torch.equal(own.scale.running, before)  # type: ignore[union-attr]
    own.scale.end_step(alone)  # type: ignore[union-attr]
    assert own.scale.running[0] > before[0]  # type: ignore[union-attr]


def test_a_training_step_of_a_model_moves_the_scales_of_all_blocks(
    make_clip: Callable[..., FrozenClip], make_frames: Callable[..., Tensor]
) -> None:
    sizes: dict[str, Any] = {"n_s": 2, "spatial_width": 4, "temporal_width": 4}
    model = StopModel(make_clip(), StopConfig(normalize="running", **sizes)).train()
    model.encode_video(make_frames(0, 2, 3, model.image_size))
    scales = [one.running for one in model.modules() if isinstance(one, RunningScale)]
    before = [scale.clone() for scale in scales]
    model.end_step(alone)
    assert len(scales) == model.prompted_blocks
    assert not any(map(torch.equal, before, scales))


def test_a_step_moves_the_scale_by_a_hundredth_and_rounding_is_no_change() -> None:
    scale, rest = RunningScale().double(), torch.tensor(3.0, dtype=torch.float64)
    change = torch.tensor([[2.0, 3 + 6e-6, 3 + 1e-5, 5.0]]).double().requires_grad_()
    found = scale.eval()(change, rest)  # before the first step the scale is 1
    assert (found > 0).tolist() == [[False, False, True, True]]
    torch.testing.assert_close(found[0, 2:], (change - rest)[0, 2:])
    assert not found[0, :2].any()
    (gradient,) = torch.autograd.grad(found.sum(), change)
    assert torch.equal(gradient, torch.ones_like(change))  # also where there is no change
    running = torch.zeros(2).double()
    for largest in (4.0, 6.0, 6.0):
        clips = [[1.0, largest], [0.5, largest - 2], [-3.0, -2.0]]  # less than no change is none
        scale.train()(torch.tensor(clips).double(), 0 * rest)
        scale.end_step(alone)
        running = 0.99 * running + 0.01 * torch.tensor([(2 * largest - 2) / 3, 1.0]).double()
        torch.testing.assert_close(scale.running, running)
    found = scale.eval()(change, rest)
    torch.testing.assert_close(found[0, 3], 2 * running[1] / running[0])
