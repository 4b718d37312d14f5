"""A file can only name towers that open_clip lists, and loading it does not use the network."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import open_clip
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import save_file

from pipelines.cli.options import parse
from pipelines.inference.model_choice import ModelChoice
from pipelines.search import SearchConfig
from pipelines.search import main as search
from pipelines.sweeping.read_space import read_space
from pipelines.tables.read_table import read_table
from pipelines.train import TrainConfig
from stop_core.clip import loading as clip_module
from stop_core.clip.loading import load_clip
from stop_core.clip.pretrained import OPEN_CLIP_CONFIG, WEIGHTS
from stop_core.storage.atomic import write_sums
from stop_core.trained_model.files import CARD, PROVENANCE
from stop_core.trained_model.files import CONFIG_FILE as MODEL_CONFIG
from stop_core.trained_model.index import IndexInfo, write_index
from stop_core.trained_model.model import TrainedModel
from tests.stop_core.openai_format import SMALL, openai_state, register_small, write_archive

ROOT = Path(__file__).resolve().parents[2]
UNLISTED = ["hf-hub:someone/something", "local-dir:/tmp/something"]


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    register_small(tmp_path_factory.mktemp("models"))


def _hub_folder(path: Path, **text: object) -> Path:
    """Makes a tower like a repository of the Hugging Face Hub."""
    path.mkdir()
    config = open_clip.get_model_config(SMALL)
    config["text_cfg"] |= text
    (path / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": config}))
    save_file(openai_state(), path / WEIGHTS[0])
    return path


@pytest.fixture
def never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("an unlisted tower was read or built")

    for name in ("find_source", "fetch", "hub_file", "_build", "_tokenizer"):
        monkeypatch.setattr(clip_module, name, built)


def _of_model(tower: str, folder: Path) -> None:
    TrainedModel.zero_shot("tiny", None, ["a", "b"]).save(folder / "model")
    path = folder / "model" / MODEL_CONFIG
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"tower": tower}))
    write_sums(path.parent, without=[CARD])
    TrainedModel.load(folder / "model")


def _of_index(tower: str, folder: Path) -> None:
    row = {"video": "v", "error": None, "embedding": [1.0, 0.0]}
    schema = pa.schema(
        [("video", pa.string()), ("error", pa.string()), ("embedding", pa.list_(pa.float32()))]
    )
    model = ModelChoice(tower=tower).to_dict()
    write_index(folder, pa.Table.from_pylist([row], schema), IndexInfo("0" * 16, model, None))
    search(SearchConfig(text="a dog", index=folder))


def _of_recipe(tower: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(f"tower: {tower}\n")
    try:
        parse(TrainConfig, ["--config", str(folder / "recipe.yaml")])
    except SystemExit as end:
        raise ValueError(f"exit code {end.code}") from end


def _of_table(tower: str, folder: Path) -> None:
    (folder / "table.yaml").write_text(f"rows: {{a: {{tower: '{tower}'}}}}\n")
    read_table(folder / "table.yaml")


def _of_space(tower: str, folder: Path) -> None:
    (folder / "space.yaml").write_text(
        f"objective: val/top1\nfixed: {{tower: '{tower}'}}\nsearch: {{n_s: {{choice: [1, 2]}}}}\n"
    )
    read_space(folder / "space.yaml")


@pytest.mark.usefixtures("never_built")
@pytest.mark.parametrize("tower", UNLISTED)
@pytest.mark.parametrize("named_by", [_of_model, _of_index, _of_recipe, _of_table, _of_space])
def test_a_file_cannot_name_an_unlisted_tower(
    named_by: Callable[[str, Path], None],
    tower: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at below
        named_by(tower, tmp_path)
    message = f"{caught.value}{capsys.readouterr().err}"
    assert f"names the tower {tower}, which open_clip does not list" in message
    assert f"--tower {tower}" in message


@pytest.mark.parametrize("named_by", [_of_model, _of_recipe, _of_table, _of_space])
def test_the_same_file_with_a_listed_tower_is_read(
    named_by: Callable[[str, Path], None], tmp_path: Path
) -> None:
    named_by("tiny", tmp_path)


def test_the_user_can_name_an_unlisted_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = f"local-dir:{_hub_folder(tmp_path / 'hub')}"
    TrainedModel.zero_shot(tower, None, ["a", "b"]).save(tmp_path / "model")
    choice = ModelChoice(checkpoint=tmp_path / "model", tower=tower).found(tmp_path)
    assert choice.load().labels == ("a", "b")
    # Other weights are detected before a tokenizer is built.
    monkeypatch.setattr(clip_module, "_tokenizer", None)
    values = json.loads((tmp_path / "model" / PROVENANCE).read_text())
    values["tower_fingerprint"] = "0" * 16
    (tmp_path / "model" / PROVENANCE).write_text(json.dumps(values))
    write_sums(tmp_path / "model", without=[CARD])
    with pytest.raises(ValueError, match="was trained on other weights"):
        choice.load()
    with pytest.raises(ValueError, match="needs --tower"):
        ModelChoice(checkpoint=tmp_path / "model", tower=tower, pretrained="openai")
    with pytest.raises(ValueError, match="each name a model"):
        ModelChoice(checkpoint=tmp_path / "model", tower="tiny")


@pytest.mark.parametrize(
    "options",
    [
        {"trust_remote_code": True},
        {"trust_remote_code": False},
        {"clean": "canonicalize", "bpe_path": "/etc/hostname"},
        {"cache_dir": "/tmp", "use_auth_token": True},
    ],
)
@pytest.mark.parametrize("vocabulary", [{}, {"hf_tokenizer_name": "someone/something"}])
def test_tokenizer_options_are_refused_before_it_is_built(
    options: dict[str, object],
    vocabulary: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = _hub_folder(tmp_path / "hub", tokenizer_kwargs=options, **vocabulary)
    monkeypatch.setattr(clip_module, "find_spec", lambda package: package)
    monkeypatch.setattr(clip_module, "_build", None)
    monkeypatch.setattr(clip_module, "_tokenizer", None)
    unknown = sorted(options.keys() - {"clean"})
    with pytest.raises(ValueError, match=f"sets {', '.join(unknown)} in tokenizer_kwargs"):
        load_clip(f"local-dir:{folder}")


def test_an_accepted_option_reaches_the_tokenizer(tmp_path: Path) -> None:
    folder = _hub_folder(tmp_path / "hub", tokenizer_kwargs={"clean": "canonicalize"})
    tokens = load_clip(f"local-dir:{folder}").tokenize(["a dog.", "a dog"])
    assert torch.equal(tokens[0], tokens[1])


def test_loading_does_not_use_the_network(tmp_path: Path) -> None:
    write_archive(openai_state(), tmp_path / "weights.pt")
    TrainedModel.zero_shot("tiny", None, ["a", "b"]).save(tmp_path / "tiny")
    hub = _hub_folder(tmp_path / "hub")
    program = f"""
        import socket
        asked = []

        def refused(*arguments):
            asked.append(arguments)
            raise OSError("there is no network")

        socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = refused
        from pathlib import Path
        from stop_core.clip.loading import load_clip
        from stop_core.trained_model.model import TrainedModel, embedding_identity
        from pipelines.inference.model_choice import ModelChoice
        from pipelines.search import SearchConfig, main
        from stop_core.trained_model.index import IndexInfo, write_index
        import pyarrow as pa

        from tests.stop_core.openai_format import SMALL, register_small

        folder = Path({str(tmp_path)!r})
        register_small(folder)
        model = TrainedModel.zero_shot(SMALL, str(folder / "weights.pt"), ["a", "b"])
        model.save(folder / "vit")
        for name in ("tiny", "vit"):
            model = TrainedModel.load(folder / name)
            model.embed_texts(["a dog"])
            vector = model.embed_texts(["a cat"])[0].tolist()
            schema = pa.schema([("video", pa.string()), ("error", pa.string()),
                                ("embedding", pa.list_(pa.float32()))])
            rows = [{{"video": "v", "error": None, "embedding": vector}}]
            choice = ModelChoice(checkpoint=folder / name).to_dict()
            info = IndexInfo(embedding_identity(model), choice, None)
            (folder / f"index-{{name}}").mkdir()
            write_index(folder / f"index-{{name}}", pa.Table.from_pylist(rows, schema), info)
            assert main(SearchConfig(text="a cat", index=folder / f"index-{{name}}"))
        load_clip("local-dir:{hub}").tokenize(["a dog"])
        load_clip(SMALL, "random").tokenize(["a dog"])
        assert not asked, asked
        try:
            load_clip("ViT-B-32", "openai")
        except OSError:
            assert asked, "the guard did not see a download"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
