"""A mapped row is the row that pyarrow reads; another layout is refused."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stop_core.cache.config import CacheConfig
from stop_core.cache.layout import (
    CLIP_COLUMNS,
    RowPlaces,
    open_writer,
    row_places,
    rows_per_group,
    shard_schema,
)


def _config(frames: int = 2, size: int = 3, **options: Any) -> CacheConfig:
    clips = (None, (), ("train",), ("a",), "0" * 64, "recognition")
    return replace(CacheConfig("d", 1, frames, size, *clips, "center", "none"), **options)


def _places(path: Path, lengths: Sequence[int]) -> tuple[RowPlaces, np.ndarray]:
    data = np.fromfile(path, np.uint8)
    return row_places(pq.read_metadata(path), data, path, lengths), data


def _mapped_rows(path: Path, lengths: Sequence[int]) -> list[bytes]:
    places, data = _places(path, lengths)
    rows = []
    for start, length, stored in zip(places.start, lengths, places.stored, strict=True):
        page = data[start : start + stored].tobytes()
        if places.compressed:
            page = pa.decompress(page, places.prefix + length, "zstd", asbytes=True)[
                places.prefix :
            ]
        rows.append(page)
        assert len(page) == length
    return rows


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=20), max_size=4),
    st.sampled_from(["center", "none"]),
    st.sampled_from(["none", "zstd"]),
    st.integers(0, 1 << 32),
)
def test_mapped_rows_are_pyarrows_rows(
    groups: list[list[int]], crop: str, compression: str, seed: int
) -> None:
    config = _config(2, 9, crop=crop, compression=compression)
    if compression == "zstd":
        groups = [[length] for group in groups for length in group]
    schema = shard_schema(config, "train-00000")
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.parquet"
        with open_writer(path, schema, compression) as writer:
            for lengths in groups:
                if crop == "center":
                    lengths = [config.most_clip_bytes] * len(lengths)
                values = [random.bytes(length) for length in lengths]
                writer.write_table(_table(schema, values), row_group_size=len(values))
        theirs = pq.read_table(path)["frames"].to_pylist()
        mapped = _mapped_rows(path, list(map(len, theirs)))
    assert len(mapped) == sum(map(len, groups))
    assert mapped == theirs


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
        ({"compression": "zstd", "use_dictionary": False}, "in row groups of 40 rows"),
        ({"compression": "snappy", "use_dictionary": False}, "compressed with SNAPPY"),
        ({"compression": "none", "use_dictionary": True}, "dictionary"),
        ({"compression": "none", "use_dictionary": False}, "in pages of"),
    ],
)
def test_files_written_anew_by_others_are_refused(
    tmp_path: Path, options: dict[str, object], found: str
) -> None:
    # Small pages: the default page size splits a row group as soon as it is large.
    table = _table(
        shard_schema(_config(4, 64), "train-00000"),
        [bytes([i]) * 4 * 64 * 64 * 3 for i in range(40)],
    )
    pq.write_table(table, tmp_path / "s.parquet", write_batch_size=4, **options)
    with pytest.raises(ValueError, match=f"s.parquet: the column 'frames' is .*{found}"):
        _places(tmp_path / "s.parquet", [4 * 64 * 64 * 3] * 40)


def test_a_nullable_column_is_refused(tmp_path: Path) -> None:
    # Definition levels then precede the values.
    table = pa.table({"frames": pa.array([b"abcd", b"efgh"], pa.binary(4))})
    pq.write_table(table, tmp_path / "s.parquet", compression="none", use_dictionary=False)
    with pytest.raises(ValueError, match="in pages of"):
        _places(tmp_path / "s.parquet", [4, 4])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="no column 'frames'"):
        _places(tmp_path / "t.parquet", [1])


def test_values_of_several_lengths_in_several_pages_are_refused(tmp_path: Path) -> None:
    table = _table(
        shard_schema(_config(crop="none"), "train-00000"), [bytes([i]) * 10_000 for i in range(40)]
    )
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 4096}
    pq.write_table(table, tmp_path / "s.parquet", write_batch_size=4, **options)
    with pytest.raises(ValueError, match="not one of 40 values of 400000 bytes"):
        _places(tmp_path / "s.parquet", [10_000] * 40)


def test_rows_behind_the_end_of_the_file_are_refused(tmp_path: Path) -> None:
    path, config = tmp_path / "s.parquet", _config()
    schema = shard_schema(config, "train-00000")
    row = bytes(range(54))
    with open_writer(path, schema) as writer:
        writer.write_table(_table(schema, [row] * 3))
    data, metadata = np.fromfile(path, np.uint8), pq.read_metadata(path)
    end = max(row_places(metadata, data, path, [54] * 3).start) + 54
    row_places(metadata, data[:end], path, [54] * 3)
    with pytest.raises(ValueError, match="outside the file"):
        row_places(metadata, data[: end - 1], path, [54] * 3)


@pytest.mark.parametrize(
    ("lengths", "found"),
    [([3, 5, 4], "other lengths"), ([4, 4], "holds 3 rows.* says 2"), ([4, 4, 5], "not one of 3")],
)
def test_rows_of_other_numbers_and_lengths_are_refused(
    tmp_path: Path, lengths: list[int], found: str
) -> None:
    schema = shard_schema(_config(crop="none"), "train-00000")
    with open_writer(tmp_path / "s.parquet", schema) as writer:
        writer.write_table(_table(schema, [b"1234"] * 3))
    assert _mapped_rows(tmp_path / "s.parquet", [4, 4, 4]) == [b"1234"] * 3
    with pytest.raises(ValueError, match=found):
        _places(tmp_path / "s.parquet", lengths)


def test_metadata_says_how_to_read_the_bytes() -> None:
    metadata = shard_schema(_config(2, 3), "train-00000").metadata
    assert json.loads(metadata[b"stop.frames_shape"]) == [2, 3, 3, 3]
    assert metadata[b"stop.frames_dtype"] == b"uint8"
    assert CacheConfig.from_dict(json.loads(metadata[b"stop.config"])) == _config(2, 3)


def test_no_column_of_a_cache_can_have_nulls() -> None:
    for schema in (shard_schema(_config(), "train-00000"), CLIP_COLUMNS):
        assert not any(field.nullable for field in schema)


def test_large_clips_make_small_row_groups() -> None:
    assert rows_per_group(_config(6, 32)) == 16
    assert rows_per_group(_config(12, 224)) == 4
    assert rows_per_group(_config(1, 9000)) == 1
    assert rows_per_group(_config(6, 64, crop="none")) == 14
    assert rows_per_group(_config(12, 224, compression="zstd")) == 1


def test_the_metadata_describe_square_and_whole_frames() -> None:
    for crop, shape in (("center", [2, 8, 8, 3]), ("none", [2, None, None, 3])):
        metadata = shard_schema(_config(2, 8, crop=crop), "train-00000").metadata
        assert json.loads(metadata[b"stop.frames_shape"]) == shape
