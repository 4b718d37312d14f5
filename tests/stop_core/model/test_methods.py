"""Towers of every family: methods that need no blocks take them, the others refuse them early."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F

from stop_core.clip.loading import FrozenClip, check_name, load_clip, tower_shape
from stop_core.model.methods import build_method, check_tower
from stop_core.model.video_model import VideoModel
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS

# The smallest towers of timm with the parts of EVA02 (rotary positions), of PE and of SigLIP (both
# pool by attention; SigLIP without a CLS token), and a ResNet.
_TIMM = {
    "eva": ("eva02_tiny_patch14_224", "token", 224),
    "pe": ("vit_pe_core_tiny_patch16_384", "map", 384),
    "siglip": ("vit_base_patch32_siglip_256", "map", 256),
}
FAMILIES = [
    *("own-eva", "own-pe", "own-resnet"),
    pytest.param(
        "own-siglip", marks=pytest.mark.slow
    ),  # 94 million weights: timm has no smaller one
]
ANY_TOWER = ["zero-shot", "linear-probe", "clip4clip", "clip4clip-seqtransf", "vifi-clip"]


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    for family, (model, pool, size) in _TIMM.items():
        vision = {"timm_model_name": model, "timm_model_pretrained": False, "timm_pool": pool}
        vision |= {"timm_proj": "linear", "image_size": size}
        config = {"embed_dim": 16, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
        (folder / f"own-{family}.json").write_text(json.dumps(config))
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "own-resnet.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request: pytest.FixtureRequest) -> FrozenClip:
    torch.manual_seed(0)
    return load_clip(request.param, "random")


def _build(method: str, clip: FrozenClip) -> VideoModel:
    return build_method(
        ExperimentConfig(method=method, tower=clip.name, pretrained="random"), clip, 2
    )


def test_a_method_that_needs_no_blocks_embeds_as_open_clip_does(clip: FrozenClip) -> None:
    shape = tower_shape(clip.name)
    assert shape is not None
    assert shape.unfit
    size = shape.image_size
    frames = torch.randint(256, (1, 2, size, size, 3), dtype=torch.uint8)
    how = clip.model.visual.preprocess_cfg
    mean, std = torch.tensor(how["mean"]), torch.tensor(how["std"])
    pixels = ((frames.flatten(0, 1) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = F.normalize(clip.model.encode_image(pixels), dim=-1).unflatten(0, (1, 2))
        wanted = F.normalize(wanted.mean(1), dim=-1)
        for method in ("zero-shot", "clip4clip"):
            model = _build(method, clip).eval()
            assert model.image_size == size
            torch.testing.assert_close(model.encode_video(frames), wanted, rtol=0, atol=1e-5)
    model = _build("linear-probe", clip).train()
    logits = model(frames, torch.zeros(2, 16))
    F.cross_entropy(logits, torch.tensor([1])).backward()
    assert all(parameter.grad is not None for parameter in model.trainable().values())
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_a_fine_tuned_tower_gets_gradients(clip: FrozenClip) -> None:
    model = _build("vifi-clip", clip).train()
    frames = torch.randint(256, (1, 1, model.image_size, model.image_size, 3), dtype=torch.uint8)
    model.encode_video(frames)[0, 0].backward()
    weights = dict(model.tower.visual.named_parameters())
    trained = [name for name, weight in weights.items() if weight.grad is not None]
    assert len(trained) > len(weights) / 2


def test_every_other_method_refuses_the_tower_in_one_sentence(clip: FrozenClip) -> None:
    for method in METHODS:
        config = ExperimentConfig(method=method, tower=clip.name, pretrained="random")
        if METHODS[method].load().any_tower:
            check_tower(config)
            continue
        with pytest.raises(ValueError, match=rf"the tower {clip.name} has .*, and {method} works"):
            check_tower(config)
        with pytest.raises(ValueError, match="not open_clip's ViT; choose a CLIP"):
            build_method(config, clip, 2)


def test_the_methods_that_take_any_tower_are_those_of_the_message() -> None:
    own = [name for name, method in METHODS.items() if method.model.startswith("stop_core.")]
    assert {name for name in own if METHODS[name].load().any_tower} == set(ANY_TOWER)
    with pytest.raises(ValueError, match="has a ResNet") as refused:
        check_tower(ExperimentConfig(method="stop", tower="RN50", pretrained="openai"))
    assert all(name in str(refused.value) for name in ANY_TOWER)


@pytest.mark.parametrize(
    ("name", "tag", "why"),
    [
        ("EVA02-B-16", "merged2b_s8b_b131k", ""),
        ("ViT-B-16-SigLIP2", "webli", "resize mode 'squash'"),
        ("PE-Core-B-16", "meta", "interpolation 'bilinear' and resize mode 'squash'"),
    ],
)
def test_weights_that_need_other_frames_are_refused_and_the_others_are_not(
    name: str, tag: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stop_core.clip.loading.find_spec", lambda package: package)
    zero_shot = ExperimentConfig(method="zero-shot", tower=name, pretrained=tag)
    if why:
        with pytest.raises(ValueError, match=f"the weights {tag} of {name} .*{why}.*EVA02"):
            check_name(name, tag)
    else:
        check_tower(zero_shot)
    with pytest.raises(ValueError, match=f"the tower {name} has timm's tower .*, and stop works"):
        check_tower(replace(zero_shot, method="stop"))


def test_a_tower_that_reads_texts_with_transformers_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stop_core.clip.loading.find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"reads texts with the package transformers.*pip install"):
        check_name("ViT-B-16-SigLIP2", "random")
