"""The Parquet layout of a shard: plain Parquet, with the frames of every clip at a known offset.

The column `frames` is required, not dictionary-coded, and has one data page per row group. Parquet
then stores the values of a row group contiguously at the end of the column chunk. Three variants:

- Square frames, all of S bytes: fixed-size binary. With n rows in the group, row k begins at

      data_page_offset + total_compressed_size - (n - k) * S

- Uncropped frames, of several shapes: binary. A 4-byte length precedes each value.
- zstd, for either: one row per row group, so that a clip is decompressed without its neighbours.

Without compression, a memory map of the file gives any clip without reading another. Any Parquet
reader opens the same files.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import CACHE_FORMAT

FRAMES_COLUMN = "frames"
CONFIG_KEY = "stop.config"
SHARD = "stop.shard"
FRAME_HEIGHT = "frame_height"
FRAME_WIDTH = "frame_width"
COLUMNS = {
    "video_id": pa.string(),
    "split": pa.string(),
    "label": pa.int32(),
    "class_name": pa.string(),
    "captions": pa.list_(pa.string()),
    FRAMES_COLUMN: pa.binary(),  # fixed-size if frames are square
    FRAME_HEIGHT: pa.int32(),
    FRAME_WIDTH: pa.int32(),
    "frame_index": pa.list_(pa.int32()),
    "frame_time": pa.list_(pa.float32()),
    "num_frames": pa.int32(),
    "fps": pa.float64(),
    "duration": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source_path": pa.string(),
    "source_sha256": pa.string(),
    "decoder": pa.string(),
}
_ROWS_PER_GROUP = 16
# Other programs read the whole group for a single row.
_GROUP_BYTES = 1 << 23
_ZSTD_LEVEL = 3
_LONGEST_PAGE_HEADER = 256
_LENGTH_BYTES = 4
_THREE_INTEGERS = re.compile(rb"\x15([\x80-\xff]*[\x00-\x7f])" * 3, re.DOTALL)


def rows_per_group(config: CacheConfig) -> int:
    """Returns the number of clips per row group."""
    if config.compression != "none":
        return 1
    return max(1, min(_ROWS_PER_GROUP, _GROUP_BYTES // config.most_clip_bytes))


def shard_schema(config: CacheConfig, name: str) -> pa.Schema:
    """Returns the schema of the shard `name`, whose metadata describes the bytes of `frames`.

    The footer of the shard holds it, which reveals swapped shards without hashing.
    """
    square = config.crop == "center"
    shape = config.shape if square else (config.frames, None, None, 3)
    metadata = {
        "stop.format_version": str(CACHE_FORMAT),
        "stop.frames_shape": json.dumps(shape),
        "stop.frames_dtype": "uint8",
        CONFIG_KEY: json.dumps(config.to_dict(), sort_keys=True),
        SHARD: name,
    }
    frames = pa.binary(config.most_clip_bytes) if square else pa.binary()
    columns = COLUMNS | {FRAMES_COLUMN: frames}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata=metadata)


def open_writer(path: Path, schema: pa.Schema, compression: str = "none") -> pq.ParquetWriter:
    """Opens a writer for the layout; each `write_table` call must hold one row group."""
    return pq.ParquetWriter(
        path,
        schema,
        compression=compression.upper(),
        compression_level=_ZSTD_LEVEL if compression == "zstd" else None,
        use_dictionary=False,
        data_page_size=1 << 30,
        # Minimum and maximum of the frames are megabytes without use in the footer.
        write_statistics=[name for name in schema.names if name != FRAMES_COLUMN],
    )


@dataclass(frozen=True)
class RowPlaces:
    """Offsets and sizes of the frames of each row of a file, or of their compressed pages."""

    start: NDArray[np.int64]
    """[rows], bytes from the start of the file."""
    length: NDArray[np.int64]
    """[rows], bytes of the frames."""
    stored: NDArray[np.int64]
    """[rows], bytes to read from `start`: `length`, or the compressed page."""
    prefix: int
    """Bytes of a decompressed page before the frames."""
    compressed: bool


def row_places(metadata: pq.FileMetaData, data: NDArray[np.uint8], where: Path) -> RowPlaces:
    """Returns the offset and size of the frames of each row.

    Args:
        metadata: the footer of the file.
        data: the memory map of the file.
        where: the path, for messages.

    Raises:
        ValueError: if the column `frames` is not laid out as this module says.
    """
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if FRAMES_COLUMN not in names:
        raise ValueError(
            f"{where} has no column {FRAMES_COLUMN!r}: it is not a shard of a frame cache"
        )
    column = names.index(FRAMES_COLUMN)
    chunks = [metadata.row_group(g).column(column) for g in range(metadata.num_row_groups)]
    fixed = metadata.schema.column(column).length  # 0 if each value has its own length
    compressed = any(chunk.compression == "ZSTD" for chunk in chunks)
    groups = [_group_places(chunk, data, fixed, compressed, where) for chunk in chunks]
    start, length, stored = np.concatenate([np.empty((3, 0), np.int64), *groups], axis=1)
    return RowPlaces(start, length, stored, 0 if fixed else _LENGTH_BYTES, compressed)


def _group_places(
    chunk: pq.ColumnChunkMetaData,
    data: NDArray[np.uint8],
    fixed: int,
    compressed: bool,
    where: Path,
) -> NDArray[np.int64]:
    """Returns start, length and stored bytes of the rows of one row group, [3, rows]."""
    rows = int(chunk.num_values)
    header = data[chunk.data_page_offset : chunk.data_page_offset + _LONGEST_PAGE_HEADER]
    page, stored = _page_sizes(header.tobytes())
    end = int(chunk.data_page_offset + chunk.total_compressed_size)
    problem = _problem(chunk, page, fixed, compressed)
    if not problem and compressed:
        return np.array([[end - stored], [page - (0 if fixed else _LENGTH_BYTES)], [stored]])
    if not problem and fixed:
        start = end - (rows - np.arange(rows, dtype=np.int64)) * fixed
        return np.stack([start, np.full(rows, fixed), np.full(rows, fixed)])
    if not problem:
        places = _walk(data, end - page, end, rows)
        if places is not None:
            return places
        problem = f"in pages of {page} bytes, not one of {rows} values with their lengths"
    raise ValueError(
        f"{where}: the column {FRAMES_COLUMN!r} is {problem}, so its rows cannot be mapped; "
        "was it rewritten by another program? Read it with pyarrow, or preprocess again"
    )


def _problem(chunk: pq.ColumnChunkMetaData, page: int, fixed: int, compressed: bool) -> str:
    """Returns why a column chunk cannot be mapped; empty if it can."""
    rows = int(chunk.num_values)
    if chunk.physical_type != ("FIXED_LEN_BYTE_ARRAY" if fixed else "BYTE_ARRAY"):
        return f"stored as {chunk.physical_type}"
    if chunk.compression != ("ZSTD" if compressed else "UNCOMPRESSED"):
        return f"compressed with {chunk.compression}"
    if chunk.has_dictionary_page:
        return "coded with a dictionary"
    if compressed and rows != 1:
        return f"compressed with ZSTD in row groups of {rows} rows, not one"
    # One page that holds exactly the values: no levels before them, no second page after.
    if fixed and page != rows * fixed:
        return f"in pages of {page} bytes, not one of {rows} x {fixed}"
    return ""


def _walk(data: NDArray[np.uint8], at: int, end: int, rows: int) -> NDArray[np.int64] | None:
    """Follows the lengths that precede `rows` values; None unless they end at `end`."""
    places = []
    for _ in range(rows):
        if not 0 < at <= end - _LENGTH_BYTES:
            return None
        length = int(data[at : at + _LENGTH_BYTES].view("<u4")[0])
        places.append((at + _LENGTH_BYTES, length, length))
        at += _LENGTH_BYTES + length
    return np.array(places, np.int64).reshape(rows, 3).T if at == end else None


def _page_sizes(header: bytes) -> tuple[int, int]:
    """Returns the sizes of a Parquet page, raw and compressed; -1 if they cannot be read.

    The header is a Thrift compact structure whose first three fields are 32-bit integers: page
    type, uncompressed size, compressed size. 0x15 begins each: next field, integer.
    """
    found = _THREE_INTEGERS.match(header)
    if not found:
        return -1, -1
    zigzags = (
        sum((byte & 0x7F) << 7 * i for i, byte in enumerate(part)) for part in found.groups()
    )
    _, raw, compressed = ((zigzag >> 1) ^ -(zigzag & 1) for zigzag in zigzags)
    return raw, compressed
