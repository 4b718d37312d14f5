"""Hashes taken while a file is written are those of the finished file."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from stop_core.storage.atomic import FileFollower, hash_file


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
