"""A mapped row is the row that pyarrow reads; another layout is refused."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stop_core.cache.config import CacheConfig
from stop_core.cache.layout import open_writer, row_offsets, rows_per_group, shard_schema


def _config(frames: int = 2, size: int = 3) -> CacheConfig:
    return CacheConfig("d", 1, frames, size, None, (), ("train",), ("a",), "0")


def _offsets(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.fromfile(path, np.uint8)
    return row_offsets(pq.read_metadata(path), data, path), data


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4), st.integers(1, 40), st.lists(st.integers(1, 20), max_size=4), st.integers()
)
def test_mapped_rows_are_pyarrows_rows(
    frames: int, size: int, groups: list[int], seed: int
) -> None:
    config = _config(frames, size)
    schema = shard_schema(config)
    random = np.random.default_rng(abs(seed))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.parquet"
        with open_writer(path, schema) as writer:
            for rows in groups:
                values = [random.bytes(config.clip_bytes) for _ in range(rows)]
                writer.write_table(_table(schema, values), row_group_size=rows)
        offsets, data = _offsets(path)
        theirs = pq.read_table(path)["frames"].to_pylist()
    assert len(offsets) == sum(groups)
    assert [data[o : o + config.clip_bytes].tobytes() for o in offsets] == theirs


def _table(schema: pa.Schema, frames: list[bytes]) -> pa.Table:
    empty = {pa.string(): "", pa.int32(): 0, pa.float64(): 0.0}
    columns = {
        field.name: frames if field.name == "frames" else [empty.get(field.type, [])] * len(frames)
        for field in schema
    }
    return pa.Table.from_pydict(columns, schema=schema)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"compression": "zstd", "use_dictionary": False}, "compressed with ZSTD"),
        ({"compression": "none", "use_dictionary": True}, "dictionary"),
        ({"compression": "none", "use_dictionary": False}, "in pages of"),
    ],
)
def test_files_written_anew_by_others_are_refused(
    tmp_path: Path, options: dict[str, object], found: str
) -> None:
    # Small pages: the default page size splits a row group as soon as it is large.
    table = _table(shard_schema(_config(4, 64)), [bytes([i]) * 4 * 64 * 64 * 3 for i in range(40)])
    pq.write_table(table, tmp_path / "s.parquet", write_batch_size=4, **options)
    with pytest.raises(ValueError, match=f"s.parquet: the column 'frames' is .*{found}"):
        _offsets(tmp_path / "s.parquet")


def test_a_nullable_column_is_refused(tmp_path: Path) -> None:
    # Definition levels stand before the values then.
    table = pa.table({"frames": pa.array([b"abcd", b"efgh"], pa.binary(4))})
    pq.write_table(table, tmp_path / "s.parquet", compression="none", use_dictionary=False)
    with pytest.raises(ValueError, match="in pages of"):
        _offsets(tmp_path / "s.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="no column 'frames'"):
        _offsets(tmp_path / "t.parquet")


def test_metadata_says_how_to_read_the_bytes() -> None:
    metadata = shard_schema(_config(2, 3)).metadata
    assert json.loads(metadata[b"stop.frames_shape"]) == [2, 3, 3, 3]
    assert metadata[b"stop.frames_dtype"] == b"uint8"
    assert CacheConfig.from_dict(json.loads(metadata[b"stop.config"])) == _config(2, 3)


def test_large_clips_make_small_row_groups() -> None:
    assert rows_per_group(1) == 16
    assert rows_per_group(1 << 28) == 2
    assert rows_per_group(1 << 30) == 1
