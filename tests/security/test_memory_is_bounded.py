"""Small files cannot allocate gigabytes, and huge files are refused before they are read."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from stop_core.cache.files import MANIFEST, write_checked_json
from stop_core.cache.manifest import Manifest
from stop_core.datasets import DATASETS, annotations
from tests.stop_core.datasets.conftest import make_tree_at
from tests.stop_core.storage.test_documents import bomb, megabytes_of

MEGABYTES = 300
"""Largest memory of a refusal."""
_READ_MSVD = "from stop_core.datasets.msvd import read_msvd; read_msvd(path)"
_READ_YAML = "from pipelines.sweeping.read_space import read_space; read_space(path)"
_READ_SETTINGS = (
    "from pipelines.train import TrainConfig; from pipelines.cli.options import _from_yaml; "
    "_from_yaml(TrainConfig, path)"
)
_READ_TABLE = "from pipelines.tables.read_table import read_table; read_table(path)"
_READ_TEMPLATES = (
    "from stop_core.settings.class_templates import find_templates; "
    "find_templates((str(path),), 'a')"
)


def _refusals(call: str, paths: list[Path]) -> list[str]:
    """Calls a reader for every path in one process with limited memory; returns its messages."""
    imports, _, call = call.rpartition(";")
    peak, printed = megabytes_of(
        f"""
from pathlib import Path
{imports}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    try:
        print("read", {call})
    except (ValueError, OSError) as problem:
        print(problem)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
""",
        *map(str, paths),
        limit=6 << 30,
    )
    assert peak < MEGABYTES
    messages = printed.split("\n")
    assert len(messages) == len(paths), "a message has one line"
    assert max(map(len, messages)) < 1000
    return messages


@pytest.mark.parametrize("call", [_READ_YAML, _READ_SETTINGS, _READ_TABLE, _READ_TEMPLATES])
def test_yaml_is_refused_in_one_short_sentence(tmp_path: Path, call: str) -> None:
    texts = [bomb(9), bomb(30), f"search: {bomb(6)[4:]}", "[" * 200_000, "a: " + "9" * 900_000]
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    for path, message in zip(paths, _refusals(call, paths), strict=True):
        assert str(path) in message


def _memo(index: int) -> bytes:
    return b"\x80\x04]r" + index.to_bytes(4, "little") + b"."


def _aliased() -> bytes:
    words = ["x" * 1000] * 1000
    texts = [words] * 1000
    return pickle.dumps({f"clip{i}": texts for i in range(1000)})


def test_a_pickle_is_refused_in_one_short_sentence(tmp_path: Path) -> None:
    contents = [
        *(_memo(0xFFFFFFFF), _memo(0x7FFFFFFF), b"]p99999999999\n."),
        *(b"(" * 1_000_000, b"]" * 100_000 + b"a" * 99_999 + b".", _aliased()),
        *(b"\x80\x04\x95" + b"\xff" * 8 + b"].", b"\x80\x05\x96" + b"\xff" * 8 + b"."),
        pickle.dumps({b"a": [[b"b"]]}),
        pickle.dumps({"a": 3}),
    ]
    roots = [tmp_path / str(number) for number in range(len(contents))]
    for root, content in zip(roots, contents, strict=True):
        make_tree_at(root, "msvd")
        (path,) = root.rglob("raw-captions.pkl")
        path.write_bytes(content)
    for root, message in zip(roots, _refusals(_READ_MSVD, roots), strict=True):
        assert str(root) in message
        assert "raw-captions.pkl: not a pickled dictionary" in message


def test_annotations_have_a_limit_of_lines_and_bytes(
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
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(ValueError, match=r"clips\.csv has 1,099,511,627,776 bytes, and at most"):
        DATASETS["csv"].read(tmp_path, 1)


def test_a_manifest_cannot_claim_a_billion_clips(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    from tests.security.strangers import make_cache

    make_cache(tmp_path / "cache", write_video)
    path = tmp_path / "cache" / MANIFEST
    values = Manifest.load(tmp_path / "cache").to_dict()
    values["shards"][0]["rows"] = values["counts"]["train"] = 10**9
    write_checked_json(path, values)
    with pytest.raises(ValueError, match=r"manifest\.json: shards\.0\.rows: .* equal to 512"):
        Manifest.load(tmp_path / "cache")
    with path.open("r+b") as file:
        file.truncate(10**9 // 512 * 170)  # the size for the shards of a billion clips
    with pytest.raises(ValueError, match="the limit is 67,108,864"):
        Manifest.load(tmp_path / "cache")
