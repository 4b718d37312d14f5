"""The tensors of a CLIP are read from every published format, and no code is run."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import build_model_from_openai_state_dict
from safetensors.torch import save_file
from torch import Tensor

from stop_core.clip.loading import load_clip
from stop_core.clip.weights import read_weights
from tests.stop_core.openai_format import (
    EXTRAS,
    SMALL,
    openai_state,
    register_small,
    write_archive,
)

Writer = Callable[[dict[str, Tensor], Path], None]

TEXTS = ["a photo of a dog", "a cat runs"]


def _extended(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {name: torch.tensor(value) for name, value in EXTRAS.items()}


def _save(state: dict[str, Tensor], path: Path) -> None:
    torch.save(_extended(state), path)


def _save_legacy(state: dict[str, Tensor], path: Path) -> None:
    torch.save(_extended(state), path, _use_new_zipfile_serialization=False)


def _save_parallel(state: dict[str, Tensor], path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in _extended(state).items()}, path)


def _save_nested(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": _extended(state)}, path)


def _save_both(state: dict[str, Tensor], path: Path) -> None:
    parallel = {f"module.{name}": value for name, value in _extended(state).items()}
    torch.save({"state_dict": parallel}, path)


def _save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    save_file(_extended(state), path)


FORMATS: dict[str, tuple[str, Writer]] = {
    "archive": ("pt", write_archive),
    "state dict": ("pt", _save),
    "before torch 1.6": ("pt", _save_legacy),
    "module.": ("pth", _save_parallel),
    "state_dict": ("pt", _save_nested),
    "state_dict with module.": ("bin", _save_both),
    "safetensors": ("safetensors", _save_safetensors),
    "safetensors under another name": ("bin", _save_safetensors),
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a tower in the precision of OpenAI's files: matrices in float16."""
    register_small(tmp_path_factory.mktemp("models"))
    return openai_state()


PIXELS = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
@torch.no_grad()
def wanted(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The embeddings of two images and two texts by open_clip's own reader of the format."""
    reference = build_model_from_openai_state_dict(_extended(state)).float()
    tokens = open_clip.get_tokenizer(SMALL)(TEXTS)
    return reference.encode_image(PIXELS), reference.encode_text(tokens, normalize=True)


@pytest.mark.parametrize("form", FORMATS)
@torch.no_grad()
def test_openais_weights_give_openais_embeddings_in_every_format(
    state: dict[str, Tensor], wanted: tuple[Tensor, Tensor], tmp_path: Path, form: str
) -> None:
    ending, write = FORMATS[form]
    path = tmp_path / f"weights.{ending}"
    write(state, path)
    clip = load_clip(SMALL, str(path))
    ours = clip.model.encode_image(PIXELS), clip.encode_text(TEXTS)  # type: ignore[operator]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_other_activation_gives_other_embeddings(
    state: dict[str, Tensor], wanted: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    # Without this difference the test of the formats could not detect a wrong activation.
    torch.save(state, tmp_path / "plain.pt")
    gelu = load_clip(SMALL, f"gelu={tmp_path / 'plain.pt'}").model.encode_image(PIXELS)  # type: ignore[operator]
    assert (gelu - wanted[0]).abs().max() > 1e-3


def test_an_archive_has_the_tensors_that_pytorch_reads(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    write_archive(state, tmp_path / "weights.pt")
    found = read_weights(tmp_path / "weights.pt")
    wanted = torch.jit.load(tmp_path / "weights.pt").state_dict()
    assert found.is_openai
    assert found.tensors.keys() == wanted.keys() - EXTRAS.keys()
    for name, value in found.tensors.items():
        assert value.dtype == wanted[name].dtype
        assert torch.equal(value, wanted[name]), name


def test_a_file_without_the_extra_numbers_is_not_openais(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "weights.pt")
    assert not read_weights(tmp_path / "weights.pt").is_openai


def _pickle_in_archive(path: Path, target: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(target),)

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(f"{path}.new", "w") as new:
        for entry in old.infolist():
            bomb = entry.filename.endswith("/data.pkl")
            new.writestr(entry, pickle.dumps(Bomb()) if bomb else old.read(entry))
    Path(f"{path}.new").replace(path)


def test_an_archive_cannot_run_code(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pt"
    write_archive(state, path)

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("TorchScript was loaded, which runs the code of the archive")

    monkeypatch.setattr(torch.jit, "load", loaded)
    assert read_weights(path).is_openai
    _pickle_in_archive(path, tmp_path / "ran")
    with pytest.raises(
        OSError, match=r"weights\.pt could not be loaded \(it contains a posix\.mkdir"
    ):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_a_compressed_archive_is_refused_as_such(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    write_archive(state, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "zipped.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(OSError, match=r"zipped\.pt could not be loaded \(it is compressed"):
        read_weights(tmp_path / "zipped.pt")


def _nested_in_itself() -> bytes:
    # c__torch__\nM\n  )\x81  }  (  X...child  self  u  b .
    name = b"X\x05\x00\x00\x00child"
    return b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + name + b"h\x00ub."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_nested_in_itself(), "nested in themselves"),
        # A memo index of two billion, for which C's unpickler would reserve 16 GB.
        (b"\x80\x02}r\xff\xff\xff\x7f.", ""),
        (b"\x80\x02ctorch\nHalfStorage\n.", ""),
        (b"", ""),
    ],
)
def test_a_malicious_archive_is_refused_with_one_sentence(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", content)
        archive.writestr("weights/constants.pkl", b"")
    with pytest.raises(OSError, match=rf"weights\.pt could not be loaded \(.*{reason}") as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_refused_with_one_sentence(
    state: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    ending, write = FORMATS[form]
    path = tmp_path / f"weights.{ending}"
    write(state, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(OSError, match=rf"weights\.{ending} could not be loaded") as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"no weights", [torch.ones(2)], {}, {"epoch": 3, "visual.proj": torch.ones(2)}],
    ids=["empty", "text", "list", "nothing", "with a number"],
)
def test_a_file_without_a_state_dict_is_refused_with_one_sentence(
    tmp_path: Path, content: object
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(OSError, match=r"weights\.pt could not be loaded \(.+\); give a") as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 1


def _lack(state: dict[str, Tensor]) -> None:
    del state["visual.proj"]


def _exceed(state: dict[str, Tensor]) -> None:
    state["visual.transformer.resblocks.2.ln_1.weight"] = torch.ones(128)


def _interpolate(state: dict[str, Tensor]) -> None:
    # open_clip would silently interpolate it to the grid of the tower.
    state["visual.positional_embedding"] = torch.ones(197, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lack, r"visual\.proj is missing there and 128x64 in the tower"),
        (_exceed, r"visual\..*resblocks\.2\.ln_1\.weight is 128 there and missing in the tower"),
        (_interpolate, r"visual\.positional_embedding is 197x128 there and 50x128 in the tower"),
    ],
)
def test_weights_of_another_tower_are_refused_by_the_tensor_that_differs(
    state: dict[str, Tensor],
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], None],
    message: str,
) -> None:
    changed = dict(state)
    change(changed)
    write_archive(changed, tmp_path / "weights.pt")
    with pytest.raises(
        OSError, match=rf"weights\.pt .*not those of a {SMALL} \({message}\).*--tower"
    ):
        load_clip(SMALL, str(tmp_path / "weights.pt"))
