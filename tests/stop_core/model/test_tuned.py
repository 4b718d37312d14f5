"""Laws of the methods that train weights of CLIP, or a transformer over its frame embeddings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.model.baselines import ZeroShot
from stop_core.model.methods import build_method
from stop_core.model.tuned import Clip4Clip, LoraClip, LowRankUpdate, SequenceTransformer, VifiClip
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.method_options import MOST_FRAMES, LoraOptions, SequenceOptions

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]
CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def encode_images(clip: FrozenClip, frames: Tensor, *, normalize: bool = True) -> Tensor:
    """open_clip's own embeddings of the frames of one clip, [T, E]."""
    visual = clip.model.visual
    mean, std = torch.tensor(visual.image_mean), torch.tensor(visual.image_std)
    pixels = ((frames / 255 - mean) / std).permute(0, 3, 1, 2)
    return clip.model.encode_image(pixels, normalize=normalize)


@torch.no_grad()
@pytest.mark.parametrize("method", ["clip4clip", "lora"])
@pytest.mark.parametrize("frames", [1, 3])
def test_training_starts_at_zero_shot_clip(
    frames: int, method: str, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip(quick_gelu=True)
    model, plain = build_method(ExperimentConfig(method=method), clip, 0), ZeroShot(clip)
    clips = make_frames(0, 3, frames, model.image_size)
    torch.testing.assert_close(model.encode_video(clips), plain.encode_video(clips), **CLOSE)
    texts = plain.encode_text(["left", "right"])
    torch.testing.assert_close(model.encode_text(["left", "right"]), texts, **CLOSE)
    torch.testing.assert_close(model(clips, texts), plain(clips, texts), rtol=0, atol=1e-4)


def fine_tune(model: VideoModel, frames: Tensor, steps: int = 2) -> None:
    """Runs steps of training in which the texts are embedded again, as in the trainer."""
    optimizer = torch.optim.AdamW(model.train().trainable().values(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(frames, model.encode_text(["left", "right", "up"]))
        F.cross_entropy(logits, torch.arange(len(frames)) % 3).backward()
        optimizer.step()
    model.eval()


def test_clip4clip_trains_both_towers_and_not_the_temperature(
    make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    model = Clip4Clip(make_clip())
    fine_tune(model, make_frames(0, 3, 2, model.image_size), steps=1)
    trained = model.trainable()
    everything = {name for name, _ in model.clip.named_parameters()}
    assert {name.removeprefix("clip.") for name in trained} == everything - {"logit_scale"}
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_clip4clip_changes_no_bit_of_the_shared_clip(
    make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip()
    other, model = ZeroShot(clip), Clip4Clip(clip)
    frames = make_frames(0, 3, 2, model.image_size)
    frozen = {name: value.clone() for name, value in clip.model.state_dict().items()}
    videos, texts = other.encode_video(frames), other.encode_text(["left", "right"])
    fine_tune(model, frames)
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert torch.equal(other.encode_video(frames), videos)
    assert torch.equal(other.encode_text(["left", "right"]), texts)


@torch.no_grad()
def test_clip4clip_uses_its_current_weights(make_clip: MakeClip, make_frames: MakeFrames) -> None:
    model, other = Clip4Clip(make_clip(seed=0)), Clip4Clip(make_clip(seed=1))
    frames = make_frames(0, 3, 2, model.image_size)
    before = other.encode_video(frames)
    with torch.enable_grad():
        fine_tune(model, frames)
    # Another model with this checkpoint gives the same result.
    other.load_prompt_state_dict(model.prompt_state_dict())
    assert torch.equal(other.encode_video(frames), model.encode_video(frames))
    assert torch.equal(other.encode_text(["a", "b"]), model.encode_text(["a", "b"]))
    assert (other.encode_video(frames) - before).abs().max() > 1e-3
    # open_clip's own encoders on these weights, without anything that was folded earlier.
    trained = FrozenClip("trained", model.clip, model._clip.tokenize)
    wanted = [encode_images(trained, video).mean(0) for video in frames]
    averaged = F.normalize(torch.stack(wanted), dim=-1)
    torch.testing.assert_close(model.encode_video(frames), averaged, **CLOSE)


def test_clip4clip_refuses_the_same_frames_as_other_methods(make_clip: MakeClip) -> None:
    with pytest.raises(ValueError, match=r"5x5.*12x12"):
        Clip4Clip(make_clip()).encode_video(torch.zeros(1, 2, 5, 5, 3, dtype=torch.uint8))


@torch.no_grad()
def test_vifi_clip_averages_before_it_normalises(
    make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip()
    model = VifiClip(clip)
    frames = make_frames(0, 2, 3, model.image_size)
    wanted = torch.stack([encode_images(clip, one, normalize=False).mean(0) for one in frames])
    found = model.encode_video(frames)
    torch.testing.assert_close(found, F.normalize(wanted, dim=-1), **CLOSE)
    assert (found - Clip4Clip(clip).encode_video(frames)).abs().max() > 1e-4


@pytest.mark.parametrize("towers", ["vision", "both"])
def test_lora_trains_an_update_of_low_rank_of_the_attention(
    towers: Any, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip()
    options = LoraOptions(lora_rank=2, lora_scale=0.5, lora_towers=towers)
    model = LoraClip(clip, options)
    assert model.trains_text is (towers == "both")
    fine_tune(model, make_frames(0, 3, 2, model.image_size))
    plain = dict(clip.model.named_parameters())
    changed = 0
    for name, module in model.clip.named_modules():
        if not hasattr(module, "parametrizations"):
            continue
        changed += 1
        update = module.parametrizations.in_proj_weight[0]
        difference = module.in_proj_weight - plain[f"{name}.in_proj_weight"]
        parts = zip(difference.chunk(3), update.up, update.down, strict=True)
        for part, up, down in parts:
            torch.testing.assert_close(part, 0.5 * up @ down, **CLOSE)
            assert 1 <= torch.linalg.matrix_rank(part, rtol=1e-2) <= 2
    assert changed == (3 if towers == "both" else 2)
    rest = {name for name in model.trainable() if not name.endswith((".up", ".down"))}
    assert rest == set()


@torch.no_grad()
def test_lora_with_its_sum_written_into_open_clip_is_the_same_model(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = LoraClip(make_clip(), LoraOptions())
    stir(model)
    frames = make_frames(0, 2, 3, model.image_size)
    merged = make_clip()
    for name, parameter in merged.model.named_parameters():
        if name.endswith("in_proj_weight"):
            parameter.copy_(model.clip.get_submodule(name.rpartition(".")[0]).in_proj_weight)
    wanted, found = ZeroShot(merged), model
    torch.testing.assert_close(found.encode_video(frames), wanted.encode_video(frames), **CLOSE)
    texts = ["left", "right"]
    torch.testing.assert_close(found.encode_text(texts), wanted.encode_text(texts), **CLOSE)
    assert (found.encode_text(texts) - ZeroShot(make_clip()).encode_text(texts)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 3])
def test_the_sequence_transformer_sees_the_order_of_frames(
    layers: int, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    torch.manual_seed(0)
    clip = make_clip()
    model = SequenceTransformer(clip, SequenceOptions(layers, tune_towers=False))
    frames = make_frames(0, 2, 4, model.image_size)
    embedded = torch.stack([encode_images(clip, one, normalize=False) for one in frames])
    tokens = embedded + model.positions[:4]
    for block in model.sequence:
        tokens = block(tokens)
    wanted = F.normalize(F.normalize(embedded + tokens, dim=-1).mean(1), dim=-1)
    torch.testing.assert_close(model.encode_video(frames), wanted, **CLOSE)
    backwards = model.encode_video(frames.flip(1))
    assert (model.encode_video(frames) - backwards).abs().max() > 1e-4
    assert not any(name.startswith("clip.") for name in model.trainable())
    assert not model.trains_text


def test_the_sequence_transformer_starts_as_the_text_tower_where_it_fits() -> None:
    clip = load_clip("tiny")
    blocks = clip.model.transformer.resblocks
    assert clip.model.text_projection.shape[1] == blocks[0].ln_1.normalized_shape[0]
    model = SequenceTransformer(clip, SequenceOptions(sequence_layers=len(blocks) + 1))
    for own, of_text in zip(model.sequence, blocks, strict=False):
        for name, value in of_text.state_dict().items():
            assert torch.equal(own.state_dict()[name], value)
    known = clip.model.positional_embedding
    assert torch.equal(model.positions[: len(known)], known)
    assert all(p.requires_grad for p in model.sequence.parameters())
    assert not any(p.requires_grad for p in blocks.parameters())
    own = {id(parameter) for parameter in model.sequence.parameters()}
    assert not own & {id(parameter) for parameter in model.clip.parameters()}
    assert model.trains_text


def test_a_sequence_transformer_that_fits_no_text_tower_starts_at_random(
    make_clip: MakeClip,
) -> None:
    for embed_dim, heads in ((12, 1), (130, 2)):
        clip = make_clip(embed_dim=embed_dim)
        model = SequenceTransformer(clip, SequenceOptions(sequence_layers=2))
        assert [block.attn.num_heads for block in model.sequence] == [heads] * 2
        assert model.positions.shape == (MOST_FRAMES, embed_dim)
        assert model.positions.std().item() == pytest.approx(0.01, rel=0.15)


def test_an_update_of_low_rank_starts_at_zero_and_keeps_the_type_of_the_weight() -> None:
    torch.manual_seed(0)
    update = LowRankUpdate(64, 8, 2.0)
    assert update.down.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert not update.up.any()
    weight = torch.randn(192, 64).bfloat16()
    assert torch.equal(update(weight), weight)
    assert update(weight).dtype == torch.bfloat16


def test_a_clip_with_more_frames_than_positions_is_refused(make_clip: MakeClip) -> None:
    frames = torch.zeros(1, MOST_FRAMES + 1, 12, 12, 3, dtype=torch.uint8)
    for method in ("clip4clip-seqtransf", "aim"):
        model = build_method(ExperimentConfig(method=method), make_clip(), 0)
        with pytest.raises(ValueError, match=rf"{MOST_FRAMES} frames.*have {MOST_FRAMES + 1}"):
            model.encode_video(frames)
