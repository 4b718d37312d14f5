"""Files of a cache: their hashes, their checksums, and what an interruption leaves."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stop_core.cache import files
from stop_core.cache.files import (
    CHECKSUM,
    DATA,
    RECORDS,
    read_checked_json,
    remove_leftovers,
    write_checked_json,
)
from stop_core.storage.atomic import FileFollower, hash_file, hash_json, is_leftover


@given(st.lists(st.binary(max_size=3000).map(lambda part: part * 300), max_size=6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_file_is_hashed_as_it_is_written(parts: list[bytes], leave: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        with path.open("wb", buffering=0) as file:
            followed = FileFollower(path, leave=leave)
            for part in parts:
                file.write(part)
                followed.follow()
        assert followed.sha256 == hash_file(path)
        assert followed.bytes == path.stat().st_size
        assert path.read_bytes() == b"".join(parts)


def test_checked_json_is_read_as_earlier_versions_wrote_it(tmp_path: Path) -> None:
    path, value = tmp_path / "file.json", {"b": [1], "a": "x"}
    write_checked_json(path, value)
    digest = hash_json(value)
    lines = ["{", ' "a": "x",', ' "b": [', "  1", " ],", f' "{CHECKSUM}": "{digest}"', "}", ""]
    assert path.read_text() == "\n".join(lines)
    assert read_checked_json(path) == value
    path.write_text(path.read_text().replace("x", "y"))
    with pytest.raises(ValueError, match="is damaged, its checksum does not fit"):
        read_checked_json(path)


@pytest.mark.parametrize("is_alone", [True, False])
def test_leftovers_are_removed_also_by_two_processes_at_once(
    is_alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for folder in (tmp_path, tmp_path / DATA, tmp_path / RECORDS):
        folder.mkdir(exist_ok=True)
        (folder / ".shard.0123.tmp").touch()
        (folder / "shard.parquet").touch()
        kept.append(folder / "shard.parquet")

    def removed_meanwhile(path: Path) -> bool:
        found = is_leftover(path)
        path.unlink() if found else None
        return found

    if not is_alone:
        monkeypatch.setattr(files, "is_leftover", removed_meanwhile)
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
