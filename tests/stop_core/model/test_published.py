"""The published code of STOP: its steps, and the laws that it breaks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.model.coupled import Dgl
from stop_core.model.published import ChangePrompts, PixelPrompts, SameConv3d, StopPublished
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
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("scope", ["batch", "video"])
def test_frame_prompts_are_scaled_by_the_change_in_the_batch_or_the_video(
    scope: Any, frames: int, stir: Stir
) -> None:
    prompts = ChangePrompts(8, 2, 9, PublishedOptions(change_scale=scope, frame_prompts=3))
    stir(prompts)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, frames, 9, 8, generator=generator)
    chosen = torch.rand(2, frames, 9, generator=generator).round()
    tokens = h.reshape(2, frames * 9, 8)
    parts = [prompts.attention(*3 * [video[None]])[0] for video in tokens]
    mixed = torch.cat(parts).reshape(2, 1, frames, 9, 8)
    # The chosen patches weigh twice.
    W_t = (prompts.change(mixed)[:, 0].sum(3) * (1 + chosen)).sum(2) / (9 * 8)
    for rows in [W_t] if scope == "batch" else list(W_t):
        low, high = rows.min(), rows.max()
        rows.copy_((rows - low) / (high - low) if high > low else torch.zeros_like(rows))
    found, features = prompts(h, chosen), prompts.convs(mixed)[:, 0]
    for channel in range(8):
        wanted = 0.05 * prompts.mlp(features[..., channel]) * (1 + W_t[..., None])
        torch.testing.assert_close(found[..., channel], wanted, **CLOSE)


@torch.no_grad()
def test_pixel_prompts_drop_out_once_before_their_last_layers_and_twice_behind(stir: Stir) -> None:
    prompts = PixelPrompts((4, 4), PublishedOptions(prompt_dropout=0.4, pixel_prompts="twice"))
    stir(prompts)
    prompts.choice.weight.zero_()  # of equal groups none is chosen
    prompts.mlp[0].weight.zero_()  # so that the prompts are constants
    seen: list[Tensor] = []
    prompts.mlp.register_forward_hook(lambda _, inputs, out: seen.extend([inputs[0], out]))
    frames = torch.zeros(2, 4, 3, 8, 8)
    assert prompts.eval()(frames)[0].ne(0).all()
    torch.manual_seed(0)
    added, _ = prompts.train()(frames)
    assert seen[2].eq(0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert added.eq(0).float().mean().item() == pytest.approx(1 - 0.6**2, abs=0.06)
    kept = added.ne(0)
    wanted = 0.05 * seen[3].movedim(-1, 2)[kept] / 0.6**2
    torch.testing.assert_close(added[kept], wanted, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 8, 9, 10])
def test_of_equal_groups_none_is_chosen_but_of_too_few_all(count: int) -> None:
    prompts = PixelPrompts((3, 3), PublishedOptions(chosen_patches=count, pixel_prompts="none"))
    prompts.choice.weight.zero_()
    frames = torch.ones(1, 2, 3, 12, 12)
    found, chosen = prompts(frames)
    assert found is frames
    assert torch.equal(chosen, torch.full((1, 2, 9), float(count >= 9)))


def test_its_layers_have_the_sizes_of_the_published_code(make_clip: MakeClip) -> None:
    model = StopPublished(make_clip(), PublishedOptions(frame_prompts=5))
    wanted = {
        "pixels.choice": (1, 3, 5, 11, 11),
        "pixels.convs.0": (9, 3, 3, 11, 11),
        "pixels.convs.1": (9, 9, 3, 11, 11),
        "pixels.convs.3": (9, 9, 3, 11, 11),
        "pixels.convs.5": (16, 9, 3, 11, 11),
        "pixels.mlp.0": (16, 16),
        "pixels.mlp.2": (3, 16),
        "changes.convs.0": (9, 1, 3, 15, 25),
        "changes.convs.2": (1, 9, 3, 15, 25),
        "changes.mlp.0": (16, model.tower.patches),
        "changes.mlp.2": (5, 16),
        "changes.change": (1, 1, 5, 11, 11),
        "changes.attention.out_proj": (24, 24),
        **{
            f"adapters.{i}.layers.{layer}": size
            for i in range(2)
            for layer, size in ((0, (32, 24)), (2, (24, 32)))
        },
        **{f"text_adapters.0.layers.{layer}": size for layer, size in ((0, (32, 8)), (2, (8, 32)))},
    }
    found = {
        name.removesuffix(".weight"): tuple(parameter.shape)
        for name, parameter in model.trainable().items()
        if name.endswith(".weight") and parameter.ndim > 1 and not name.startswith(("mix", "to_"))
    }
    assert found == wanted


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
    with pytest.raises(IndexError):
        model.encode_tokens(torch.full((1, 16), 10_000))
    for module in clip.modules():  # no hook is left behind, by a failure either
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@torch.no_grad()
def test_pixels_frames_and_blocks_are_adapted_together(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = StopPublished(make_clip(), PublishedOptions(chosen_patches=2)).eval()
    stir(model, scale=0.05)
    frames, tower = make_frames(0, 2, 3, model.image_size), model.tower
    assert model.pixels is not None
    assert model.changes is not None
    pixels, chosen = model.pixels(tower.normalise(frames.flatten(0, 1)).unflatten(0, (2, 3)))
    tokens = tower.embed_pixels(pixels.flatten(0, 1))
    changes = model.changes(tokens[:, 1:].unflatten(0, (2, 3)), chosen)
    whole = model.global_tokens.expand(2, -1, -1)
    for index, (given, adapter) in enumerate(
        zip(model.frame_prompts(3), model.adapters, strict=True)
    ):
        prompts = (given + changes).flatten(0, 1)
        whole, tokens, _ = tower.run_global_block(index, whole, tokens, prompts, parallel=adapter)
    wanted = F.normalize(tower.project(whole[:, 0]), dim=-1)
    torch.testing.assert_close(model.encode_video(frames), wanted, **CLOSE)
    adapter, x = model.adapters[0], torch.randn(3, 24)
    torch.testing.assert_close(adapter(x), 0.1 * adapter.layers(x))


def test_the_choice_of_pixels_learns_nothing(make_clip: MakeClip, make_frames: MakeFrames) -> None:
    model = StopPublished(make_clip(), PublishedOptions()).train()
    model.encode_video(make_frames(0, 2, 3, model.image_size)).square()[:, 0].sum().backward()
    assert model.pixels is not None
    assert model.changes is not None
    assert model.pixels.choice.weight.grad is None
    # Unlike the weights W^t, which are continuous.
    assert model.changes.change.weight.grad is not None
    assert model.changes.change.weight.grad.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 4), (4, 5, 30), (12, 14, 14)])
def test_a_convolution_by_fourier_transforms_is_one_with_zeros_around(
    shape: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    layer = SameConv3d(2, 3, (3, 15, 25)).double()
    x = torch.randn(2, 2, *shape, dtype=torch.float64, requires_grad=True)
    wanted = F.conv3d(x, layer.weight, layer.bias, padding="same")
    found, up = layer(x), torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted)
    tensors = x, layer.weight, layer.bias
    torch.testing.assert_close(
        torch.autograd.grad(found, tensors, up), torch.autograd.grad(wanted, tensors, up)
    )


def test_a_convolution_by_fourier_transforms_is_one_in_float32() -> None:
    layer, x = SameConv3d(1, 1, (3, 5, 5)), torch.randn(1, 1, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x.bfloat16()), layer(x.bfloat16().float()))
        assert layer(x).dtype == torch.float32
