"""A pushed model is loaded by its commit elsewhere; a stranger's is checked before it is used."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

from stop_core.storage.atomic import SUMS, write_sums
from stop_core.trained_model.files import CARD, FILES, LABELS, PROMPTS, PROVENANCE
from stop_core.trained_model.hub import hub_model, push_model
from stop_core.trained_model.model import TrainedModel
from tests.hub_server import Hub, only_hub
from tests.security.strangers import make_model

NAME = "someone/stop-motion"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with prompts."""
    folder = tmp_path_factory.mktemp("pushed") / "model"
    make_model(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The hub of this test, with an empty cache."""
    with only_hub(tmp_path / "cache") as hub:
        yield hub


def test_a_pushed_model_is_loaded_by_its_commit_and_then_without_the_hub(
    hub: Hub, folder: Path
) -> None:
    address = push_model(folder, NAME)
    assert address == f"hf://{NAME}@{hub.heads[NAME]}"
    assert set(hub.commits[NAME][hub.heads[NAME]]) == set(FILES)
    assert len(hub.large) == 1, "the tensors are in Git LFS"
    pushed, loaded = TrainedModel.load(folder), TrainedModel.load(f"hf://{NAME}")
    how = pushed.preprocessing
    frames = torch.randint(256, (2, how.frames, how.size, how.size, 3), dtype=torch.uint8)
    assert torch.equal(loaded.logits(frames), pushed.logits(frames))
    assert (loaded.config, loaded.provenance) == (pushed.config, pushed.provenance)
    hub.log.clear()
    assert hub_model(address)[0] == address
    TrainedModel.load(address)
    assert hub.log == []


def test_a_branch_is_the_commit_that_it_names_now(hub: Hub, folder: Path, tmp_path: Path) -> None:
    first = push_model(folder, NAME)
    assert push_model(folder, NAME) == first, "an unchanged model makes no commit"
    TrainedModel.load(folder).with_labels(["up", "down"]).save(tmp_path / "second")
    second = push_model(tmp_path / "second", NAME)
    assert first != second
    assert hub_model(f"hf://{NAME}")[0] == hub_model(f"hf://{NAME}@main")[0] == second
    assert TrainedModel.load(first).labels == ("red_square", "blue_circle")
    assert TrainedModel.load(second).labels == ("up", "down")


def test_a_private_model_is_never_pushed_to_a_public_repository(hub: Hub, folder: Path) -> None:
    push_model(folder, "someone/hidden", private=True)
    assert hub.private["someone/hidden"]
    hub.private[NAME] = False
    with pytest.raises(ValueError, match=f"{NAME} is public"):
        push_model(folder, NAME, private=True)
    assert NAME not in hub.commits


def test_only_the_files_of_a_model_are_downloaded(hub: Hub, folder: Path, tmp_path: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in FILES}
    extra = {"pytorch_model.bin": b"\x80", "../escape": b"x", "setup.py": b"x", "a/b.json": b"{}"}
    hub.commit(NAME, files | extra)
    _, found = hub_model(f"hf://{NAME}")
    assert {path.name for path in found.iterdir()} == set(FILES)
    asked = {line.rpartition("/")[2] for line in hub.log if "/resolve/" in line}
    assert asked == set(FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_pickle_under_the_name_of_the_tensors_is_refused(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in FILES:
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "m" / PROMPTS).write_bytes(pickle.dumps(Bomb()))
    write_sums(tmp_path / "m", without=[CARD])
    hub.commit(NAME, {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()})
    with pytest.raises(ValueError, match="as safetensors"):
        TrainedModel.load(f"hf://{NAME}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LABELS, b"{}", "classes"),
        (PROVENANCE, b'{"format_version": 1, "tower_fingerprint": "0"}', "not as it was written"),
        (SUMS, b"../../etc/passwd", "damaged"),
    ],
)
def test_a_changed_file_of_a_stranger_is_refused(
    hub: Hub, folder: Path, name: str, content: bytes, message: str
) -> None:
    hub.commit(NAME, {one: (folder / one).read_bytes() for one in FILES} | {name: content})
    with pytest.raises(ValueError, match=message):
        TrainedModel.load(f"hf://{NAME}")


@pytest.mark.parametrize(("name", "size"), [(LABELS, 1 << 30), (PROMPTS, 1 << 40)])
def test_nothing_is_downloaded_if_a_file_is_too_large(
    hub: Hub, folder: Path, tmp_path: Path, name: str, size: int
) -> None:
    push_model(folder, NAME)
    hub.sizes[name] = size
    with pytest.raises(ValueError, match=f"{name} of hf://{NAME} is too large"):
        hub_model(f"hf://{NAME}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "address",
    [
        *("hf://name", "hf://a/b/c", "hf://../b", "hf://a/..", "hf://a/b@", "hf://a/b@../x"),
        *("hf://a/b@-x", "hf:///a/b", "hf://a/b@x\n", "hf://-a/b c", "hf://a/b?x=1", "a/b"),
    ],
)
def test_an_address_of_another_form_is_refused_without_a_request(hub: Hub, address: str) -> None:
    with pytest.raises(ValueError, match="does not name a model"):
        hub_model(address)
    assert hub.log == []


def test_a_model_that_is_not_there_is_refused_in_one_sentence(hub: Hub) -> None:
    with pytest.raises(OSError, match=r"hf://no/model cannot be reached .*check its name"):
        hub_model("hf://no/model")
    hub.commit(NAME, {"README.md": b"# another"})
    with pytest.raises(OSError, match="@v1 cannot be reached"):
        hub_model(f"hf://{NAME}@v1")
    with pytest.raises(ValueError, match=r"it has no prompts\.safetensors and no config\.yaml"):
        hub_model(f"hf://{NAME}")


def test_a_commit_of_an_untrusted_file_is_not_downloaded(hub: Hub, folder: Path) -> None:
    address = push_model(folder, NAME)
    hub.log.clear()
    with pytest.raises(ValueError, match=f"if you trust it, give --checkpoint {address}"):
        hub_model(address, download=False)
    assert hub.log == []
    hub_model(address)
    assert hub_model(address, download=False)[0] == address


def test_a_hub_without_a_network_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="hf://a/b cannot be reached"):
        hub_model("hf://a/b")


def test_the_card_has_the_fields_of_the_hub(folder: Path) -> None:
    values = yaml.safe_load((folder / CARD).read_text().split("---\n")[1])
    assert values["license"] == "apache-2.0", "the tiny tower on the motion set"
    ((result,),) = [one["results"] for one in values["model-index"]]
    assert result["dataset"] == {"type": "motion", "name": "motion", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "name": "top1", "value": 1}]
    parsed = huggingface_hub.ModelCard((folder / CARD).read_text()).data
    assert parsed.model_name == "a run"
    (score,) = parsed.eval_results or []
    assert (score.metric_type, score.dataset_split, score.metric_value) == ("accuracy", "test", 1)
    assert json.loads((folder / LABELS).read_text())["classes"]
