"""Every field of a file has a type and a range; an error names the field and the file."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.training.result import TrainingResult
from stop_core.cache.files import CHECKSUM, JOB, MANIFEST, read_checked_json, write_checked_json
from stop_core.cache.manifest import Manifest, read_job
from stop_core.evaluation.stored_predictions import RESULT
from stop_core.storage.atomic import hash_json
from stop_core.trained_model.files import (
    CONFIG_FILE,
    LABELS,
    PREPROCESSING,
    PROVENANCE,
    read_record,
)
from stop_core.trained_model.index import EMBEDDINGS, SearchIndex
from stop_core.training.run_state import ORIGIN, PROGRESS, read_origin, read_progress
from tests.security.strangers import (
    make_cache,
    make_checkpoint,
    make_index,
    make_model,
    make_run,
)

HOSTILE: tuple[Any, ...] = (None, -1, 10**18, 10**400, 0.5, math.nan, True, [], {}, [[]], ["a"])
HOSTILE_TEXT = ("../../x", "/etc", "", "a\nb", "1", "x" * 5_000)
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "manifest": (f"cache/{MANIFEST}", lambda path: Manifest.load(path.parent)),
    "job": (f"cache/{JOB}", lambda path: read_job(path.parent)),
    "settings": (f"model/{CONFIG_FILE}", lambda path: read_record(path.parent)),
    "labels": (f"model/{LABELS}", lambda path: read_record(path.parent)),
    "preprocessing": (f"model/{PREPROCESSING}", lambda path: read_record(path.parent)),
    "provenance": (f"model/{PROVENANCE}", lambda path: read_record(path.parent)),
    "progress": (f"checkpoint/{PROGRESS}", lambda path: read_progress(path.parent)),
    "origin": (f"checkpoint/{ORIGIN}", lambda path: read_origin(path.parent)),
    "result": ("run/result.json", lambda path: TrainingResult.load(path.parent)),
    "index": (f"index/{EMBEDDINGS}", lambda path: SearchIndex(path.parent)),
}
# Fields without a type: settings that are only compared, texts, and a folder that is replaced.
_FREE = {"model", "config", "versions", "records", "folder", "reused"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("strangers")
    make_cache(root / "cache", write_video)
    make_model(root / "model")
    make_checkpoint(root / "checkpoint")
    make_run(root / "run")
    make_index(root / "index")
    return root


@pytest.fixture(autouse=True)
def _any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepts any checksum of a model: otherwise it would refuse every changed value."""
    monkeypatch.setattr("stop_core.trained_model.files.check_sums", lambda *_: None)


def _load(path: Path) -> Any:
    if path.suffix == ".parquet":
        return json.loads(pq.read_schema(path).metadata[b"stop.index"])
    if path.parent.name == "cache":
        return read_checked_json(path)
    return yaml.safe_load(path.read_text())


def _store(path: Path, value: Any) -> None:
    if path.suffix == ".parquet":
        metadata = {b"stop.index": json.dumps(value).encode()}
        pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    elif path.parent.name == "cache" and isinstance(value, dict):
        value.pop(CHECKSUM, None)
        write_checked_json(path, value)
    else:
        if path.name == RESULT and isinstance(value, dict) and len(str(value.get("sha256"))) == 64:
            value = {k: v for k, v in value.items() if k != "sha256"}
            value["sha256"] = hash_json(value)
        path.write_text(yaml.safe_dump(value) if path.suffix == ".yaml" else json.dumps(value))


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of keys to every value, outermost first."""
    if way and way[-1] not in _FREE:
        yield way
    if isinstance(value, dict | list) and not (way and way[-1] in _FREE):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*way, key))


def _changed(value: Any, way: tuple[Any, ...], to: Any) -> Any:
    changed = inner = json.loads(json.dumps(value))
    for step in way[:-1]:
        inner = inner[step]
    inner[way[-1]] = to
    return changed


@pytest.mark.parametrize("kind", READERS)
def test_every_field_has_its_type_or_is_refused_by_name(
    kind: str, made: Path, tmp_path: Path
) -> None:
    name, read = READERS[kind]
    path = tmp_path / name
    shutil.copytree((made / name).parent, path.parent)
    whole = _load(path)
    read(path)
    refused = 0
    for way in _places(whole):
        there: Any = whole
        for step in way:
            there = there[step]
        for value in (*HOSTILE, *HOSTILE_TEXT):
            _store(path, _changed(whole, way, value))
            if refusal := _refusal(read, path):
                assert str(path) in refusal
                assert "\n" not in refusal
                assert len(refusal) < 1000
                refused += 1
            else:
                # An accepted value has the same type, or is optional.
                assert _alike(value, there, way), f"{way} was {there!r} and is {value!r}"
    assert refused > len(HOSTILE)


def _refusal(read: Callable[[Path], object], path: Path) -> str:
    """Returns the reason why a file is refused; empty if it is read."""
    try:
        read(path)
    except ValueError as refusal:
        return str(refusal)
    return ""


def _alike(value: Any, there: Any, way: tuple[Any, ...]) -> bool:
    numbers = (int, float)
    if value is None or there is None:  # optional settings
        return True
    if isinstance(value, bool) or isinstance(there, bool):
        return isinstance(value, bool) and isinstance(there, bool)
    if isinstance(value, numbers) and isinstance(there, numbers):
        measured = not {"metrics", "curve", "best_metrics"}.isdisjoint(way)
        return measured or isinstance(there, float) or isinstance(value, int)
    return type(value) is type(there)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("value", [None, [], {}, 3, "x", [{}]])
def test_another_value_instead_of_the_document_is_refused(
    kind: str, value: Any, made: Path, tmp_path: Path
) -> None:
    name, read = READERS[kind]
    path = tmp_path / name
    shutil.copytree((made / name).parent, path.parent)
    _store(path, value)
    if kind in ("progress", "settings") and value == {}:  # all fields have defaults
        return
    with pytest.raises(ValueError, match=path.name) as refusal:
        read(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["manifest", "job", "provenance", "origin", "result"])
def test_missing_and_additional_fields_are_refused(kind: str, made: Path, tmp_path: Path) -> None:
    name, read = READERS[kind]
    path = tmp_path / name
    shutil.copytree((made / name).parent, path.parent)
    whole = _load(path)
    _store(path, {**whole, "surplus": 1})
    if kind != "job":  # only its version and options are read
        with pytest.raises(ValueError, match="surplus"):
            read(path)
    config = whole["config"] if kind in ("manifest", "job") else {}
    for field in config.keys() - {"decoder", "sampling"}:  # later additions
        _store(path, {**whole, "config": {k: v for k, v in config.items() if k != field}})
        with pytest.raises(ValueError, match=rf"config: {field}: field required"):
            read(path)
    required = {"manifest": ("counts", "shards", "data_hash"), "origin": ("run", "config")}
    for field in required.get(kind, ()):
        _store(path, {k: v for k, v in whole.items() if k != field})
        with pytest.raises(ValueError, match=f"{field}: field required"):
            read(path)


def test_counts_equal_those_of_the_shards_and_shards_are_unique(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "cache", tmp_path / "cache")
    path = tmp_path / "cache" / MANIFEST
    whole = read_checked_json(path)
    changes: tuple[dict[str, Any], ...] = (
        {"counts": {**whole["counts"], "train": 10**9}},
        {"counts": {}},
        {"shards": whole["shards"] * 2},
        {"shards": []},
    )
    for change in changes:
        write_checked_json(path, {**whole, **change})
        with pytest.raises(ValueError, match=r"manifest\.json was changed: .*counts"):
            Manifest.load(path.parent)
