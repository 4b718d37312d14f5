"""The activation and the preprocessing of a CLIP are those of its weights, or it is refused."""

import hashlib
import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from stop_core.clip import loading as clip_module
from stop_core.clip import pretrained as pretrained_module
from stop_core.clip.loading import check_name, load_clip
from stop_core.clip.pretrained import (
    OPEN_CLIP_CONFIG,
    WEIGHTS,
    Settings,
    absolute,
    find_source,
    weights_fingerprint,
)
from stop_core.clip.tower import UNFIT_ADVICE
from stop_core.trained_model.model import tower_facts
from tests.stop_core.openai_format import SMALL, openai_state, register_small, write_archive

# open_clip's lists disagree here; the weights were trained with the activation of this name.
_SAID_BY_THE_NAME = {"roberta-ViT-B-32"}


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    register_small(tmp_path_factory.mktemp("models"))


def _refusal(name: str, tag: str) -> str:
    try:
        check_name(name, tag)
    except ValueError as problem:
        return str(problem)
    return ""


def _has_quick_gelu(model: nn.Module) -> bool:
    return any(isinstance(module, QuickGELU) for module in model.modules())


@pytest.mark.parametrize(("name", "tag"), open_clip.list_pretrained())
def test_every_tag_of_open_clip_gets_its_own_settings_or_is_refused_by_name(
    name: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The settings do not depend on installed packages.
    monkeypatch.setattr(clip_module, "find_spec", lambda package: package)
    listed = get_pretrained_cfg(name, tag)
    if refusal := _refusal(name, tag):
        assert name in refusal
        modes = (listed["interpolation"], listed["resize_mode"])
        assert UNFIT_ADVICE in refusal or modes != ("bicubic", "shortest")
        return
    source = find_source(name, tag)
    assert source.tag == tag
    quick = listed.get("quick_gelu", name in _SAID_BY_THE_NAME)
    assert source.settings == Settings(
        quick, tuple(listed["mean"]), tuple(listed["std"]), "bicubic", "shortest"
    )
    if "hf_model_name" in source.config["text_cfg"]:
        return
    with torch.device("meta"):  # shapes without numbers: some have billions
        model = clip_module._build(source)
    assert _has_quick_gelu(model) == quick
    how = model.visual.preprocess_cfg
    assert isinstance(how, dict)
    for key in ("mean", "std", "interpolation", "resize_mode"):
        assert tuple(how[key]) == tuple(listed[key])
    assert (model.visual.image_mean, model.visual.image_std) == (listed["mean"], listed["std"])


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
def test_a_file_of_unknown_activation_is_refused_with_both_options(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=f"--tower {name}-quickgelu .*--pretrained gelu={path}"):
        check_name(name, str(path))
    for tower, pretrained, quick in (
        (f"{name}-quickgelu", str(path), True),
        (name, f"quickgelu={path}", True),
        (name, f"gelu={path}", False),
        (name, f"openai={path}", True),
    ):
        source = find_source(tower, pretrained)
        assert (source.file, source.settings.quick_gelu) == (path, quick)


def test_a_file_with_a_tag_has_all_settings_of_the_tag(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": torch.zeros(2)}, path)
    source = find_source("ViT-L-14", f"laion2b_s32b_b82k={path}")
    assert (source.settings.quick_gelu, source.settings.mean) == (False, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="mode 'squash'"):
        find_source("ViT-H-14", f"dfn5b={path}")
    with pytest.raises(ValueError, match=r"no_tag=.* is neither a file nor weights"):
        find_source("ViT-L-14", f"no_tag={path}")


def test_a_tower_with_one_kind_of_weights_accepts_a_plain_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": torch.zeros(2)}, path)
    assert not find_source("ViT-B-32-256", str(path)).settings.quick_gelu
    monkeypatch.setenv("HOME", str(tmp_path))  # as in a --config, where no shell expands the ~
    assert find_source("ViT-B-32-256", "~/weights.pt").file == path
    assert absolute("ViT-B-32-256", "~/weights.pt") == ("ViT-B-32-256", str(path))
    assert not find_source("ViT-S-32", str(path)).settings.quick_gelu
    with pytest.raises(ValueError, match=rf"several kinds.*--pretrained metaclip_fullcc={path}"):
        find_source("ViT-H-14-quickgelu", str(path))


def test_a_published_file_is_recognised_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.bin"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    tags = {
        "ViT-B-16": {"openai": f"https://host/{digest}/ViT-B-16.pt", "laion": "https://host/x.pt"},
        "ViT-L-14": {"openai": "https://host/x.pt", "laion": f"https://host/l-{digest[:8]}.pt"},
    }

    def listed(name: str, tag: str) -> dict[str, object]:
        url = tags.get(name, {}).get(tag)
        return {"url": url, "quick_gelu": tag == "openai", "std": (0.1, 0.2, 0.3)} if url else {}

    monkeypatch.setattr(pretrained_module, "get_pretrained_cfg", listed)
    monkeypatch.setattr(
        open_clip, "list_pretrained_tags_by_model", lambda name: list(tags.get(name, {}))
    )
    for name, quick in (("ViT-B-16", True), ("ViT-B-16-quickgelu", True), ("ViT-L-14", False)):
        source = find_source(name, str(path))
        assert (source.settings.quick_gelu, source.settings.std) == (quick, (0.1, 0.2, 0.3))
    for name, given in (("ViT-L-14-quickgelu", str(path)), ("ViT-B-16", f"gelu={path}")):
        with pytest.raises(ValueError, match=r"says .*GELU, and the (file|tower) is of"):
            find_source(name, given)
    # A difference from the name is part of the identity.
    assert weights_fingerprint("ViT-B-16", str(path)) == f"{digest[:8]}quickgelu"
    assert weights_fingerprint("ViT-B-16-quickgelu", str(path)) == digest[:8]
    assert weights_fingerprint("ViT-L-14", str(path)) == digest[:8]


def test_the_hashes_of_openais_files_are_those_of_their_addresses() -> None:
    for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"):
        *_, digest, file = get_pretrained_cfg(name, "openai")["url"].split("/")
        assert len(bytes.fromhex(digest)) == 32
        assert file.startswith(name)


def test_an_openai_file_is_recognised_by_its_format(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write_archive(openai_state(), path)
    assert find_source("ViT-B-16", str(path)).settings.quick_gelu
    assert _has_quick_gelu(load_clip(SMALL, str(path)).model)
    for given in (f"gelu={path}", f"laion2b_s34b_b88k={path}"):
        with pytest.raises(ValueError, match=rf"OpenAI's.*QuickGELU.*give quickgelu={path}"):
            load_clip("ViT-B-16", given)


def test_an_activation_that_differs_from_the_name_changes_the_fingerprint(
    tmp_path: Path,
) -> None:
    assert weights_fingerprint("ViT-B-16", "openai") == "quickgelu"
    assert weights_fingerprint("ViT-B-16", "laion2b_s34b_b88k") == ""
    assert weights_fingerprint("ViT-B-16-quickgelu", "openai") == ""
    path = tmp_path / "weights.pt"
    torch.save(openai_state(), path)
    plain, quick = (
        tower_facts(load_clip(SMALL, f"{activation}={path}")).fingerprint
        for activation in ("gelu", "quickgelu")
    )
    assert quick == f"{plain}-quickgelu"


def _folder(path: Path, **changes: object) -> Path:
    """Writes a folder as open_clip pushes it to the Hugging Face Hub."""
    path.mkdir()
    config = open_clip.get_model_config(SMALL) | changes.pop("model", {})  # type: ignore[operator]
    (path / OPEN_CLIP_CONFIG).write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": changes})
    )
    save_file(openai_state(), path / WEIGHTS[0])
    return path


@pytest.mark.parametrize("quick", [False, True])
def test_a_folder_of_the_hub_determines_its_settings(tmp_path: Path, quick: bool) -> None:
    folder = _folder(tmp_path / "hub", model={"quick_gelu": quick}, mean=[0.1, 0.2, 0.3])
    state = openai_state()
    # As in the cache of the hub: files called by their hashes, and links with the names.
    for file in (OPEN_CLIP_CONFIG, WEIGHTS[0]):
        (folder / file).rename(tmp_path / f"hash-of-{len(file)}")
        (folder / file).symlink_to(tmp_path / f"hash-of-{len(file)}")
    for name, given in (
        absolute(SMALL, str(folder / WEIGHTS[0])),
        (SMALL, str(folder)),
        (SMALL, str(folder / WEIGHTS[0])),
        (f"local-dir:{folder}", None),
    ):
        clip = load_clip(name, given)
        assert _has_quick_gelu(clip.model) == quick
        assert clip.model.visual.image_mean == (0.1, 0.2, 0.3)
        for key, value in clip.model.state_dict().items():
            assert torch.equal(value, state[key].float()), key


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    other = _folder(tmp_path / "other", model={"embed_dim": 32})
    with pytest.raises(
        ValueError, match=f"{OPEN_CLIP_CONFIG} is not of a {SMALL}: embed_dim is 32 there"
    ):
        load_clip(SMALL, str(other))
    squash = _folder(tmp_path / "squash", resize_mode="squash")
    with pytest.raises(ValueError, match="'squash'"):
        load_clip(f"local-dir:{squash}")
    size = _folder(tmp_path / "size", size=336)
    with pytest.raises(ValueError, match="images of 336 pixels for a tower that takes 224"):
        load_clip(SMALL, str(size))
    quick = _folder(tmp_path / "quick", model={"quick_gelu": True})
    with pytest.raises(ValueError, match="says GELU, and the file is of a model with QuickGELU"):
        load_clip(SMALL, f"gelu={quick}")
    (quick / OPEN_CLIP_CONFIG).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{OPEN_CLIP_CONFIG} is no configuration of open_clip"):
        load_clip(SMALL, str(quick))
    (quick / OPEN_CLIP_CONFIG).unlink()
    with pytest.raises(OSError, match=f"has no {OPEN_CLIP_CONFIG}"):
        load_clip(SMALL, str(quick))
    (size / WEIGHTS[0]).unlink()
    (size / OPEN_CLIP_CONFIG).write_text(
        json.dumps({"model_cfg": open_clip.get_model_config(SMALL)})
    )
    with pytest.raises(OSError, match="has no weights called open_clip_model"):
        load_clip(SMALL, str(size))


def test_weights_of_a_folder_are_part_of_the_identity(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "hub")
    before = weights_fingerprint(SMALL, str(folder))
    assert len(before) == 8
    assert weights_fingerprint(f"local-dir:{folder}", None) == before
    config = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config))
    assert weights_fingerprint(SMALL, str(folder)) != before


def test_random_weights_have_to_be_requested() -> None:
    with pytest.raises(ValueError, match=r"ViT-B-32 .*--pretrained openai.*--pretrained random"):
        check_name("ViT-B-32", None)
    with pytest.raises(ValueError, match=r"ViT-S-32 .*--pretrained FILE.*--pretrained random"):
        check_name("ViT-S-32", None)
    first, second = (load_clip(SMALL, "random").model.state_dict() for _ in range(2))
    assert not torch.equal(first["visual.proj"], second["visual.proj"])
