"""A file of a few bytes asks for no gigabytes, and a huge one is refused before it is in memory."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.cache.files import MANIFEST, write_checked_json
from stop_core.cache.manifest import Manifest
from stop_core.datasets import DATASETS, annotations
from tests.stop_core.datasets.conftest import make_tree_at
from tests.stop_core.storage.test_documents import bomb, refusal_of

MEGABYTES = 300
"""Most that a refusal may take."""
_READ_MSVD = "from stop_core.datasets.msvd import read_msvd; read_msvd(Path(sys.argv[1]))"
_READ_YAML = "from pipelines.sweeping.read_space import read_space; read_space(Path(sys.argv[1]))"
_READ_SETTINGS = (
    "from pipelines.train import TrainConfig; from pipelines.cli.options import _from_yaml; "
    "_from_yaml(TrainConfig, Path(sys.argv[1]))"
)
_READ_TABLE = "from pipelines.tables.read_table import read_table; read_table(Path(sys.argv[1]))"
_READ_TEMPLATES = (
    "from stop_core.settings.class_templates import find_templates; "
    "find_templates((sys.argv[1],), 'a')"
)


@pytest.mark.parametrize("call", [_READ_YAML, _READ_SETTINGS, _READ_TABLE, _READ_TEMPLATES])
@pytest.mark.parametrize(
    "text", [bomb(9), bomb(30), f"search: {bomb(6)[4:]}", "[" * 200_000, "a: " + "9" * 900_000]
)
def test_yaml_is_refused_in_one_short_sentence(tmp_path: Path, call: str, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    peak, said = refusal_of(call, path, limit=6 << 30)
    assert peak < MEGABYTES
    assert str(path) in said
    assert said.count("\n") == 0
    assert len(said) < 1000


def _memo(index: int) -> bytes:
    return b"\x80\x04]r" + index.to_bytes(4, "little") + b"."


def _aliased() -> bytes:
    words = ["x" * 1000] * 1000
    texts = [words] * 1000
    return pickle.dumps({f"clip{i}": texts for i in range(1000)})


@pytest.mark.parametrize(
    "content",
    [
        *(_memo(0xFFFFFFFF), _memo(0x7FFFFFFF), b"]p99999999999\n."),
        *(b"(" * 1_000_000, b"]" * 100_000 + b"a" * 99_999 + b".", _aliased()),
        *(b"\x80\x04\x95" + b"\xff" * 8 + b"].", b"\x80\x05\x96" + b"\xff" * 8 + b"."),
        pickle.dumps({b"a": [[b"b"]]}),
        pickle.dumps({"a": 3}),
    ],
    ids=lambda content: f"{len(content)}-{content[:4].hex()}",
)
def test_a_pickle_is_refused_in_one_short_sentence(tmp_path: Path, content: bytes) -> None:
    make_tree_at(tmp_path, "msvd")
    (path,) = tmp_path.rglob("raw-captions.pkl")
    path.write_bytes(content)
    peak, said = refusal_of(_READ_MSVD, tmp_path, limit=6 << 30)
    assert peak < MEGABYTES
    assert "raw-captions.pkl: not a pickled dictionary" in said
    assert said.count("\n") == 0
    assert len(said) < 1000


def test_an_annotation_has_a_greatest_number_of_lines_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"{i}.mp4,train,a\n" for i in range(99))
    (tmp_path / "clips.csv").write_text("path,split,label\n" + rows)
    monkeypatch.setattr(annotations, "MOST_LINES", 100)
    assert len(DATASETS["csv"].read(tmp_path, 1)) == 99
    monkeypatch.setattr(annotations, "MOST_LINES", 99)
    with pytest.raises(ValueError, match=r"clips\.csv has more than 99 lines: divide the dataset"):
        DATASETS["csv"].read(tmp_path, 1)
    with (tmp_path / "clips.csv").open("r+b") as file:
        file.truncate(1 << 40)  # without taking a block of the disk
    with pytest.raises(ValueError, match=r"clips\.csv has 1,099,511,627,776 bytes, and at most"):
        DATASETS["csv"].read(tmp_path, 1)


def test_a_manifest_cannot_say_that_it_holds_a_milliard_clips(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    from tests.security.strangers import make_cache

    make_cache(tmp_path / "cache", write_video)
    path = tmp_path / "cache" / MANIFEST
    values = Manifest.load(tmp_path / "cache").to_dict()
    values["shards"][0]["rows"] = values["counts"]["train"] = 10**9
    write_checked_json(path, values)
    with pytest.raises(ValueError, match=r"manifest\.json: shards\.0\.rows: .* equal to 64"):
        Manifest.load(tmp_path / "cache")
    with path.open("r+b") as file:
        file.truncate(10**9 // 64 * 170)  # so many bytes have the shards of a milliard clips
    with pytest.raises(ValueError, match="and at most 67,108,864 are read"):
        Manifest.load(tmp_path / "cache")
