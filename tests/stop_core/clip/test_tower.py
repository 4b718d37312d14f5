"""The frozen tower is open_clip's, block by block, with additional prompts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, set_model_preprocess_cfg
from torch import Tensor, nn

from stop_core.clip import tower as towers
from stop_core.clip.folded_block import HIDING_WIDTH
from stop_core.clip.loading import FrozenClip
from stop_core.clip.tower import FrozenTower
from stop_core.model.stop import StopModel
from stop_core.settings.stop import StopConfig
from tests.stop_core.reference import array, cls_attention, error

MakeClip = Callable[..., FrozenClip]
MakeFrames = Callable[..., Tensor]

SHAPES = [
    {"width": 24, "heads": 2, "patch": 4, "grid": 3},
    {"width": 40, "heads": 5, "patch": 2, "grid": 2, "quick_gelu": True},
    {"width": 16, "heads": 1, "patch": 7, "grid": 1, "no_ln_pre": True, "layers": 1},
    {"width": 32, "heads": 4, "patch": 3, "grid": 4, "ls_init_value": 0.3, "mlp_ratio": 1.5},
    {"width": 24, "heads": 3, "final_ln_after_pool": True, "pos_embed_type": "sin_cos_2d"},
    {"width": 24, "heads": 3, "patch_dropout": 0.5},
]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=SHAPES, ids=str)
def tower(request: pytest.FixtureRequest, make_clip: MakeClip) -> FrozenTower:
    return FrozenTower("small-vit", make_clip(**request.param).model.visual)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(frames: Tensor, visual: nn.Module) -> Tensor:
    """Returns frames of the right size after open_clip's preprocessing."""
    channels = [
        (frames[..., c].float() / 255 - visual.image_mean[c]) / visual.image_std[c]
        for c in range(3)
    ]
    return torch.stack(channels, dim=1)


@torch.no_grad()
def test_frames_are_embedded_as_open_clip_does(tower: FrozenTower, make_frames: MakeFrames) -> None:
    frames = make_frames(0, 1, 4, tower.image_size)[0]
    wanted = tower.visual._embeds(pixels_of(frames, tower.visual))
    torch.testing.assert_close(tower.embed(frames), wanted, **CLOSE)
    assert tower.embedding_width == tower.project(wanted).shape[-1]
    for frame in wanted:
        torch.testing.assert_close(tower.cls_token(), frame[0], **CLOSE)


@torch.no_grad()
def test_the_tower_without_prompts_is_open_clips_forward(
    tower: FrozenTower, make_frames: MakeFrames
) -> None:
    frames = make_frames(0, 1, 4, tower.image_size)[0]
    tokens = tower.embed(frames)
    for index in range(tower.depth):
        tokens, prompts = tower.run_block(index, tokens)
        assert prompts is None
    wanted = tower.visual(pixels_of(frames, tower.visual))
    torch.testing.assert_close(tower.project(tokens[:, 0]), wanted, **CLOSE)


@torch.no_grad()
def test_a_block_is_open_clips_own_block_on_tokens_and_prompts(tower: FrozenTower) -> None:
    tokens, prompts = noise(0, 3, 6, tower.width), noise(1, 3, 4, tower.width)
    for index, block in enumerate(tower.visual.transformer.resblocks):
        wanted = block(torch.cat([tokens, prompts], dim=1))
        out, carried = tower.run_block(index, tokens, prompts, carry_prompts=True)
        torch.testing.assert_close(out, wanted[:, :6], **CLOSE)
        torch.testing.assert_close(carried, wanted[:, 6:], **CLOSE)
        alone, nothing = tower.run_block(index, tokens, prompts)
        assert nothing is None
        torch.testing.assert_close(alone, wanted[:, :6], **CLOSE)


@pytest.fixture(params=["mask", "channel"])
def hidden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides empty slots in both ways, that of CPUs and that of GPUs."""
    monkeypatch.setattr(towers, "_hides_by_channel", lambda like: request.param == "channel")


@torch.no_grad()
def test_an_empty_slot_has_the_effect_of_no_slot(hidden: None, tower: FrozenTower) -> None:
    tokens, prompts = noise(0, 3, 6, tower.width), noise(1, 3, 4, tower.width)
    presence = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    for index, block in enumerate(tower.visual.transformer.resblocks):
        out, carried = tower.run_block(index, tokens, prompts, presence, carry_prompts=True)
        for row in range(3):
            there = presence[row] == 1
            wanted = block(torch.cat([tokens[row], prompts[row, there]])[None])[0]
            torch.testing.assert_close(out[row], wanted[:6], **CLOSE)
            torch.testing.assert_close(carried[row, there], wanted[6:], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("filling", [0.0, 1e4, -1e4])
def test_the_contents_of_an_empty_slot_have_no_effect(
    hidden: None, tower: FrozenTower, filling: float
) -> None:
    tokens, prompts = noise(0, 2, 6, tower.width), noise(1, 2, 3, tower.width)
    presence = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    filled = prompts.where(presence[..., None] == 1, filling * (1 + noise(2, *prompts.shape)))
    out, _ = tower.run_block(0, tokens, prompts, presence)
    other, _ = tower.run_block(0, tokens, filled, presence)
    assert torch.equal(out, other)


def test_a_soft_presence_changes_no_output_and_has_the_gradient_of_scaling_the_value(
    hidden: None,
    tower: FrozenTower,
) -> None:
    tokens, prompts = noise(0, 2, 6, tower.width), noise(1, 2, 3, tower.width)
    presence = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    soft = presence.clone().requires_grad_()
    hard_out, _ = tower.run_block(0, tokens, prompts, presence)
    soft_out, _ = tower.run_block(0, tokens, prompts, soft)
    torch.testing.assert_close(soft_out, hard_out, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(soft_out.square().sum(), soft)
    assert torch.equal(gradient != 0, presence == 1)


@torch.no_grad()
@pytest.mark.parametrize("per_frame", [False, True])
def test_the_cls_attention_is_the_blocks_own_inside_one_frame(
    tower: FrozenTower, per_frame: bool
) -> None:
    h = noise(0, 2, 3, tower.patches, tower.width)
    cls = noise(1, 2, 3 if per_frame else 1, tower.width)
    for index, block in enumerate(tower.blocks):
        A_raw = tower.cls_attention(index, cls, h, h.var(-1, correction=0, keepdim=True))
        torch.testing.assert_close(A_raw.sum(-1), torch.ones(2, 3))
        wanted = cls_attention(array(cls), array(h), block, tower.heads)
        assert error(A_raw, wanted) < 1e-5


def test_the_tower_stays_frozen_and_in_evaluation_mode(tower: FrozenTower) -> None:
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert all(name.startswith("visual.") for name in tower.state_dict())  # open_clip's own


def modified_resnet() -> nn.Module:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32}
    return CLIP(16, vision, {"width": 8, "heads": 2, "layers": 1, "vocab_size": 8}).visual


def timm_tower() -> nn.Module:
    vision = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
    vision["image_size"] = 32
    return CLIP(64, vision, {"width": 8, "heads": 2, "layers": 1, "vocab_size": 8}).visual


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (modified_resnet, "ModifiedResNet"),
        (timm_tower, "TimmModel"),
    ],
)
def test_a_tower_that_is_not_an_open_clip_vit_is_refused_with_one_sentence(
    build: Callable[[], nn.Module], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        FrozenTower("odd-one", build())
    assert_one_clear_sentence(str(refused.value))


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"pool_type": "avg", "no_ln_pre": True}, "does not pool its frames with a CLS token"),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "does not pool its frames"),
        ({"attentional_pool": "parallel", "attn_pooler_heads": 2}, "does not pool its frames"),
        ({"pool_type": "none"}, "does not pool its frames"),
        ({"qk_norm": True}, "blocks of an unusual kind"),
        ({"scale_heads": True}, "blocks of an unusual kind"),
    ],
    ids=str,
)
def test_an_unsupported_vit_is_refused_with_one_sentence(
    vision: dict[str, object], reason: str, make_clip: MakeClip
) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        FrozenTower("odd-one", make_clip(**vision).model.visual)
    assert_one_clear_sentence(str(refused.value))


def test_a_tower_of_images_that_are_not_square_is_refused_with_one_sentence() -> None:
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 4, "image_size": (8, 16)}
    text = {"width": 8, "heads": 2, "layers": 1, "vocab_size": 8}
    model = CLIP(8, vision, text)
    half = (0.5, 0.5, 0.5)
    set_model_preprocess_cfg(model, {"size": (8, 16), "mean": half, "std": half})
    with pytest.raises(ValueError, match="8x16") as refused:
        FrozenTower("odd-one", model.visual)
    assert_one_clear_sentence(str(refused.value))


def assert_one_clear_sentence(message: str) -> None:
    assert message.startswith("odd-one ")
    assert "ViT-B-16" in message, "it should say what to choose instead"
    assert "\n" not in message


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "frame"])
def test_in_bfloat16_a_tower_is_close_to_float32_and_keeps_float32_tokens(
    make_clip: MakeClip, make_frames: MakeFrames, attention: str
) -> None:
    model = StopModel(make_clip(), StopConfig(n_s=2, attention=attention))
    frames, texts = make_frames(0, 2, 3, model.image_size), model.encode_text(["a", "b", "c"])
    with torch.autocast("cpu", torch.bfloat16):
        video, logits = model.encode_video(frames), model(frames, texts)
    assert video.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(video, model.encode_video(frames), rtol=0, atol=0.03)
    torch.testing.assert_close(logits, model.logit_scale * video @ texts.T)


def test_a_block_is_folded_once_and_again_only_when_it_has_changed(make_clip: MakeClip) -> None:
    tower = FrozenTower("small-vit", make_clip().model.visual)
    tokens = noise(0, 1, 4, tower.width)
    before, _ = tower.run_block(0, tokens)
    first = tower._folded(0, torch.float32)
    assert tower._folded(0, torch.float32) is first
    assert tower._folded(0, torch.float64) is not first
    with torch.no_grad():
        tower.blocks[0].ln_1.weight.mul_(2)
    assert tower._folded(0, torch.float32) is not first
    after, _ = tower.run_block(0, tokens)
    torch.testing.assert_close(after, tower.blocks[0](tokens), **CLOSE)
    assert not torch.equal(after, before)


def test_a_compiler_sees_no_comparison_of_weights(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = FrozenTower("small-vit", make_clip().model.visual)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    first = tower._folded(0, torch.float32)
    with torch.no_grad():
        tower.blocks[0].ln_1.weight.mul_(2)
    assert tower._folded(0, torch.float32) is first


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_products_are_in_the_type_of_autocast_where_the_processor_has_it(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers, "_cpu_has", lambda dtype: has_bfloat16)
    for dtype in (torch.float32, torch.float64):
        assert towers._compute_dtype(torch.zeros(1, dtype=dtype)) == dtype
    with torch.autocast("cpu", torch.bfloat16):
        found = towers._compute_dtype(torch.zeros(1))
    assert found == (torch.bfloat16 if has_bfloat16 else torch.float32)


def test_a_compiler_takes_what_the_processor_has_as_a_constant() -> None:
    def scaled(x: Tensor) -> Tensor:
        return x * (2 if towers._cpu_has(torch.bfloat16) else 3)

    asked: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert towers._cpu_has(torch.bfloat16) == bool(asked())
    assert towers._cpu_has(torch.int8)  # PyTorch cannot say
    whole = torch.compile(scaled, backend="eager", fullgraph=True)  # raises at a break
    assert torch.equal(whole(torch.ones(2)), scaled(torch.ones(2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradient_of_a_presence_is_that_of_scaling_the_last_values(dtype: torch.dtype) -> None:
    value = noise(0, 2, 7, 5).to(dtype).requires_grad_()
    presence = torch.ones(2, 3, dtype=torch.float32, requires_grad=True)
    out = towers._ScaleLast.apply(value, presence)
    assert torch.equal(out, value)
    direction = noise(1, 2, 7, 5).to(dtype)
    out.backward(direction)
    assert torch.equal(value.grad, direction)
    wanted = (direction[:, 4:].double() * value.detach()[:, 4:].double()).sum(-1)
    torch.testing.assert_close(
        presence.grad.double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float64 else 0.1
    )
    assert presence.grad.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("prompts", [0, 3])
def test_global_tokens_see_the_video_and_every_frame_sees_them(
    hidden: None, tower: FrozenTower, prompts: int
) -> None:
    videos, frames, tokens, count, width = 2, 3, 4, 2, tower.width
    global_BGD, packed = noise(0, videos, count, width), noise(1, videos * frames, tokens, width)
    given = noise(2, videos * frames, prompts, width) if prompts else None
    presence = (noise(3, videos * frames, prompts) > 0).float() if prompts else None
    parallel = nn.Linear(width, width) if prompts else None
    found = tower.run_global_block(
        0, global_BGD, packed, given, presence, carry_prompts=prompts > 0, parallel=parallel
    )
    block = tower.blocks[0]

    def attend(query: Tensor, seen: Tensor) -> Tensor:
        """One sequence through open_clip's block, as queries that see other tokens."""
        normed = block.ln_1(seen)[None]
        mixed = block.attn(block.ln_1(query)[None], normed, normed, need_weights=False)[0][0]
        out = query + block.ls_1(mixed)
        beside = 0.0 if parallel is None else parallel(out)
        return out + block.ls_2(block.mlp(block.ln_2(out))) + beside

    for video in range(videos):
        everything = [global_BGD[video]]
        for frame in range(frames):
            index = video * frames + frame
            present = [packed[index]]
            if given is not None and presence is not None:
                present.append(given[index][presence[index] > 0.5])
            everything += present
            seen = torch.cat([global_BGD[video], *present])
            torch.testing.assert_close(found[1][index], attend(packed[index], seen), **CLOSE)
            if given is not None:
                assert found[2] is not None
                torch.testing.assert_close(found[2][index], attend(given[index], seen), **CLOSE)
        wanted = attend(global_BGD[video], torch.cat(everything))
        torch.testing.assert_close(found[0][video], wanted, **CLOSE)
    alone = tower.run_global_block(
        0, global_BGD, packed, given, presence, only_global=True, parallel=parallel
    )
    torch.testing.assert_close(alone[0], found[0], **CLOSE)
    assert alone[1] is packed
    assert alone[2] is None
    assert tower.run_global_block(0, global_BGD, packed, given, presence)[2] is None


@pytest.mark.parametrize("carry_prompts", [False, True])
def test_slots_hidden_by_a_channel_have_the_gradients_of_masked_ones(
    tower: FrozenTower, monkeypatch: pytest.MonkeyPatch, carry_prompts: bool
) -> None:
    tokens, prompts = noise(0, 2, 6, tower.width), noise(1, 2, 3, tower.width)
    presence = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    found = []
    for by_channel in (False, True):
        monkeypatch.setattr(towers, "_hides_by_channel", lambda like, by=by_channel: by)
        leaves = [part.clone().requires_grad_() for part in (tokens, prompts, presence)]
        out, _ = tower.run_block(0, *leaves, carry_prompts=carry_prompts)
        found.append(torch.autograd.grad(out.square().sum(), leaves))
    for masked, hidden in zip(*found, strict=True):
        torch.testing.assert_close(hidden, masked, rtol=0, atol=1e-5 * float(masked.abs().max()))
        assert torch.equal(hidden == 0, masked == 0)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
def test_only_the_keys_of_empty_slots_are_hidden_in_every_head(
    parts: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor of keys and values, or of queries, keys and values."""
    heads, width = 3, 4
    of_head = width + HIDING_WIDTH
    inner = heads * of_head
    mapped = noise(0, 2, 5, parts * inner)
    # The first hiding channel of each head of the keys, which is 0 in a key.
    hiding = [(parts - 2) * inner + head * of_head + width for head in range(heads)]
    mapped[..., hiding] = 0
    wanted = mapped.clone()
    for row, slot in ((0, 4), (1, 3), (1, 4)):
        wanted[row, slot, hiding] = -32768.0
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiled)
    presence = torch.tensor([[1.0, 0], [0, 0]])
    assert torch.equal(towers._hide_last(mapped, presence, heads, inner), wanted)


def test_a_channel_hides_slots_where_a_mask_is_slow() -> None:
    assert HIDING_WIDTH % 8 == 0  # or the flash kernels do not take the heads
    assert not towers._hides_by_channel(torch.empty(0))
    assert towers._hides_by_channel(torch.empty(0, device="meta"))


@torch.no_grad()
@pytest.mark.parametrize("by_channel", [False, True])
def test_a_mask_is_passed_only_where_no_channel_hides_empty_slots(
    by_channel: bool, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int]] = set()
    attend = F.scaled_dot_product_attention

    def watched(query: Tensor, *given: Tensor, attn_mask: Tensor | None, scale: float) -> Tensor:
        seen.add((attn_mask is not None, query.shape[-1]))
        return attend(query, *given, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(towers.F, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(towers, "_hides_by_channel", lambda like: by_channel)
    tower = FrozenTower("small-vit", make_clip(width=24, heads=3).model.visual)
    tokens, prompts, whole = noise(0, 2, 6, 24), noise(1, 2, 3, 24), noise(2, 1, 2, 24)
    presence = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    for given, wanted in (
        (None, (False, 8)),
        (presence, (False, 8 + HIDING_WIDTH) if by_channel else (True, 8)),
    ):
        for run in (
            lambda given=given: tower.run_block(0, tokens, prompts, given),
            lambda given=given: tower.run_global_block(0, whole, tokens, prompts, given),
        ):
            seen.clear()
            run()
            assert seen == {wanted}


def test_pixels_and_the_choice_of_patches_pass_no_gradient(
    tower: FrozenTower, make_frames: MakeFrames
) -> None:
    tower.visual.requires_grad_(True)  # as a tuned tower
    tokens = tower.embed(make_frames(0, 1, 2, tower.image_size)[0])
    assert not tokens.requires_grad
    cls, h = tokens[None].requires_grad_().split([1, tower.patches], dim=2)
    assert not tower.cls_attention(0, cls[:, :, 0], h, h[..., :1]).requires_grad


@torch.no_grad()
def test_the_halves_of_a_block_are_open_clips_without_their_residuals(tower: FrozenTower) -> None:
    tokens = noise(0, 3, 5, tower.width)
    for index, block in enumerate(tower.blocks):
        normed = block.ln_1(tokens)
        mixed = block.attn(normed, normed, normed, need_weights=False)[0]
        torch.testing.assert_close(tower.attend(index, tokens), block.ls_1(mixed), **CLOSE)
        mapped = block.ls_2(block.mlp(block.ln_2(tokens)))
        torch.testing.assert_close(tower.feed_forward(index, tokens), mapped, **CLOSE)
