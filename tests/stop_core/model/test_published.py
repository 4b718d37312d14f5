"""The published code of STOP: its steps, and the laws that it breaks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.model.coupled import Dgl
from stop_core.model.published import ChangePrompts, PixelPrompts, StopPublished
from stop_core.settings.method_options import DglOptions, PublishedOptions

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]
CLOSE = {"rtol": 0, "atol": 1e-5}
NOTHING: dict[str, Any] = {
    "pixel_prompts": "none",
    "change_prompts": False,
    "parallel_adapters": False,
}


@torch.no_grad()
def test_without_its_parts_it_is_dgl(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    published = StopPublished(make_clip(), PublishedOptions(**NOTHING))
    dgl = Dgl(make_clip(), DglOptions())
    stir(dgl)
    published.load_prompt_state_dict(dgl.prompt_state_dict())
    frames = make_frames(0, 2, 3, dgl.image_size)
    assert torch.equal(published.encode_video(frames), dgl.encode_video(frames))
    assert torch.equal(published.encode_text(["left"]), dgl.encode_text(["left"]))


@torch.no_grad()
@pytest.mark.parametrize("groups", ["comb", "patches"])
@pytest.mark.parametrize("pixels", ["twice", "chosen"])
def test_groups_of_pixels_are_prompted(groups: Any, pixels: Any, stir: Stir) -> None:
    options = PublishedOptions(pixel_groups=groups, pixel_prompts=pixels, chosen_patches=2)
    prompts = PixelPrompts((3, 3), options).eval()
    stir(prompts)
    frames = torch.randn(2, 4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found, chosen = prompts(frames)
    assert (chosen.sum(-1) == 2).all()
    scores = prompts.choice(frames.transpose(1, 2))[:, 0]
    added = (found - frames) / 0.05
    features = prompts.convs(frames.transpose(1, 2)).permute(0, 2, 3, 4, 1)
    p = prompts.mlp(features).permute(0, 1, 4, 2, 3)
    means = torch.zeros(2, 4, 3, 3)
    for row in range(12):
        for column in range(12):
            at = (row % 3, column % 3) if groups == "comb" else (row // 4, column // 4)
            means[:, :, at[0], at[1]] += scores[:, :, row, column] / 16
            times = chosen.unflatten(2, (3, 3))[:, :, at[0], at[1]] + (pixels == "twice")
            wanted = p[:, :, :, row, column] * times[..., None]
            torch.testing.assert_close(added[:, :, :, row, column], wanted, rtol=1e-3, atol=1e-4)
    best = means.flatten(2).topk(2).indices
    assert torch.equal(F.one_hot(best, 9).sum(2).float(), chosen)


@torch.no_grad()
def test_weights_are_rescaled_over_the_batch_or_the_video(stir: Stir) -> None:
    by_batch = ChangePrompts(8, 2, 9, PublishedOptions())
    stir(by_batch)
    by_video = ChangePrompts(8, 2, 9, PublishedOptions(change_scale="video"))
    by_video.load_state_dict(by_batch.state_dict())
    h = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    h[1:] *= 3
    chosen = torch.zeros(3, 4, 9)
    chosen[:, :, :2] = 1
    together, alone = by_batch(h, chosen), by_batch(h[:1], chosen[:1])
    assert (together[:1] - alone).abs().max() > 1e-4  # it depends on the other videos
    torch.testing.assert_close(by_video(h, chosen)[:1], by_video(h[:1], chosen[:1]), **CLOSE)
    torch.testing.assert_close(by_video(h[:1], chosen[:1]), alone, **CLOSE)
    # The chosen patches weigh twice.
    assert (by_video(h, chosen) - by_video(h, 0 * chosen)).abs().max() > 1e-5
    assert by_video(h[:, :1], chosen[:, :1]).isfinite().all()  # one frame has no spread


@torch.no_grad()
def test_adapters_add_to_the_mlp_of_every_block_of_both_towers(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    options: dict[str, Any] = {**NOTHING, "parallel_adapters": True}
    model = StopPublished(make_clip(), PublishedOptions(**options)).eval()
    stir(model)
    assert len(model.adapters) == model.tower.depth
    # A text, by open_clip's parts.
    clip = model.clip
    assert model.context is not None
    prompts, (ids,) = model.context.prompts(), model.tokenize(["left"])
    count = prompts.shape[1]
    ids = model.read_tokens(ids[None])[0]
    x = clip.token_embedding(ids)
    x = torch.cat([x[:1], prompts[0], x[1 + count :]]) + clip.positional_embedding
    for block, adapter in zip(clip.transformer.resblocks, model.text_adapters, strict=True):
        normed = block.ln_1(x)[None]
        x = x + block.attn(normed, normed, normed, attn_mask=clip.attn_mask)[0][0]
        x = x + block.mlp(block.ln_2(x)) + adapter(x)
    wanted = F.normalize(clip.ln_final(x)[ids.argmax()] @ clip.text_projection, dim=-1)
    torch.testing.assert_close(model.encode_text(["left"])[0], wanted, **CLOSE)
    # Frames: the adapters of a block see its tokens behind the attention.
    frames = make_frames(0, 2, 3, model.image_size)
    before = model.encode_video(frames)
    for adapter in model.adapters:
        adapter.layers[2].weight.zero_()
        adapter.layers[2].bias.zero_()
    plain = model.encode_embedded(model.embed_frames(frames), model.frame_prompts(3))
    torch.testing.assert_close(model.encode_video(frames), plain, **CLOSE)
    assert (before - plain).abs().max() > 1e-3
    assert not any(block.ln_2._forward_pre_hooks for block in clip.transformer.resblocks)


def test_the_choice_of_pixels_learns_nothing(make_clip: MakeClip, make_frames: MakeFrames) -> None:
    model = StopPublished(make_clip(), PublishedOptions()).train()
    model.encode_video(make_frames(0, 2, 3, model.image_size)).square()[:, 0].sum().backward()
    assert model.pixels is not None
    assert model.changes is not None
    assert model.pixels.choice.weight.grad is None
    # Unlike the weights W^t, which are continuous.
    assert model.changes.change.weight.grad is not None
    assert model.changes.change.weight.grad.any()
