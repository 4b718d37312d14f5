"""Laws of the methods with deep prompts in both towers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.clip.loading import FrozenClip, load_clip
from stop_core.model.coupled import Dgl, Maple, Vop
from stop_core.model.learned_context import text_tower, text_width
from stop_core.settings.method_options import DglOptions, MapleOptions, VopOptions

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]
CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def prompted_text(clip: FrozenClip, text: str, prompts_JMD: Tensor) -> Tensor:
    """One text with prompts behind its start at the first J blocks, by open_clip's parts."""
    tower, count = text_tower(clip.model), prompts_JMD.shape[1]
    (ids,) = clip.tokenize([text])
    end = int(ids.argmax())
    words = tower.token_embedding(ids[1 : end + 1])
    start = tower.token_embedding(ids[:1])
    rest = tower.token_embedding(ids[end + 1 : len(ids) - count])
    x = torch.cat([start, prompts_JMD[0], words, rest]) + tower.positional_embedding
    for index, block in enumerate(tower.transformer.resblocks):
        if 0 < index < len(prompts_JMD):
            x = torch.cat([x[:1], prompts_JMD[index], x[1 + count :]])
        x = block(x[None], attn_mask=tower.attn_mask)[0]
    embedding = tower.ln_final(x)[count + end] @ tower.text_projection
    return F.normalize(embedding, dim=-1)


@torch.no_grad()
def prompted_frames(model: Any, frames_THW3: Tensor, prompts: Callable[..., Tensor]) -> Tensor:
    """The frames of one clip with prompts behind the patches, by open_clip's blocks, [E]."""
    tokens = model.tower.embed(frames_THW3)
    count = tokens.shape[1]
    for index, block in enumerate(model.tower.blocks):
        given = prompts(index, tokens[:, :count])
        if given is not None:
            tokens = torch.cat([tokens[:, :count], given], dim=1)
        tokens = block(tokens)
    embeddings = F.normalize(model.tower.project(tokens[:, 0]), dim=-1)
    return F.normalize(embeddings.mean(0), dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_maple_maps_the_prompts_of_a_text_block_to_those_of_a_vision_block(
    depth: int, make_frames: MakeFrames
) -> None:
    torch.manual_seed(0)
    clip = load_clip("tiny")
    model = Maple(clip, MapleOptions(text_prompts=3, prompt_depth=depth))
    assert len(model.text_prompts) == min(depth, len(clip.model.transformer.resblocks))
    text = "a video of a red shape"
    wanted = prompted_text(clip, text, model.text_prompts)
    torch.testing.assert_close(model.encode_text([text])[0], wanted, **CLOSE)
    assert (wanted - clip.encode_text([text])[0]).abs().max() > 1e-3

    def prompts(index: int, tokens: Tensor) -> Tensor | None:
        if index >= len(model.text_prompts):
            return None
        return model.couple[index](model.text_prompts[index]).expand(len(tokens), -1, -1)

    frames = make_frames(0, 2, 3, model.image_size)
    wanted = torch.stack([prompted_frames(model, one, prompts) for one in frames])
    torch.testing.assert_close(model.encode_video(frames), wanted, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["static", "position", "context"])
def test_vop_prompts_a_frame_by_its_number_or_by_all_frames(
    kind: Any, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = Vop(make_clip(), VopOptions(text_prompts=2, frame_prompts=3, frame_prompt=kind))
    stir(model)
    frames = make_frames(0, 2, 4, model.image_size)

    def prompts(index: int, tokens: Tensor) -> Tensor:
        common = model.common[index].expand(len(tokens), -1, -1)
        if kind == "position":
            return common + model.by_frame[: len(tokens), index, None]
        if kind == "context":
            return common + model.from_context(model.over_frames(tokens[:, 0])[0])[:, None]
        return common

    found = model.encode_video(frames)
    wanted = torch.stack([prompted_frames(model, one, prompts) for one in frames])
    torch.testing.assert_close(found, wanted, **CLOSE)
    backwards = (found - model.encode_video(frames.flip(1))).abs().max()
    assert (backwards < 1e-5) == (kind == "static")


@torch.no_grad()
@pytest.mark.parametrize("space", ["transformer", "linear"])
def test_dgl_is_read_from_its_first_global_token(
    space: Any, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    options = DglOptions(text_prompts=5, frame_prompts=2, prompt_space=space, prompt_frames=4)
    model = Dgl(make_clip(), options)
    stir(model)
    frames = make_frames(0, 1, 3, model.image_size)
    given = model.frame_prompts(3)
    tower, batch = model.tower, 1
    whole, tokens = model.global_tokens.expand(batch, -1, -1), tower.embed(frames[0])
    for index in range(tower.depth):
        whole, tokens, _ = tower.run_global_block(index, whole, tokens, given[index])
    wanted = F.normalize(tower.project(whole[:, 0]), dim=-1)
    torch.testing.assert_close(model.encode_video(frames), wanted, **CLOSE)
    # Texts have five prompts, computed from the same tensor.
    if space == "linear":  # the same in every frame; further texts' prompts are further maps
        assert torch.equal(given, model.prompts[:, None].expand(-1, 3, -1, -1))
        maps = model.to_text(model.prompts).split(8, dim=-1)
        of_texts = torch.stack([maps[m // 2][:, m % 2] for m in range(5)], dim=1)
    else:  # frame by frame, behind those of the texts
        mixed = model.mix(model.prompts)
        assert mixed.shape[1] == 5 + 4 * 2
        for frame in range(3):
            own = mixed[:, 5 + 2 * frame : 7 + 2 * frame]
            torch.testing.assert_close(given[:, frame], own, **CLOSE)
        of_texts = model.to_text(mixed[:, :5])
    assert model.context is not None
    assert len(of_texts) == tower.depth
    torch.testing.assert_close(model.context.prompts(), of_texts, **CLOSE)
    before = model.encode_text(["left"])
    model.prompts.mul_(-1)
    assert (before - model.encode_text(["left"])).abs().max() > 1e-4


def test_prompts_start_small_and_global_tokens_at_the_cls_token() -> None:
    torch.manual_seed(0)
    clip = load_clip("tiny")
    by_position = Vop(clip, VopOptions(frame_prompt="position"))
    by_context, dgl = Vop(clip, VopOptions()), Dgl(clip, DglOptions())
    small = {
        "maple": Maple(clip, MapleOptions(text_prompts=8)).text_prompts,
        "texts": by_position.text_prompts,
        "frames": by_position.common,
        "context": by_context.from_context.weight,
        "dgl": dgl.prompts,
        "global": dgl.global_tokens - dgl.tower.cls_token(),
    }
    for name, prompts in small.items():
        assert prompts.std().item() == pytest.approx(0.02, rel=0.1), name
        assert abs(prompts.mean().item()) < 0.1 * 0.02, name
    assert not by_position.by_frame.any()
    assert not by_context.from_context.bias.any()


def test_the_layers_of_dgl_follow_the_width_of_the_tower(make_clip: MakeClip) -> None:
    for width, heads in ((24, 1), (128, 2)):
        model = Dgl(make_clip(width=width, layers=1), DglOptions())
        assert model.mix.attn.num_heads == heads
        assert model.to_text[0].out_features == 2 * width
    deeper = load_clip("tiny")  # its vision tower has more blocks than its text tower
    model = Dgl(deeper, DglOptions())
    assert model.context is not None
    wanted = prompted_text(deeper, "a red shape", model.context.prompts())
    torch.testing.assert_close(model.encode_text(["a red shape"])[0], wanted, **CLOSE)
    deeper.model.visual.transformer.resblocks = deeper.model.visual.transformer.resblocks[:1]
    assert len(Dgl(deeper, DglOptions()).prompts) == 2


@pytest.mark.parametrize(("texts", "copies"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_each_frame_prompt_of_dgl_is_mapped_to_as_many_text_prompts_as_are_needed(
    make_clip: MakeClip, texts: int, copies: int
) -> None:
    options = DglOptions(text_prompts=texts, frame_prompts=3, prompt_space="linear")
    clip = make_clip(layers=1)
    assert Dgl(clip, options).to_text.out_features == copies * text_width(clip)


def test_dgl_refuses_more_frames_than_have_prompts(make_clip: MakeClip) -> None:
    model = Dgl(make_clip(), DglOptions(prompt_frames=2))
    with pytest.raises(ValueError, match="give prompt_frames=3"):
        model.encode_video(torch.zeros(1, 3, 12, 12, 3, dtype=torch.uint8))
