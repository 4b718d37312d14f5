"""Prompting in training mode: dropout, gradient flow, initial scales, float64 accumulation."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.model.ablations import StaticSpatial, StaticTemporal
from stop_core.model.learned_context import LearnedContext
from stop_core.model.methods import build_method
from stop_core.model.spatial import SpatialPrompting
from stop_core.model.temporal import TemporalPrompting
from stop_core.model.tuned import TunedClip
from stop_core.model.video_model import VideoModel
from stop_core.model.volume import keep_variance
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.stop import StopConfig
from tests.stop_core.reference import packed

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]

WIDTH, GRID, PATCHES, B, T = 48, (4, 3), 12, 4, 5
WITH_DROPOUT: list[str] = ["stop", "stop-static", "stop-temporal-vpt"]
CLOSE = {"rtol": 1e-12, "atol": 1e-11}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spatial_prompts(config: StopConfig) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    layer = SpatialPrompting(WIDTH, GRID, replace(config, n_s=PATCHES))
    h, A_raw = noise(0, B, T, PATCHES, WIDTH), noise(1, B, T, PATCHES).softmax(-1)
    return layer, lambda layer: layer(packed(h), lambda _: A_raw).h_s - h


def every_spatial_prompt(config: StopConfig) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    layer = SpatialPrompting(WIDTH, GRID, config)
    h, A_raw = noise(0, B, T, PATCHES, WIDTH), noise(1, B, T, PATCHES).softmax(-1)
    return layer, lambda layer: layer(packed(h), lambda _: A_raw, every_prompt=True).p_s


def temporal_prompts(config: StopConfig) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    layer = TemporalPrompting(WIDTH, GRID, replace(config, max_prompts=8))
    h = noise(0, B, T, PATCHES, WIDTH)
    return layer, lambda layer: layer(packed(h), None).p_t


def static_spatial_prompts(config: StopConfig) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    layer, h = StaticSpatial(WIDTH, PATCHES, replace(config, n_s=PATCHES)), torch.zeros(())
    return layer, lambda layer: layer(h.expand(B, T, PATCHES, WIDTH))


def static_temporal_prompts(config: StopConfig) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    layer = StaticTemporal(WIDTH, replace(config, max_prompts=8))
    return layer, lambda layer: layer(B, T - 1)[0]


PROMPTERS = [
    spatial_prompts,
    every_spatial_prompt,
    temporal_prompts,
    static_spatial_prompts,
    static_temporal_prompts,
]


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("prompter", PROMPTERS)
def test_prompts_drop_out_at_their_rate_in_training_and_never_in_evaluation(
    prompter: Callable[[StopConfig], Any], rate: float, stir: Stir
) -> None:
    torch.manual_seed(0)
    layer, prompts = prompter(StopConfig(dropout=rate))
    stir(layer)
    whole = prompts(layer.eval())
    assert torch.equal(prompts(layer), whole)
    assert whole.ne(0).all()
    trained = prompts(layer.train())
    dropped = trained.abs() <= 1e-5  # h is subtracted again, in float32
    share, error = dropped.float().mean().item(), math.sqrt(rate * (1 - rate) / whole.numel())
    assert abs(share - rate) < 5 * error + 1e-3
    kept = whole / (1 - rate)
    torch.testing.assert_close(trained[~dropped], kept[~dropped], rtol=1e-4, atol=1e-4)
    # Dropout is independent for each video, frame and channel, and differs between calls.
    assert not torch.equal(dropped, prompts(layer).abs() <= 1e-5)
    for dim in range(dropped.ndim):
        assert (dropped != dropped.roll(1, dim)).any()


@pytest.mark.parametrize("prompter", PROMPTERS)
def test_without_dropout_training_computes_what_evaluation_does(
    prompter: Callable[[StopConfig], Any],
) -> None:
    layer, prompts = prompter(StopConfig())
    assert torch.equal(prompts(layer.train()), prompts(layer.eval()))


def model_of(method: str, clip: FrozenClip, stop: StopConfig) -> VideoModel:
    torch.manual_seed(0)
    config = ExperimentConfig(method=method, stop=stop, static_prompts=3)
    return build_method(config, clip, 3)


@torch.no_grad()
@pytest.mark.parametrize("method", WITH_DROPOUT)
@pytest.mark.parametrize("half", [{"n_s": 0}, {"eta": 0.0}])
def test_each_half_of_a_model_drops_out_only_in_training(
    method: str, half: dict[str, Any], make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    if method == "stop-temporal-vpt" and "eta" in half:
        pytest.skip("its static prompts do not drop out")
    model = model_of(method, make_clip(), StopConfig(**{"n_s": 3, "dropout": 0.5} | half))
    stir(model)
    frames = make_frames(0, 2, 3, model.image_size)
    model.train()
    assert not torch.equal(model.encode_video(frames), model.encode_video(frames))
    model.eval()
    assert torch.equal(model.encode_video(frames), model.encode_video(frames))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trains])
def test_a_step_gives_every_prompt_a_gradient_and_clip_none(
    method: str, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = model_of(method, make_clip(), StopConfig(n_s=3, dropout=0.3))
    if not method.startswith("stop"):  # adapters start at zero, so that one side has no gradient
        stir(model)
    model.train()
    logits = model(make_frames(0, 3, 4, model.image_size), model.encode_text(["a", "b", "c"]))
    nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    trainable = {id(parameter): name for name, parameter in model.trainable().items()}
    assert trainable
    for name, parameter in model.named_parameters():
        if name.startswith("pixels.choice."):
            assert parameter.grad is None  # as in the published code
        elif id(parameter) in trainable:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
    frozen = not isinstance(model, TunedClip)
    clips_own = {id(parameter) for parameter in model.clip.parameters()}
    assert (clips_own & trainable.keys() == set()) == frozen


@pytest.mark.parametrize("selection", ["ste", "hard"])
def test_choosing_patches_passes_no_gradient_to_the_tokens(selection: str) -> None:
    layer = SpatialPrompting(WIDTH, GRID, StopConfig(n_s=3, selection=selection))
    h = noise(0, B, T, PATCHES, WIDTH).requires_grad_()
    A_raw = noise(1, B, T, PATCHES).softmax(-1)
    found = layer(packed(h), lambda _: A_raw)
    for name in ("M_raw", "M", "W_s", "r"):
        made = getattr(found, name)
        if made.requires_grad:
            assert gradient(made, h) is None, name
    # The filter learns only from the straight-through estimate.
    assert (gradient(found.h_s, layer.dynamics.down.weight) is not None) == (selection == "ste")


@pytest.mark.parametrize("selection", ["ste", "hard"])
@pytest.mark.parametrize("normalize", ["per_frame", "running", "none"])
def test_counting_prompts_passes_no_gradient_to_the_tokens(selection: str, normalize: str) -> None:
    layer = TemporalPrompting(WIDTH, GRID, StopConfig(selection=selection, normalize=normalize))
    h = noise(0, B, T, PATCHES, WIDTH).requires_grad_()
    r = torch.ones(B, T, PATCHES, requires_grad=True)
    found = layer(packed(h), r)
    for name in ("d", "W_t_raw", "W_t", "N_t", "presence"):
        made = getattr(found, name)
        if made.requires_grad:
            assert gradient(made, h) is None, name
    assert gradient(found.p_t, h) is not None
    assert not found.N_t.requires_grad
    learns = selection == "ste"
    assert found.presence.requires_grad == learns
    for parameter in layer.change.parameters():
        assert (gradient(found.p_t, parameter) is not None) == learns
    # The weight of the chosen patches passes a gradient to the selection.
    assert (gradient(found.p_t, r) is not None) == learns


@pytest.mark.parametrize("selection", ["ste", "hard"])
@pytest.mark.parametrize("n_s", [0, 1, 3, PATCHES])
def test_skipping_unused_prompts_changes_no_gradient(n_s: int, selection: str, stir: Stir) -> None:
    layer = SpatialPrompting(WIDTH, GRID, StopConfig(n_s=n_s, selection=selection))
    stir(layer)
    layer.double()
    found = []
    for every in (False, True):
        layer.zero_grad()
        h = noise(0, B, T, PATCHES, WIDTH).double().requires_grad_()
        A_raw = noise(1, B, T, PATCHES).double().softmax(-1).requires_grad_()
        prompts = layer(packed(h), lambda _, A_raw=A_raw: A_raw, every_prompt=every)
        (prompts.h_s * noise(2, *h.shape).double()).sum().backward()
        own = [parameter.grad for parameter in layer.parameters()]
        found.append([prompts.h_s.detach(), h.grad, A_raw.grad, *own])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, **CLOSE)


def gradient(made: Tensor, of: Tensor) -> Tensor | None:
    """Returns the gradient of `made` to `of`, or None if there is none or it is zero."""
    if not made.requires_grad:
        return None
    found = torch.autograd.grad(made.square().sum(), of, retain_graph=True, allow_unused=True)[0]
    return found if found is not None and bool(found.any()) else None


def test_the_weights_of_gaps_are_rescaled_from_a_mean_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Min-max stretches a spread of 1e-4 among the gaps to all of [0, 1], and rounding with it."""
    layer = TemporalPrompting(WIDTH, (16, 16), StopConfig(beta=0.0))
    patches = 16 * 16
    spread = 1e-4 * torch.linspace(0, 1, 8)[None, :, None]
    energy = 1 + spread + 0.5 * noise(0, 2, 8, patches).tanh().sort().values[:, :1]
    shuffled = torch.stack([torch.randperm(patches) for _ in range(16)]).view(2, 8, patches)
    energy = energy.gather(2, shuffled)
    monkeypatch.setattr(layer.change, "energy", lambda hidden: energy)
    with torch.no_grad():
        found = layer(packed(noise(1, 2, 9, patches, WIDTH)), None).W_t
    exact = energy.double().mean(-1)
    low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
    torch.testing.assert_close(found.double(), (exact - low) / (high - low), rtol=0, atol=1e-6)


def scales_at_the_start(width: int, hidden: int, patches: int) -> dict[str, float]:
    """Returns the standard deviation of each random tensor by name; all others start at zero."""
    linear = lambda inputs: 1 / math.sqrt(inputs)  # noqa: E731
    relu = lambda inputs: math.sqrt(2 / inputs)  # noqa: E731
    torchs_own = lambda inputs: 1 / math.sqrt(3 * inputs)  # noqa: E731
    own = {
        "spatial.prompter.down.weight": linear(width),
        "spatial.prompter.conv_in_time.conv.weight": relu(27 * hidden),
        "spatial.prompter.conv_in_space.weight": linear(9 * hidden),
        "spatial.prompter.mix.weight": relu(hidden),
        "spatial.prompter.up.weight": 0.001,
        "temporal.prompter.down.weight": linear(width),
        "temporal.prompter.conv_in_time.conv.weight": relu(27 * hidden),
        "temporal.prompter.conv_in_space.weight": linear(9 * hidden),
        "temporal.prompter.gather.weight": linear(hidden),
        "temporal.prompter.up.weight": linear(hidden + 1),
        "temporal.prompter.slot_bias": 0.02,
    }
    for chooser in ("spatial.dynamics", "temporal.change"):
        own[f"{chooser}.down.weight"] = own[f"{chooser}.down.bias"] = torchs_own(width)
        inputs = 27 * hidden
        own[f"{chooser}.conv.conv.weight"] = own[f"{chooser}.conv.conv.bias"] = torchs_own(inputs)
        own[f"{chooser}.up.weight"] = own[f"{chooser}.up.bias"] = torchs_own(hidden)
    return own


def test_stop_starts_at_the_documented_scales(make_clip: MakeClip) -> None:
    hidden = 24
    config = StopConfig(n_s=3, spatial_width=hidden, temporal_width=hidden, max_prompts=9)
    model = model_of("stop", make_clip(width=96, heads=2, layers=1), config)
    wanted = scales_at_the_start(96, hidden, 9)
    for name, parameter in model.prompting[0].named_parameters():  # type: ignore[index,union-attr]
        if name == "temporal.prompter.query_key_value.weight":
            query, key, value = (part.std().item() for part in parameter.chunk(3))
            assert query == pytest.approx(1 / math.sqrt(3 * hidden), rel=0.15)
            assert key == pytest.approx(1 / math.sqrt(3 * hidden), rel=0.15)
            assert value == pytest.approx(0.1 / math.sqrt(3 * hidden), rel=0.15)
        elif name in wanted:
            # The spread of a few biases is a poor estimate.
            rel = 0.15 if parameter.numel() > 300 else 0.6
            assert parameter.std().item() == pytest.approx(wanted[name], rel=rel), name
        else:
            assert not parameter.any(), name


def test_static_prompts_start_at_the_documented_scales(make_clip: MakeClip) -> None:
    clip = make_clip(width=96, heads=2, grid=8)
    config = StopConfig(n_s=3, max_prompts=16)
    static = model_of("stop-static", clip, config)
    beside = model_of("stop-temporal-vpt", clip, config)
    deep, shallow = (model_of(name, clip, config) for name in ("vpt-deep", "vpt-shallow"))
    spread = {
        "static spatial": static.prompting[0].spatial.prompts,  # type: ignore[index,union-attr]
        "static temporal": static.prompting[0].temporal.prompts,  # type: ignore[index,union-attr]
        "beside": beside.prompting[0].prompts,  # type: ignore[index,union-attr]
        "deep": deep.prompts,
        "shallow": shallow.prompts,
    }
    for name, prompts in spread.items():
        assert prompts.std().item() == pytest.approx(0.02, rel=0.15), name
        assert abs(prompts.mean().item()) < 0.02 * 5 / math.sqrt(prompts.numel()), name
    weight = static.prompting[0].spatial.weight  # type: ignore[index,union-attr]
    assert 0 <= weight.min() < 0.15
    assert 0.85 < weight.max() <= 1
    assert weight.mean().item() == pytest.approx(0.5, abs=0.15)
    context = LearnedContext(load_clip("tiny"), 16).vectors
    assert context.std().item() == pytest.approx(0.02, rel=0.15)


@torch.no_grad()
@pytest.mark.parametrize("before_relu", [False, True])
def test_a_signal_keeps_its_strength_through_layers_that_keep_variance(before_relu: bool) -> None:
    torch.manual_seed(0)
    for layer, x in (
        (nn.Linear(400, 400), torch.randn(500, 400)),
        (nn.Conv3d(30, 30, 3), torch.randn(4, 30, 6, 6, 6)),
    ):
        nn.init.constant_(layer.bias, 7.0)
        keep_variance(layer, before_relu=before_relu)
        out = layer(x)
        # ReLU halves the mean square of a symmetric distribution.
        strength = (out.relu() if before_relu else out).square().mean()
        assert strength.item() == pytest.approx(1, rel=0.1)
        assert not layer.bias.any()


@pytest.mark.parametrize("method", WITH_DROPOUT)
def test_prompts_are_computed_in_float32_under_autocast(
    method: str, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    """In bfloat16, other patches would be chosen."""
    model: Any = model_of(method, make_clip(), StopConfig(n_s=3))
    seen: list[tuple[bool, torch.dtype]] = []

    def watched(index: int, tokens: Any) -> Any:
        seen.append((torch.is_autocast_enabled("cpu"), tokens.h.dtype))
        return model.prompt(index, tokens)

    with torch.autocast("cpu", torch.bfloat16):
        model.encode_with(watched, make_frames(0, 1, 2, model.image_size))
    assert seen == [(False, torch.float32)] * model.tower.depth


@pytest.mark.parametrize("method", ["stop", "stop-temporal-vpt"])
def test_a_disabled_half_is_not_computed_and_has_no_gradient(
    method: str, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    """With a gradient of zero, weight decay would shrink the unused tensors."""
    for off, half in (({"eta": 0.0}, "temporal"), ({"n_s": 0}, "spatial")):
        model = model_of(method, make_clip(), StopConfig(**{"n_s": 3} | off))
        model.train()
        model.encode_video(make_frames(0, 2, 3, model.image_size)).sum().backward()
        for name, parameter in model.trainable().items():
            assert (parameter.grad is None) == (f".{half}." in name), name


@pytest.mark.parametrize("method", METHODS)
def test_only_a_tuned_clip_and_a_learned_context_train_texts(
    method: str, make_clip: MakeClip
) -> None:
    model = model_of(method, make_clip(), StopConfig(n_s=3))
    if model.context is not None:
        assert model.trains_text
        with pytest.raises(ValueError, match="set context_tokens to 0"):
            model.learn_context(2)
        return
    assert model.trains_text is isinstance(model, TunedClip)
    with_context = model_of(method, load_clip("tiny"), StopConfig())
    with_context.learn_context(2)
    assert with_context.trains_text is True


@pytest.mark.parametrize("method", ["stop-temporal-vpt", "vpt-deep", "vpt-shallow"])
def test_one_static_prompt_is_enough(method: str, make_clip: MakeClip) -> None:
    config = ExperimentConfig(method=method, stop=StopConfig(n_s=1), static_prompts=1)
    assert any(1 in p.shape for p in build_method(config, make_clip(), 3).trainable().values())
