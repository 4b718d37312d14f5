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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
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
    """Returns the schema of a shard; its metadata, in the footer, reveals swapped shards."""
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


CLIP_COLUMNS = pa.schema(
    [pa.field(n, COLUMNS[n], nullable=False) for n in ("video_id", "split", "label", "captions")]
)
"""The columns of `clips.parquet`."""


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
    """Where the frames of each row of a file are, or their compressed pages."""

    start: list[int]
    """Bytes from the start of the file."""
    stored: list[int]
    """Bytes to read from `start`: the frames, or the compressed page."""
    prefix: int
    """Bytes of a decompressed page before the frames."""
    compressed: bool


def row_places(
    metadata: pq.FileMetaData, data: NDArray[np.uint8], where: Path, lengths: Sequence[int]
) -> RowPlaces:
    """Returns the places of the rows of a mapped file; ValueError if `lengths` do not fit it."""
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if FRAMES_COLUMN not in names:
        raise ValueError(
            f"{where} has no column {FRAMES_COLUMN!r}: it is not a shard of a frame cache"
        )
    column = names.index(FRAMES_COLUMN)
    chunks = [metadata.row_group(g).column(column) for g in range(metadata.num_row_groups)]
    counts = [chunk.num_values for chunk in chunks]
    if sum(counts) != len(lengths) or min(counts, default=0) < 0:
        raise ValueError(
            f"{where} holds {sum(counts)} rows, and the manifest says {len(lengths)}: preprocess "
            "again into another --cache"
        )
    prefix = 0 if metadata.schema.column(column).length else _LENGTH_BYTES
    compressed = any(chunk.compression == "ZSTD" for chunk in chunks)
    places = RowPlaces([], [], prefix, compressed)
    rest = iter(lengths)
    for chunk in chunks:
        own = list(islice(rest, chunk.num_values))
        if problem := _add_group(places, chunk, data, own):
            raise ValueError(
                f"{where}: the column {FRAMES_COLUMN!r} is {problem}, so its rows cannot be "
                "mapped; was it rewritten by another program? Read it with pyarrow, or preprocess "
                "again"
            )
    return places


def _add_group(
    places: RowPlaces, chunk: pq.ColumnChunkMetaData, data: NDArray[np.uint8], lengths: list[int]
) -> str:
    """Adds the rows of a row group; returns why it cannot be mapped, empty if it can."""
    rows, prefix, offset = len(lengths), places.prefix, int(chunk.data_page_offset)
    page, stored = _page_sizes(data[offset : offset + _LONGEST_PAGE_HEADER].tobytes())
    end = offset + int(chunk.total_compressed_size)
    if chunk.physical_type != ("BYTE_ARRAY" if prefix else "FIXED_LEN_BYTE_ARRAY"):
        return f"stored as {chunk.physical_type}"
    if chunk.compression != ("ZSTD" if places.compressed else "UNCOMPRESSED"):
        return f"compressed with {chunk.compression}"
    if chunk.has_dictionary_page:
        return "coded with a dictionary"
    if places.compressed and rows != 1:
        return f"compressed with ZSTD in row groups of {rows} rows, not one"
    # One page that holds exactly the values: no levels before them, no second page after.
    if page != sum(lengths) + rows * prefix:
        return f"in pages of {page} bytes, not one of {rows} values of {sum(lengths)} bytes"
    if places.compressed:
        starts, sizes = [end - stored], [stored]
    else:
        starts = [end - page + sum(lengths[:k]) + (k + 1) * prefix for k in range(rows)]
        sizes = lengths
    if min(starts, default=0) < 0 or end > len(data):
        return "outside the file"
    places.start.extend(starts)
    places.stored.extend(sizes)
    if prefix and not places.compressed:
        found = [int.from_bytes(data[at - prefix : at].tobytes(), "little") for at in starts]
        if found != lengths:
            return "filled with values of other lengths than their frames have"
    return ""


def _page_sizes(header: bytes) -> tuple[int, int]:
    """Returns the sizes of a Parquet page, raw and compressed; -1 if they cannot be read."""
    # Thrift's compact protocol: three integers, each after a byte 0x15 (next field, integer), are
    # the page type, the uncompressed size and the compressed size.
    found = _THREE_INTEGERS.match(header)
    if not found:
        return -1, -1
    zigzags = (
        sum((byte & 0x7F) << 7 * i for i, byte in enumerate(part)) for part in found.groups()
    )
    _, raw, compressed = ((zigzag >> 1) ^ -(zigzag & 1) for zigzag in zigzags)
    return raw, compressed
