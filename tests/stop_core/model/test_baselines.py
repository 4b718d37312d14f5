"""Each baseline is the published method of its name."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.model.baselines import (
    LinearProbe,
    ShallowPrompts,
    StaticPrompts,
    ZeroShot,
)
from stop_core.settings.stop import Attention

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]
CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def encode_images(clip: FrozenClip, frames: Tensor) -> Tensor:
    """open_clip's own embeddings of the frames of one clip, [T, E]."""
    visual = clip.model.visual
    mean, std = torch.tensor(visual.image_mean), torch.tensor(visual.image_std)
    pixels = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
    return clip.model.encode_image(pixels, normalize=True)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_zero_shot_is_the_average_of_encode_image(
    frames: int, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip()
    model = ZeroShot(clip)
    clips = make_frames(0, 3, frames, model.image_size)
    averaged = torch.stack([encode_images(clip, video).mean(0) for video in clips])
    wanted = F.normalize(averaged, dim=-1)
    torch.testing.assert_close(model.encode_video(clips), wanted, **CLOSE)


def test_zero_shot_trains_nothing(make_clip: MakeClip) -> None:
    model = ZeroShot(make_clip())
    assert model.trainable() == {}
    assert model.prompt_state_dict() == {}
    model.load_prompt_state_dict({})


def test_the_linear_probe_starts_at_uniform_logits(
    make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    model = LinearProbe(make_clip(), 5)
    logits = model(make_frames(0, 3, 2, model.image_size), torch.empty(0))
    assert logits.shape == (3, 5)
    assert torch.equal(logits, torch.zeros(3, 5))
    loss = F.cross_entropy(logits, torch.tensor([0, 4, 2]))
    assert loss.item() == pytest.approx(math.log(5))


@torch.no_grad()
def test_the_linear_probe_is_linear_in_frozen_features(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = LinearProbe(make_clip(), 4)
    frames = make_frames(0, 6, 2, model.image_size)
    before = model.encode_video(frames)
    stir(model)
    assert torch.equal(model.encode_video(frames), before)
    own = model.classifier
    features = model.encode_frames(frames).mean(1)
    centred = features - features.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    wanted = scaled @ own.weight.T + own.bias
    torch.testing.assert_close(model(frames, torch.empty(0)), wanted)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "frame"])
@pytest.mark.parametrize("deep", [True, False])
def test_static_prompts_give_reversed_clips_the_same_embedding(
    deep: bool, attention: Attention, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = (StaticPrompts if deep else ShallowPrompts)(make_clip(), 3, attention)
    stir(model, scale=1.0)
    frames = make_frames(0, 2, 5, model.image_size)
    forward, backward = model.encode_video(frames), model.encode_video(frames.flip(1))
    torch.testing.assert_close(backward, forward, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "frame"])
def test_static_prompts_are_read_by_every_block(
    attention: Attention, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    model = StaticPrompts(make_clip(layers=3), 2, attention)
    frames = make_frames(0, 2, 3, model.image_size)
    before = model.encode_video(frames)
    for block in range(3):
        kept = model.prompts[block].clone()
        model.prompts[block] += torch.linspace(-1, 1, model.tower.width)
        assert (model.encode_video(frames) - before).abs().max() > 1e-4
        model.prompts[block] = kept


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "frame"])
@pytest.mark.parametrize("deep", [True, False])
def test_static_prompts_are_open_clips_blocks_with_extra_tokens(
    deep: bool, attention: Attention, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = (StaticPrompts if deep else ShallowPrompts)(make_clip(layers=3), 3, attention)
    assert len(model.prompts) == (3 if deep else 1)
    stir(model, scale=1.0)
    frames = make_frames(0, 2, 3, model.image_size)
    for video, found in zip(frames, model.encode_video(frames), strict=True):
        embedded = model.tower.embed(video)
        if attention == "joint":
            sequences = torch.cat([embedded[:1, 0], embedded[:, 1:].flatten(0, 1)])[None]
        else:
            sequences = embedded
        count = sequences.shape[1]
        for index, block in enumerate(model.tower.blocks):
            if deep or index == 0:
                prompts = model.prompts[index].expand(len(sequences), -1, -1)
                sequences = torch.cat([sequences[:, :count], prompts], dim=1)
            sequences = block(sequences)
        frame_embeddings = F.normalize(model.tower.project(sequences[:, 0]), dim=-1)
        wanted = F.normalize(frame_embeddings.mean(0), dim=-1)
        torch.testing.assert_close(found, wanted, **CLOSE)


def test_static_prompts_below_one_are_refused_by_name(make_clip: MakeClip) -> None:
    with pytest.raises(ValueError, match=r"static_prompts.*0"):
        StaticPrompts(make_clip(), 0, "joint")
