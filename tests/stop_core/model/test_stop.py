"""The laws of the model: equations, invariances, reductions, gradients."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stop_core import PromptTrace, StopConfig, build_model
from stop_core.clip.loading import FrozenClip
from stop_core.model.stop import StopModel
from stop_core.settings.stop import Attention, Choice, Normalize
from tests.stop_core.reference import array, check_spatial, check_temporal, cls_attention, error

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]

PLAIN: list[Attention] = ["joint", "frame"]  # without prompts they are the plain tower
ATTENTIONS: list[Attention] = [*PLAIN, "global"]
NORMALIZE: list[Normalize] = ["per_frame", "running", "none"]
NARROW: dict[str, Any] = {"spatial_width": 4, "temporal_width": 4}
laws = settings(deadline=None, max_examples=20)

towers = st.fixed_dictionaries(
    {
        "width": st.sampled_from([12, 24]),
        "heads": st.sampled_from([1, 2, 3]),
        "layers": st.integers(1, 3),
        "patch": st.sampled_from([2, 5]),
        "grid": st.integers(1, 3),
        "embed_dim": st.sampled_from([5, 8]),
        "quick_gelu": st.booleans(),
    }
)


@st.composite
def configs(draw: st.DrawFn, tower: dict[str, Any]) -> StopConfig:
    """Any settings that fit the tower."""
    return StopConfig(
        n_s=draw(st.integers(0, tower["grid"] ** 2)),
        alpha=draw(st.sampled_from([0.0, 0.5, 0.8, 1.0])),
        beta=draw(st.sampled_from([0.0, 1.0, 2.5])),
        eta=draw(st.integers(0, 20)) / 4,
        max_prompts=draw(st.integers(1, 4)),
        spatial_width=draw(st.integers(1, 5)),
        temporal_width=draw(st.integers(1, 5)),
        depth=draw(st.none() | st.integers(1, tower["layers"])),
        share=draw(st.booleans()),
        attention=draw(st.sampled_from(PLAIN)),
        normalize=draw(st.sampled_from(NORMALIZE)),
        selection=draw(st.sampled_from(["ste", "hard"])),
        difference=draw(st.sampled_from(["prompted", "plain"])),
        dropout=draw(st.sampled_from([0.0, 0.4])),
    )


def build(clip: FrozenClip, config: StopConfig, seed: int = 0) -> StopModel:
    torch.manual_seed(seed)
    return StopModel(clip, config).eval()


def encode_on_open_clips_blocks(
    model: StopModel, frames: Tensor, traces: list[PromptTrace], video: int
) -> Tensor:
    """One video in float64: its traced tokens through open_clip's own blocks, empty slots left out.

    The order of tokens is the paper's: CLS, h_1, p_2, h_2, p_3, h_3, ... Checks on the way that
    every trace starts from what the block before it gave, and that A_raw is the block's own.
    """
    visual = copy.deepcopy(model.clip.visual).double()
    joint = model.config.attention == "joint"
    mean, std = torch.tensor(visual.image_mean), torch.tensor(visual.image_std)
    pixels = ((frames[video] / 255 - mean) / std).permute(0, 3, 1, 2).double()
    embedded = visual._embeds(pixels)
    cls = embedded[:1, 0] if joint else embedded[:, 0]
    h = embedded[:, 1:]
    count, patches, width = h.shape
    gaps = [h.new_zeros(0, width)] * count  # the prompts of the gap before each frame
    for index, block in enumerate(visual.transformer.resblocks):
        if index < len(traces):
            trace = traces[index]
            assert error(trace.h[video], array(h)) < 1e-5
            wanted = cls_attention(array(cls)[None], array(h)[None], block, model.tower.heads)
            assert error(trace.A_raw[video], wanted[0]) < 1e-5
            h = trace.h_s[video].double()
            present = [p[m] for p, m in zip(trace.p_t[video], trace.p_t_mask[video], strict=True)]
            gaps = [h.new_zeros(0, width), *(prompts.double() for prompts in present)]
        if joint:
            parts = [part for frame in range(count) for part in (gaps[frame], h[frame])]
            out = block(torch.cat([cls, *parts])[None])[0]
            cls, rest = out[:1], out[1:]
            sizes = [len(part) for part in parts]
            pieces = rest.split(sizes)
            gaps, h = list(pieces[::2]), torch.stack(pieces[1::2])
        else:
            outs = [
                block(torch.cat([cls[frame : frame + 1], gaps[frame], h[frame]])[None])[0]
                for frame in range(count)
            ]
            cls = torch.stack([out[0] for out in outs])
            gaps = [out[1 : len(out) - patches] for out in outs]
            h = torch.stack([out[len(out) - patches :] for out in outs])
    embeddings = F.normalize(visual.ln_post(cls) @ visual.proj, dim=-1)
    return F.normalize(embeddings.mean(0), dim=-1)


@laws
@given(data=st.data())
def test_law_1_every_equation_holds_in_the_trace_of_every_prompted_block(
    data: st.DataObject, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    tower = data.draw(towers, "tower")
    config = data.draw(configs(tower), "config")
    batch, count = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 4)), "videos, frames")
    seed = data.draw(st.integers(0, 10_000), "seed")
    model = build(make_clip(seed, **tower), config, seed)
    stir(model, seed, 0.1)
    frames = make_frames(seed, batch, count, model.image_size)

    traces = model.trace(frames)
    assert len(traces) == (tower["layers"] if config.depth is None else config.depth)
    grid = (tower["grid"], tower["grid"])
    for block, trace in enumerate(traces):
        layer = model.prompting[0 if config.share else block]
        check_spatial(trace, layer.spatial, config, grid, tolerance=1e-5)
        check_temporal(trace, layer.temporal, config, grid, tolerance=1e-5)

    with torch.no_grad():
        embeddings = model.encode_video(frames)
        for video in range(batch):
            wanted = encode_on_open_clips_blocks(model, frames, traces, video)
            assert error(embeddings[video], array(wanted)) < 1e-5


def test_law_1_a_trace_uses_evaluation_mode_and_restores_the_mode(
    make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    model = build(make_clip(), StopConfig(n_s=2, dropout=0.5))
    frames = make_frames(0, 2, 3, model.image_size)
    wanted = model.trace(frames)
    model.train()
    found = model.trace(frames)
    assert model.training
    for one, other in zip(found, wanted, strict=True):
        for name, value in vars(one).items():
            assert torch.equal(value, getattr(other, name)), name
            assert not value.requires_grad


def clips_of_many_kinds(make_frames: MakeFrames, seed: int, count: int, size: int) -> Tensor:
    """Noise, black, static, a cut between two stills, every frame twice, and one odd frame."""
    noise = make_frames(seed, 1, count, size)[0]
    still = noise[:1].expand(count, -1, -1, -1)
    late = torch.arange(count) >= count // 2
    cut = torch.where(late[:, None, None, None], noise[-1], noise[0])
    twice = noise.repeat_interleave(2, dim=0)[:count]
    odd = still.clone()
    odd[count // 2] = noise[-1]
    return torch.stack([noise, torch.zeros_like(noise), still, cut, twice, odd])


@laws
@given(data=st.data())
def test_law_2_an_embedding_does_not_depend_on_batch_or_order(
    data: st.DataObject, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    tower = data.draw(towers, "tower")
    config = data.draw(configs(tower), "config")
    config = replace(config, choose=data.draw(st.sampled_from(get_args(Choice)), "choose"))
    count = data.draw(st.integers(1, 6), "frames")
    seed = data.draw(st.integers(0, 10_000), "seed")
    model = build(make_clip(seed, **tower), config, seed)
    stir(model, seed, 0.1)
    clips = clips_of_many_kinds(make_frames, seed, count, model.image_size)
    order = data.draw(st.permutations(range(len(clips))), "order")
    with torch.no_grad():
        alone = torch.cat([model.encode_video(video[None]) for video in clips])
        together = model.encode_video(clips)
        shuffled = model.encode_video(clips[list(order)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled, alone[list(order)], rtol=0, atol=1e-5)


@torch.no_grad()
def plain_tower(clip: FrozenClip, frames: Tensor, attention: Attention) -> Tensor:
    """The frozen tower as open_clip computes it, [B, E]."""
    visual = clip.model.visual
    mean, std = torch.tensor(visual.image_mean), torch.tensor(visual.image_std)
    out = []
    for video in frames:
        pixels = ((video / 255 - mean) / std).permute(0, 3, 1, 2)
        if attention == "frame":
            embedding = clip.model.encode_image(pixels, normalize=True).mean(0)
        else:
            embedded = visual._embeds(pixels)
            tokens = torch.cat([embedded[:1, 0], embedded[:, 1:].flatten(0, 1)])
            embedding = visual._pool(visual.transformer(tokens[None]))[0][0] @ visual.proj
        out.append(F.normalize(embedding, dim=-1))
    return torch.stack(out)


@laws
@given(data=st.data())
def test_law_3_without_prompts_the_model_is_the_plain_frozen_tower(
    data: st.DataObject, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    tower = data.draw(towers, "tower")
    attention = data.draw(st.sampled_from(PLAIN), "attention")
    depth = data.draw(st.none() | st.integers(1, tower["layers"]), "depth")
    count = data.draw(st.integers(1, 5), "frames")
    seed = data.draw(st.integers(0, 10_000), "seed")
    clip = make_clip(seed, **tower)
    model = build(clip, StopConfig(n_s=0, eta=0, attention=attention, depth=depth, **NARROW))
    frames = make_frames(seed, 2, count, model.image_size)
    with torch.no_grad():
        found = model.encode_video(frames)
        stir(model, seed, 100.0)
        assert torch.equal(model.encode_video(frames), found), "a prompting weight changed it"
    wanted = plain_tower(clip, frames, attention)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", PLAIN)
def test_law_3_prompts_do_change_the_plain_tower(
    attention: Attention, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    clip = make_clip()
    for only in ({"n_s": 2, "eta": 0.0}, {"n_s": 0, "eta": 4.0}):
        model = build(clip, StopConfig(attention=attention, **only))
        stir(model)
        frames = make_frames(0, 2, 3, model.image_size)
        with torch.no_grad():
            moved = model.encode_video(frames) - plain_tower(clip, frames, attention)
        assert (moved.abs().amax(-1) > 1e-3).all()


def gradients(model: StopModel, frames: Tensor) -> dict[str, Tensor | None]:
    """The gradient of every trainable tensor after one training step's backward pass."""
    model.train()
    texts = model.encode_text(["left", "right", "up"])
    labels = torch.arange(len(frames)) % len(texts)
    F.cross_entropy(model(frames, texts), labels).backward()
    return {name: parameter.grad for name, parameter in model.trainable().items()}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_law_5_every_trainable_tensor_has_a_gradient_from_the_first_step(
    attention: Attention,
    normalize: Normalize,
    count: int,
    make_clip: MakeClip,
    make_frames: MakeFrames,
) -> None:
    clip = make_clip()
    for n_s in (1, 2, 8, 9):  # of 9 patches
        config = StopConfig(
            n_s=n_s, attention=attention, normalize=normalize, share=n_s % 2 == 0, depth=1 + n_s % 2
        )
        model = build(clip, config, seed=n_s)
        for name, gradient in gradients(
            model, make_frames(n_s, 3, count, model.image_size)
        ).items():
            assert gradient is not None, (n_s, name)
            assert gradient.isfinite().all(), (n_s, name)
            assert gradient.any(), (n_s, name)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("selector", ["spatial.dynamics", "temporal.change"])
def test_law_5_with_hard_selection_the_selector_gets_no_gradient(
    attention: Attention,
    normalize: Normalize,
    selector: str,
    make_clip: MakeClip,
    make_frames: MakeFrames,
) -> None:
    config = StopConfig(n_s=2, attention=attention, normalize=normalize, selection="hard")
    model = build(make_clip(), config)
    found = gradients(model, make_frames(0, 3, 4, model.image_size))
    for name, gradient in found.items():
        learns = gradient is not None and bool(gradient.any())
        if selector in name:
            assert not learns, name
        elif "spatial.dynamics" not in name and "temporal.change" not in name:
            assert learns, name


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_law_5_straight_through_and_hard_selection_give_the_same_embedding(
    attention: Attention,
    normalize: Normalize,
    make_clip: MakeClip,
    make_frames: MakeFrames,
    stir: Stir,
) -> None:
    clip = make_clip()
    frames = make_frames(0, 3, 4, clip.model.visual.image_size[0])
    embeddings = []
    for selection in ("ste", "hard"):
        config = StopConfig(
            n_s=3, attention=attention, normalize=normalize, selection=selection, **NARROW
        )
        model = build(clip, config)
        stir(model)
        embeddings.append(model.encode_video(frames).detach())
    torch.testing.assert_close(embeddings[0], embeddings[1], rtol=0, atol=1e-6)


def moving_square(count: int, size: int) -> Tensor:
    """A white square that crosses a black frame from left to right, [1, T, H, W, 3]."""
    frames = torch.zeros(1, count, size, size, 3, dtype=torch.uint8)
    side = size // 3
    for frame in range(count):
        left = frame * (size - side) // (count - 1)
        frames[0, frame, side : 2 * side, left : left + side] = 255
    return frames


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_law_6_reversing_a_moving_scene_changes_its_embedding(
    attention: Attention, normalize: Normalize, make_clip: MakeClip
) -> None:
    model = build(make_clip(), StopConfig(n_s=2, attention=attention, normalize=normalize))
    frames = moving_square(5, model.image_size)
    moved = (model.encode_video(frames.flip(1)) - model.encode_video(frames)).abs().max()
    assert moved > 1e-4  # ten times the rounding error


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_law_7_and_9_any_tower_any_length_and_any_n_s(
    attention: Attention, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    for width, heads, patch, grid in ((12, 3, 3, 1), (20, 5, 2, 2), (16, 1, 5, 3)):
        clip = make_clip(width=width, heads=heads, patch=patch, grid=grid, embed_dim=6)
        for n_s in range(grid**2 + 1):
            config = StopConfig(n_s=n_s, attention=attention, share=n_s % 2 == 0, **NARROW)
            model = build(clip, config)
            for count in (1, 2, 7):
                frames = make_frames(n_s, 2, count, patch * grid)
                embeddings = model.encode_video(frames)
                assert embeddings.shape == (2, 6)
                torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
                for trace in model.trace(frames):
                    assert (trace.r.sum(-1) == n_s).all()
                    assert trace.N_t.shape == (2, count - 1)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_law_9_a_clip_of_one_frame_trains(
    attention: Attention, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    model = build(make_clip(), StopConfig(n_s=2, attention=attention))
    for name, gradient in gradients(model, make_frames(0, 3, 1, model.image_size)).items():
        learns = gradient is not None and bool(gradient.any())
        assert learns == ("spatial" in name or name == "global_tokens"), name


@torch.no_grad()
def test_frames_of_a_black_clip_get_exactly_n_s_prompts(make_clip: MakeClip) -> None:
    clip = make_clip()
    clip.model.visual.positional_embedding.zero_()  # all patches of a frame are tied
    frames = torch.zeros(1, 4, 12, 12, 3, dtype=torch.uint8)
    for normalize in NORMALIZE:
        # In frame attention the first frame differs: it has no gap before it.
        config = StopConfig(n_s=4, normalize=normalize, attention="joint")
        for trace in build(clip, config).trace(frames):
            assert (trace.r.sum(-1) == 4).all()
            assert torch.equal(trace.r[:, 1:], trace.r[:, :-1])


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_contents_of_masked_slots_have_no_effect(
    attention: Attention,
    make_clip: MakeClip,
    make_frames: MakeFrames,
    stir: Stir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(make_clip(layers=3), StopConfig(n_s=2, attention=attention, depth=2))
    stir(model)
    frames = make_frames(0, 2, 4, model.image_size)
    masks = [trace.p_t_mask for trace in model.trace(frames)]
    assert any(not mask.all() for mask in masks)
    before = model.encode_video(frames)
    prompter = model.prompting[0].temporal.prompter
    make_prompts, calls = prompter.forward, iter(masks)

    def filled(d: Tensor, change: Tensor) -> Tensor:
        prompts = make_prompts(d, change)
        return prompts.where(next(calls)[..., None], 1e3 * prompts.flip(-1) + 7)

    monkeypatch.setattr(prompter, "forward", filled)
    assert torch.equal(model.encode_video(frames), before)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_prompts_of_the_first_block_are_carried_through_the_tower(
    attention: Attention, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    clip = make_clip(layers=3)
    frames = make_frames(0, 2, 3, clip.model.visual.image_size[0])
    embeddings = []
    for depth in (1, 2, 3):
        model = build(clip, StopConfig(n_s=2, attention=attention, depth=depth))
        stir(model)
        assert len(model.trace(frames)) == depth
        embeddings.append(model.encode_video(frames))
    for one, other in ((0, 1), (1, 2)):
        assert (embeddings[one] - embeddings[other]).abs().max() > 1e-4


def test_there_is_one_layer_per_prompted_block_or_one_with_share(
    make_clip: MakeClip,
) -> None:
    clip = make_clip(layers=3)

    def count(**fields: Any) -> int:
        state = build(clip, StopConfig(n_s=2, **fields)).prompt_state_dict()
        return sum(value.numel() for value in state.values())

    assert count(share=True) == count(share=True, depth=1) == count(share=False, depth=1)
    assert count(share=False, depth=2) == 2 * count(share=True)
    assert count(share=False) == 3 * count(share=True)


def test_settings_that_do_not_fit_the_tower_are_refused_by_name(make_clip: MakeClip) -> None:
    clip = make_clip(layers=2, grid=3)
    with pytest.raises(ValueError, match=r"n_s.*at most 9.*got 10"):
        StopModel(clip, StopConfig(n_s=10))
    with pytest.raises(ValueError, match=r"depth.*at most 2.*got 3"):
        StopModel(clip, StopConfig(depth=3, n_s=1))


@pytest.mark.parametrize(
    "name", ["RN50", "convnext_base", "ViT-B-16-SigLIP", "ViT-L-14-CLIPA", "coca_ViT-B-32"]
)
def test_an_unsupported_tower_is_refused_by_name_before_a_download(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("a tower that does not fit was built")

    monkeypatch.setattr("open_clip.create_model", built)
    with pytest.raises(ValueError, match=rf"{name} .*ViT-B-16"):
        build_model(name)


@pytest.mark.slow
@torch.no_grad()
def test_law_7_a_real_vit_keeps_the_laws(make_frames: MakeFrames) -> None:
    torch.manual_seed(0)
    model = build_model("ViT-S-32-alt", "random", config=StopConfig(n_s=6, depth=3)).eval()
    frames = make_frames(0, 2, 2, model.image_size)
    traces = model.trace(frames)
    assert [tuple(trace.h.shape) for trace in traces] == [(2, 2, 49, 384)] * 3
    for trace in traces:
        assert (trace.r.sum(-1) == 6).all()
    together = model.encode_video(frames)
    alone = torch.cat([model.encode_video(video[None]) for video in frames])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    for video in range(2):
        wanted = encode_on_open_clips_blocks(model, frames, traces, video)
        assert error(together[video], array(wanted)) < 1e-5


def test_a_model_is_built_with_the_given_or_the_default_settings() -> None:
    config = StopConfig(n_s=3, max_prompts=2, spatial_width=4, temporal_width=4)
    built = build_model("tiny", config=config)
    assert built.config == config
    assert build_model("tiny").config == StopConfig()
    assert not built.checkpoint_activations  # costs time, so only on request


@torch.no_grad()
def test_each_rule_chooses_its_patches(make_clip: MakeClip, make_frames: MakeFrames) -> None:
    frames = make_frames(0, 2, 6, 12)
    found = {}
    for choose in get_args(Choice):
        model = build(make_clip(), StopConfig(n_s=4, choose=choose, **NARROW))
        found[choose] = model.trace(frames)
        assert all((block.r.sum(-1) == 4).all() for block in found[choose])
    lowest, learned = found["lowest"][0], found["learned"][0]
    assert (lowest.r * learned.r).sum(-1).eq(0).all(), "4 and 4 of 9 patches"
    assert (learned.W_s * learned.r).sum() > (lowest.W_s * lowest.r).sum()
    fixed = torch.cat([block.r for block in found["fixed"]])
    assert (fixed == fixed[0, 0]).all()
    first, second = (block.r for block in found["random"])
    assert not torch.equal(first, second)
    assert len(first[0].unique(dim=0)) > 3, "another draw for each frame"
    assert torch.equal(first[0], first[1]), "the same for each video of an evaluation"


@pytest.mark.parametrize("choose", ["random", "fixed"])
def test_drawn_patches_follow_the_seed_and_are_part_of_the_model(
    choose: Choice, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    config = StopConfig(n_s=4, choose=choose, **NARROW)
    frames = make_frames(0, 1, 5, 12)
    one, same, other = (build(make_clip(), config, seed) for seed in (0, 0, 1))
    chosen = [torch.cat([block.r for block in m.trace(frames)]) for m in (one, same, other)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    other.load_prompt_state_dict(one.prompt_state_dict())
    assert torch.equal(torch.cat([block.r for block in other.trace(frames)]), chosen[0])


@torch.no_grad()
def test_random_patches_are_new_in_every_step_and_follow_its_seed(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = build(make_clip(), StopConfig(n_s=4, choose="random", **NARROW)).train()
    stir(model)
    frames, outputs = make_frames(0, 2, 4, 12), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(model.encode_video(frames))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)


def test_a_trace_has_no_gradient(make_clip: MakeClip, make_frames: MakeFrames) -> None:
    model = build(make_clip(), StopConfig(n_s=2, **NARROW))
    for block in model.trace(make_frames(0, 1, 3, 12)):
        assert not any(getattr(value, "requires_grad", False) for value in vars(block).values())
