"""Laws of the ablations: constants do not depend on the video, and the rest is STOP's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stop_core.clip.loading import FrozenClip
from stop_core.model.ablations import (
    StaticSpatial,
    StaticStop,
    StaticTemporal,
    TemporalWithStatic,
)
from stop_core.model.baselines import StaticPrompts, ZeroShot
from stop_core.model.stop import StopModel
from stop_core.model.video_model import VideoModel
from stop_core.settings.stop import Attention, StopConfig

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]

ATTENTIONS: list[Attention] = ["joint", "frame"]
CLOSE = {"rtol": 0, "atol": 1e-5}
BUILD: dict[str, Callable[[FrozenClip, StopConfig], VideoModel]] = {
    "static": StaticStop,
    "temporal with static": lambda clip, config: TemporalWithStatic(clip, config, 2),
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"depth": 1},
    {"depth": 2, "share": True},
    {"selection": "hard"},
]


def build(method: str, clip: FrozenClip, config: StopConfig) -> VideoModel:
    torch.manual_seed(0)
    return BUILD[method](clip, config).eval()


def gradients(model: VideoModel, frames: Tensor) -> dict[str, Tensor | None]:
    """The gradient of every trainable tensor after one training step's backward pass."""
    model.train()
    texts = model.encode_text(["left", "right", "up"])
    F.cross_entropy(model(frames, texts), torch.arange(len(frames)) % 3).backward()
    return {name: parameter.grad for name, parameter in model.trainable().items()}


@torch.no_grad()
def test_static_stop_without_prompts_is_the_plain_frozen_tower(
    make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip()
    model = StaticStop(clip, StopConfig(n_s=0, eta=0, attention="frame"))
    assert model.trainable() == {}
    frames = make_frames(0, 3, 4, model.image_size)
    # Frame by frame, the plain tower is zero-shot CLIP; together, STOP with both halves off.
    wanted = ZeroShot(clip).encode_video(frames)
    torch.testing.assert_close(model.encode_video(frames), wanted, **CLOSE)
    off = StopConfig(n_s=0, eta=0, attention="joint")
    wanted = StopModel(clip, off).encode_video(frames)
    torch.testing.assert_close(StaticStop(clip, off).encode_video(frames), wanted, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_static_stop_in_joint_attention_ignores_the_order_of_the_frames(
    settings: dict[str, Any], make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = build("static", make_clip(), StopConfig(n_s=3, attention="joint", **settings))
    stir(model)
    frames = make_frames(0, 2, 5, model.image_size)
    before = model.encode_video(frames)
    torch.testing.assert_close(model.encode_video(frames.flip(1)), before, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("n_s", [1, 4, 9])
def test_static_stop_prompts_the_same_n_s_patches_of_every_frame(
    n_s: int, make_frames: MakeFrames, stir: Stir
) -> None:
    layer = StaticSpatial(24, 9, StopConfig(n_s=n_s))
    stir(layer)
    layer.weight[2:6] = layer.weight[1]  # ties, too
    h = torch.randn(2, 4, 9, 24, generator=torch.Generator().manual_seed(0))
    added = layer(h) - h
    chosen = added.abs().amax(-1) > 0
    assert (chosen.sum(-1) == n_s).all()
    assert (chosen == chosen[:1, :1]).all()
    largest = layer.weight.argsort(descending=True, stable=True)[:n_s]
    torch.testing.assert_close(added[:, :, largest], layer.prompts[largest].expand(2, 4, -1, -1))


@torch.no_grad()
def test_static_stop_fills_every_slot_of_every_gap_with_the_same_tokens() -> None:
    layer = StaticTemporal(24, StopConfig(max_prompts=3))
    prompts, presence = layer(2, 5)
    assert torch.equal(prompts, layer.prompts.expand(2, 5, 3, 24))
    assert torch.equal(presence, torch.ones(2, 5, 3))


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_static_stop_is_open_clips_blocks_with_constants(
    depth: int, attention: Attention, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    clip = make_clip(layers=3)
    config = StopConfig(n_s=2, max_prompts=2, depth=depth, attention=attention)
    model = build("static", clip, config)
    stir(model)
    frames = make_frames(0, 2, 4, model.image_size)
    for video, found in zip(frames, model.encode_video(frames), strict=True):
        embedded = model.tower.embed(video)
        cls, patches = embedded[:, 0], embedded[:, 1:]
        if attention == "joint":
            sequences = [torch.cat([cls[:1], patches.flatten(0, 1)])[None]]
        else:
            sequences = [one[None] for one in embedded]
        embeddings = []
        for number, sequence in enumerate(sequences):
            # Joint: four frames and three gaps. Frame: one, and the gap before it, if there is one.
            count, gaps = (4, 3) if attention == "joint" else (1, min(number, 1))
            embeddings.append(_through(model, sequence, count, gaps))
        wanted = F.normalize(torch.cat(embeddings).mean(0), dim=-1)
        torch.testing.assert_close(found, wanted, **CLOSE)


def _through(model: VideoModel, sequence: Tensor, frames: int, gaps: int) -> Tensor:
    """One sequence [1, 1 + frames * P, D] through open_clip's blocks, its prompts in the gaps."""
    count = sequence.shape[1]
    for index, block in enumerate(model.tower.blocks):
        if index < len(model.prompting):  # type: ignore[arg-type]
            layer = model.prompting[index]  # type: ignore[index]
            by_frame = sequence[:, 1:count].unflatten(1, (frames, -1))
            added = torch.zeros_like(by_frame)
            chosen = layer.spatial.weight.topk(model.config.n_s).indices
            added[:, :, chosen] = layer.spatial.prompts[chosen]
            patches = (by_frame + added).flatten(1, 2)
            prompts = layer.temporal.prompts.repeat(gaps, 1)[None]
            sequence = torch.cat([sequence[:, :1], patches, prompts], dim=1)
        sequence = block(sequence)
    return F.normalize(model.tower.project(sequence[:, 0]), dim=-1)


@pytest.mark.parametrize("method", BUILD)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("n_s", [1, 4, 9])
def test_every_trainable_tensor_has_a_gradient_from_the_first_step(
    method: str,
    attention: Attention,
    share: bool,
    n_s: int,
    make_clip: MakeClip,
    make_frames: MakeFrames,
) -> None:
    model = build(method, make_clip(), StopConfig(n_s=n_s, attention=attention, share=share))
    found = gradients(model, make_frames(n_s, 3, 4, model.image_size))
    assert found
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


def test_prompting_that_is_turned_off_has_no_tensors(make_clip: MakeClip) -> None:
    clip = make_clip()
    spatial = StaticStop(clip, StopConfig(n_s=2, eta=0)).trainable()
    temporal = StaticStop(clip, StopConfig(n_s=0)).trainable()
    assert spatial
    assert all(".spatial." in name for name in spatial)
    assert temporal
    assert all(".temporal." in name for name in temporal)


def test_hard_selection_of_static_patches_is_never_trained(
    make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    model = build("static", make_clip(), StopConfig(n_s=2, selection="hard"))
    for name, gradient in gradients(model, make_frames(0, 3, 4, model.image_size)).items():
        assert (gradient is None) == name.endswith("spatial.weight"), name


@torch.no_grad()
@pytest.mark.parametrize("method", BUILD)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_embedding_of_a_video_does_not_depend_on_its_batch(
    method: str,
    attention: Attention,
    settings: dict[str, Any],
    make_clip: MakeClip,
    make_frames: MakeFrames,
    stir: Stir,
) -> None:
    config = StopConfig(n_s=2, attention=attention, **settings)
    model = build(method, make_clip(), config)
    stir(model, scale=0.05)
    frames = make_frames(0, 4, 3, model.image_size)
    together = model.encode_video(frames)
    alone = torch.cat([model.encode_video(video[None]) for video in frames])
    torch.testing.assert_close(together, alone, **CLOSE)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model.encode_video(frames[order]), together[order], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("method", BUILD)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_clip_of_one_frame_has_no_gaps(
    method: str, attention: Attention, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip()
    frames = make_frames(0, 2, 1, clip.model.visual.image_size[0])
    full = build(method, clip, StopConfig(n_s=2, attention=attention))
    off = build(method, clip, StopConfig(n_s=2, eta=0, attention=attention))
    shared = full.prompt_state_dict()
    off.load_prompt_state_dict({name: shared[name] for name in off.trainable()})
    torch.testing.assert_close(full.encode_video(frames), off.encode_video(frames), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_static_prompts_without_temporal_prompts_are_vpt_deep(
    attention: Attention, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    clip = make_clip()
    model = build("temporal with static", clip, StopConfig(eta=0, attention=attention))
    stir(model)
    vpt = StaticPrompts(clip, 2, attention)
    vpt.prompts.copy_(torch.stack(list(model.prompt_state_dict().values())))
    frames = make_frames(0, 2, 4, model.image_size)
    torch.testing.assert_close(model.encode_video(frames), vpt.encode_video(frames), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("depth", [1, None])
def test_temporal_prompts_with_static_prompts_are_those_of_stop(
    depth: int | None,
    attention: Attention,
    make_clip: MakeClip,
    make_frames: MakeFrames,
    stir: Stir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = StopConfig(n_s=0, depth=depth, attention=attention)
    clip = make_clip()
    model = build("temporal with static", clip, config)
    stir(model)
    stop = StopModel(clip, config).eval()
    own = model.prompt_state_dict()
    stop.load_prompt_state_dict({**stop.prompt_state_dict(), **_temporal(own)})
    frames = make_frames(0, 2, 4, model.image_size)
    with_static = model.encode_video(frames)
    wanted = stop.encode_video(frames)
    assert (with_static - wanted).abs().max() > 1e-3
    _hide_static_prompts(model.tower, monkeypatch)
    torch.testing.assert_close(model.encode_video(frames), wanted, **CLOSE)


def _temporal(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if ".temporal." in name}


def _hide_static_prompts(tower: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks the last two prompts of a sequence, the static ones, as empty slots."""
    run_block = tower.run_block

    def hide(
        index: int, tokens: Tensor, prompts: Tensor, presence: Tensor | None, **options: bool
    ) -> tuple[Tensor, Tensor | None]:
        assert presence is not None
        shown = presence.clone()
        shown[:, -2:] = 0
        out: tuple[Tensor, Tensor | None] = run_block(index, tokens, prompts, shown, **options)
        return out

    monkeypatch.setattr(tower, "run_block", hide)


@torch.no_grad()
def test_temporal_prompts_with_static_prompts_depend_on_the_order_of_frames(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = build("temporal with static", make_clip(), StopConfig())
    stir(model)
    frames = make_frames(0, 2, 5, model.image_size)
    change = model.encode_video(frames.flip(1)) - model.encode_video(frames)
    assert change.abs().max() > 1e-3


@pytest.mark.parametrize("method", BUILD)
def test_settings_that_do_not_fit_the_tower_are_refused_by_name(
    method: str, make_clip: MakeClip
) -> None:
    with pytest.raises(ValueError, match=r"depth must be at most 2.*got 3"):
        build(method, make_clip(), StopConfig(depth=3))


def test_invalid_numbers_of_prompts_are_refused_by_name(make_clip: MakeClip) -> None:
    with pytest.raises(ValueError, match=r"n_s must be at most 9.*got 10"):
        StaticStop(make_clip(), StopConfig(n_s=10))
    with pytest.raises(ValueError, match=r"static_prompts.*0"):
        TemporalWithStatic(make_clip(), StopConfig(), 0)
