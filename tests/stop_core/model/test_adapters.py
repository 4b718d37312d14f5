"""Laws of the adapters: they start at the frozen tower, and see what their papers let them see."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.clip.loading import FrozenClip
from stop_core.model.adapters import Aim, Bottleneck, ConvAdapter, StAdapter
from stop_core.model.baselines import ZeroShot
from stop_core.model.video_model import VideoModel
from stop_core.settings.method_options import AimOptions, StAdapterOptions

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]
Stir = Callable[..., None]
CLOSE = {"rtol": 0, "atol": 1e-5}
BUILD: dict[str, Callable[[FrozenClip], VideoModel]] = {
    "st-adapter": lambda clip: StAdapter(clip, StAdapterOptions()),
    "st-adapter, 3x3x3": lambda clip: StAdapter(clip, StAdapterOptions(adapter_kernel="3x3x3")),
    "aim": lambda clip: Aim(clip, AimOptions()),
}


@torch.no_grad()
@pytest.mark.parametrize("method", BUILD)
def test_training_starts_at_the_frozen_tower(
    method: str, make_clip: MakeClip, make_frames: MakeFrames
) -> None:
    clip = make_clip(quick_gelu=True, ls_init_value=0.5)
    model, plain = BUILD[method](clip), ZeroShot(clip)
    frames = make_frames(0, 2, 3, model.image_size)
    if method == "aim":  # its attention over time is zero at the start, its positions too
        assert not model.trainable()["positions"].any()
    torch.testing.assert_close(model.encode_video(frames), plain.encode_video(frames), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("method", BUILD)
def test_the_order_of_frames_matters(
    method: str, make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = BUILD[method](make_clip())
    stir(model)
    frames = make_frames(0, 2, 3, model.image_size)
    assert (model.encode_video(frames) - model.encode_video(frames.flip(1))).abs().max() > 1e-4


@torch.no_grad()
def test_st_adapter_is_open_clips_tower_with_an_adapted_input(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = StAdapter(make_clip(), StAdapterOptions(adapter_ratio=0.25, adapter_kernel="3x3x3"))
    stir(model)
    frames = make_frames(0, 2, 3, model.image_size)
    batch, count, (grid, _) = 2, 3, model.tower.grid
    tokens = model.tower.embed(frames.flatten(0, 1))
    for block, adapter in zip(model.tower.blocks, model.adapters, strict=True):
        hidden = tokens[:, 1:] @ adapter.down.weight.T + adapter.down.bias
        volume = hidden.view(batch, count, grid, grid, -1).permute(0, 4, 1, 2, 3)
        mixed = F.conv3d(
            volume, adapter.conv.weight, adapter.conv.bias, padding=1, groups=volume.shape[1]
        )
        back = mixed.permute(0, 2, 3, 4, 1).reshape(batch * count, grid * grid, -1)
        h = tokens[:, 1:] + back @ adapter.up.weight.T + adapter.up.bias
        tokens = block(torch.cat([tokens[:, :1], h], dim=1))
    embeddings = F.normalize(model.tower.project(tokens[:, 0]), dim=-1)
    wanted = F.normalize(embeddings.view(batch, count, -1).mean(1), dim=-1)
    torch.testing.assert_close(model.encode_video(frames), wanted, **CLOSE)
    assert model.adapters[0].down.out_features == round(0.25 * model.tower.width)


@torch.no_grad()
def test_st_adapter_sees_one_frame_to_each_side_in_a_block(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    adapter = StAdapter(make_clip(), StAdapterOptions()).adapters[0]
    stir(adapter)
    width = adapter.down.in_features
    h = torch.randn(1, 5, 9, width)
    other = h.clone()
    other[:, 2, 4] += 1
    moved = (adapter(h) - adapter(other)).abs().amax(-1)[0] > 1e-6
    assert moved[1:4, 4].all()
    assert moved.sum() == 3  # a kernel of 3 x 1 x 1 mixes no patches


@torch.no_grad()
def test_aim_is_open_clips_tower_with_its_three_adaptations(
    make_clip: MakeClip, make_frames: MakeFrames, stir: Stir
) -> None:
    model = Aim(make_clip(), AimOptions(adapter_scale=0.3))
    stir(model, scale=0.05)
    frames = make_frames(0, 1, 3, model.image_size)
    tokens = model.tower.embed(frames[0]) + model.positions[:3, None]  # [T, N, D]

    def adapt(adapter: torch.nn.Module, x: Tensor) -> Tensor:
        return adapter.up(F.gelu(adapter.down(x)))

    def attention(block: torch.nn.Module, x: Tensor) -> Tensor:
        normed = block.ln_1(x)
        return block.attn(normed, normed, normed, need_weights=False)[0]

    for block, own in zip(model.tower.blocks, model.blocks, strict=True):
        over_time = attention(block, tokens.transpose(0, 1)).transpose(0, 1)
        tokens = tokens + adapt(own.time, over_time)
        over_space = attention(block, tokens)
        tokens = tokens + over_space + adapt(own.space, over_space)
        normed = block.ln_2(tokens)
        tokens = tokens + block.mlp(normed) + 0.3 * adapt(own.joint, normed)
    embeddings = F.normalize(model.tower.project(tokens[:, 0]), dim=-1)
    wanted = F.normalize(embeddings.mean(0), dim=-1)
    torch.testing.assert_close(model.encode_video(frames)[0], wanted, **CLOSE)


def test_only_one_side_of_an_adapter_starts_at_zero() -> None:
    torch.manual_seed(0)
    conv, small = ConvAdapter(48, (3, 3), StAdapterOptions()), Bottleneck(96, 0.5)
    for adapter in (conv, small):
        for name, parameter in adapter.named_parameters():
            random = {"down.weight", "up.weight"} if adapter is conv else {"down.weight"}
            assert bool(parameter.any()) == (name in random), name
    assert small.down.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("ratio", "hidden"), [(1e-9, 1), (0.26, 5), (0.29, 6), (1.5, 30)])
def test_an_adapter_has_its_share_of_the_channels(ratio: float, hidden: int) -> None:
    options = StAdapterOptions(adapter_ratio=ratio)
    assert ConvAdapter(20, (3, 3), options).down.out_features == hidden
    assert Bottleneck(20, ratio).down.out_features == hidden
