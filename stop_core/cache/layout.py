"""The Parquet layout of a shard: plain Parquet, with every clip's frames at a known offset.

The column `frames` is fixed-size binary, required, uncompressed and not dictionary-coded, with one
data page a row group. Parquet then stores the values of a row group back to back at the end of the
column chunk, so with n rows of S bytes in the group, row k begins at

    offset_k = data_page_offset + total_compressed_size - (n - k) * S

and a memory map of the file gives any clip without reading another. Any Parquet reader opens the
same file.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import FORMAT_VERSION

FRAMES = "frames"
_ROWS_PER_GROUP = 16
# A data page's size is a signed 32-bit number; stay well below where frames are large.
_MOST_PAGE_BYTES = 1 << 29
_LONGEST_PAGE_HEADER = 256


def rows_per_group(clip_bytes: int) -> int:
    """Returns how many clips make a row group."""
    return max(1, min(_ROWS_PER_GROUP, _MOST_PAGE_BYTES // clip_bytes))


def shard_schema(config: CacheConfig) -> pa.Schema:
    """Returns the columns of a shard; the metadata says how to read the bytes of `frames`."""
    metadata = {
        "stop.format_version": str(FORMAT_VERSION),
        "stop.frames_shape": json.dumps(config.shape),
        "stop.frames_dtype": "uint8",
        "stop.config": json.dumps(config.to_dict(), sort_keys=True),
    }
    columns = {
        "video_id": pa.string(),
        "split": pa.string(),
        "label": pa.int32(),
        "class_name": pa.string(),
        "captions": pa.list_(pa.string()),
        FRAMES: pa.binary(config.clip_bytes),
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
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata=metadata)


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Opens a writer for the layout; each `write_table` call must hold one row group."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="NONE",
        use_dictionary=False,
        data_page_size=1 << 30,
        # Least and greatest of a megabyte of pixels say nothing and would sit in the footer.
        write_statistics=[name for name in schema.names if name != FRAMES],
    )


def row_offsets(
    metadata: pq.FileMetaData, data: NDArray[np.uint8], where: Path
) -> NDArray[np.int64]:
    """Returns where in the file the frames of each row begin, [rows].

    Args:
        metadata: the footer of the file.
        data: the whole file, mapped.
        where: the path, for messages.

    Raises:
        ValueError: if the column `frames` is not laid out as this module says.
    """
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if FRAMES not in names:
        raise ValueError(f"{where} has no column {FRAMES!r}: it is no shard of a frame cache")
    column = names.index(FRAMES)
    size = metadata.schema.column(column).length
    groups = [
        _group_offsets(metadata.row_group(g).column(column), data, size, where)
        for g in range(metadata.num_row_groups)
    ]
    return np.concatenate([np.empty(0, np.int64), *groups])


def _group_offsets(
    chunk: pq.ColumnChunkMetaData, data: NDArray[np.uint8], size: int, where: Path
) -> NDArray[np.int64]:
    rows = int(chunk.num_values)
    found = [
        problem
        for problem, present in (
            (f"stored as {chunk.physical_type}", chunk.physical_type != "FIXED_LEN_BYTE_ARRAY"),
            (f"compressed with {chunk.compression}", chunk.compression != "UNCOMPRESSED"),
            ("coded with a dictionary", chunk.has_dictionary_page),
        )
        if present
    ]
    if not found:
        header = data[chunk.data_page_offset : chunk.data_page_offset + _LONGEST_PAGE_HEADER]
        page_bytes = _page_bytes(header.tobytes())
        # One page that holds exactly the values: no levels before them, no second page after.
        if page_bytes != rows * size:
            found.append(f"in pages of {page_bytes} bytes, not one of {rows} x {size}")
    if found:
        raise ValueError(
            f"{where}: the column {FRAMES!r} is {', '.join(found)}, so its rows cannot be mapped; "
            "was it written anew by another program? Read it with pyarrow, or preprocess again"
        )
    end = int(chunk.data_page_offset + chunk.total_compressed_size)
    return end - (rows - np.arange(rows, dtype=np.int64)) * size


def _page_bytes(header: bytes) -> int:
    """Returns the compressed size that a Parquet page header gives; -1 if it cannot be read.

    The header is a Thrift compact structure whose first three fields are 32-bit integers: page
    type, uncompressed size, compressed size. 0x15 begins each: next field, integer.
    """
    value, at = -1, 0
    for _ in range(3):
        if at >= len(header) or header[at] != 0x15:
            return -1
        at, shift, zigzag = at + 1, 0, 0
        while at < len(header):
            zigzag |= (header[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if header[at - 1] < 0x80:
                break
        value = (zigzag >> 1) ^ -(zigzag & 1)
    return value
