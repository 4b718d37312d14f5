"""A CLIP is found by name and frozen; an unknown one is refused with a suggestion."""

import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO

import open_clip
import pytest
import torch

from stop_core import build_model
from stop_core.clip.loading import load_clip
from stop_core.clip.pretrained import weights_fingerprint
from stop_core.tiny.shipped import TINY_TOWERS

NAME = "test-vit-8-of-24"


@pytest.fixture(scope="session", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small tower that open_clip lists by name."""
    folder = tmp_path_factory.mktemp("models")
    vision = {"layers": 2, "width": 24, "head_width": 8, "patch_size": 8, "image_size": 24}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    config = {"embed_dim": 10, "vision_cfg": vision, "text_cfg": text}
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return NAME


@torch.no_grad()
def test_any_open_clip_name_gives_its_frozen_clip_and_tokenizer(registered: str) -> None:
    clip = load_clip(registered, "random")
    assert clip.name == registered
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    texts = ["a photo of a dog", "a photo of a cat"]
    wanted = clip.model.encode_text(open_clip.get_tokenizer(registered)(texts), normalize=True)
    assert torch.equal(clip.encode_text(texts), wanted)


@torch.no_grad()
def test_a_text_has_one_embedding_in_any_list(registered: str) -> None:
    clip = load_clip(registered, "random")
    texts = ["a photo of a dog", "a cat", "running"]
    together = clip.encode_text(texts)
    alone = torch.cat([clip.encode_text([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_weights_file_gives_back_the_clip_it_was_saved_from(
    registered: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    saved = load_clip(registered, "random")
    path = tmp_path / "weights.pt"
    torch.save(saved.model.state_dict(), path)
    torch.manual_seed(4)
    loaded = load_clip(registered, str(path)).model.state_dict()
    for name, value in saved.model.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("ViT-B-33-quickgelu", "ViT-B-32-quickgelu"),
        ("vit-b-16", "ViT-B-16"),
        ("ViT_L_14", "ViT-L-14"),
        ("tinny", "tiny"),
    ],
)
def test_an_unknown_tower_suggests_the_ones_it_resembles(mistyped: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"{mistyped}.*did you mean.*\b{meant}\b"):
        load_clip(mistyped)


def test_an_unknown_tower_without_similar_names_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"zzzz.*list_models"):
        load_clip("zzzz")


def test_unknown_weights_are_refused_with_those_that_exist(registered: str) -> None:
    with pytest.raises(ValueError, match=r"'no-such-tag'.*laion400m_e32"):
        load_clip("ViT-B-32", "no-such-tag")
    with pytest.raises(ValueError, match="none for this model"):
        load_clip(registered, "openai")


def test_a_file_without_weights_is_refused_by_name(registered: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"not weights")
    with pytest.raises(OSError, match=r"broken\.pt"):
        load_clip(registered, str(path))


def test_weights_of_another_tower_are_refused_by_name(registered: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"visual.proj": torch.zeros(2, 2)}, path)
    with pytest.raises(OSError, match=r"other\.pt"):
        load_clip(registered, str(path))


@pytest.mark.parametrize("name", TINY_TOWERS)
def test_a_tiny_tower_takes_no_other_weights(name: str) -> None:
    with pytest.raises(ValueError, match=f"the tower {name} has its own weights"):
        load_clip(name, "openai")


@pytest.mark.parametrize("name", TINY_TOWERS)
@torch.no_grad()
def test_a_tiny_tower_has_weights_that_distinguish_texts(name: str) -> None:
    model = build_model(name).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, model.image_size, model.image_size, 3)
    frames = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    texts = model.encode_text(["a small red circle", "a large blue square"])
    assert model(frames, texts).shape == (2, 2)
    assert texts[0] @ texts[1] < 0.9
    again = build_model(name).clip.state_dict()
    for name, value in model.clip.state_dict().items():
        assert torch.equal(value, again[name]), name


def test_weights_are_read_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(stream: BinaryIO, kind: str) -> object:
        read.append(stream.name)
        return digest(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    file = tmp_path / "weights.pt"
    file.write_bytes(b"one")
    first = {weights_fingerprint(NAME, str(file)) for _ in range(3)}
    assert first == {hashlib.sha256(b"one").hexdigest()[:8]}
    assert len(read) == 1
    before = file.stat().st_mtime_ns
    file.write_bytes(b"two")  # the same length
    os.utime(file, ns=(before + 1, before + 1))
    assert weights_fingerprint(NAME, str(file)) not in first
    assert weights_fingerprint(NAME, "openai") == ""
