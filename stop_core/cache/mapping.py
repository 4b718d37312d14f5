"""Maps one shard file into memory.

Shapes: F frames of a cached clip, H rows and W columns of a frame.
"""

import ctypes
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stop_core.cache.config import CacheConfig
from stop_core.cache.hashed import local_folder
from stop_core.cache.layout import COLUMNS, FRAME_HEIGHT, FRAME_WIDTH, RowPlaces, row_places
from stop_core.cache.manifest import ShardEntry
from stop_core.cache.views import Window
from stop_core.storage.documents import read_parquet, require_file, shown_text

_LIBC = ctypes.CDLL(None)
_ZSTD = pa.Codec("zstd")


ShardLayout = tuple[list[tuple[int, int, int, int]], RowPlaces]
"""F, H, W, 3 of every row of a shard, and the places of the rows."""


class MappedShard:
    """The clips of a memory-mapped shard; ValueError if it is missing, damaged or of another form.

    `layout` is that of an earlier map of the file, which was checked.
    """

    def __init__(
        self,
        path: Path,
        entry: ShardEntry,
        config: CacheConfig,
        layout: ShardLayout | None = None,
    ) -> None:
        self._path, self._data = path, _map(path)
        # Of a file that this process cannot write, mincore says that all pages are in memory.
        self._is_own = os.access(path, os.W_OK)
        if layout is None:
            shapes = [config.shape] * entry.rows
            if config.crop == "none":
                sides = zip(*read_columns(path, entry.rows, FRAME_HEIGHT, FRAME_WIDTH), strict=True)
                shapes = [(config.frames, height, width, 3) for height, width in sides]
            lengths = [math.prod(shape) for shape in shapes]
            layout = shapes, row_places(read_footer(path), self._data, path, lengths)
        self.layout = layout
        self.shapes, self._places = layout

    def clip(self, k: int) -> NDArray[np.uint8]:
        """Returns the frames of row k, [F, H, W, 3]: a view of the map, or decompressed."""
        places, data = self._places, self._stored(k)
        if places.compressed:
            # Decompression releases the GIL, so threads work in parallel.
            with _named(self._path):
                size = places.prefix + math.prod(self.shapes[k])
                page = _ZSTD.decompress(pa.py_buffer(data), size)
            data = np.frombuffer(page, np.uint8)[places.prefix :]
        return data.reshape(self.shapes[k])

    def will_read(self, k: int, window: Window | None) -> None:
        """Makes the system begin to read a window of row k from the disk; None: all of it."""
        # A copy of pages that are not in memory reads a few at a time, and waits for each.
        data = self._stored(k)
        if window is None or self._places.compressed:
            _advise(data, may_be_in_memory=self._is_own)
            return
        clip = data.reshape(self.shapes[k])
        for frame in window.index:
            rows = clip[frame, window.top : window.top + window.size]
            _advise(rows, may_be_in_memory=self._is_own)

    def _stored(self, k: int) -> NDArray[np.uint8]:
        return self._data[self._places.start[k] : self._places.start[k] + self._places.stored[k]]


def _advise(data: NDArray[np.uint8], *, may_be_in_memory: bool) -> None:
    """Makes the system begin to read contiguous bytes of a map. It is advice: it can fail."""
    # If the page in the middle is in memory, the others are, too, as a rule: advice would cost a
    # tenth of the time of the copy.
    start, end = data.ctypes.data, data.ctypes.data + data.nbytes
    if may_be_in_memory:
        middle, found = (start + end) // 2 & -mmap.PAGESIZE, ctypes.create_string_buffer(1)
        _LIBC.mincore(ctypes.c_void_p(middle), ctypes.c_size_t(1), found)
        if found.raw[0] & 1:
            return
    first = start & -mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_WILLNEED)


def _map(path: Path) -> NDArray[np.uint8]:
    """Returns the mapped bytes of a file; Python's `mmap` would keep one of 1,024 descriptors."""
    with _named(path), pa.memory_map(str(require_file(path))) as file:
        return np.frombuffer(file.read_buffer(), np.uint8)


def read_columns(path: Path, rows: int, *names: str) -> list[list[Any]]:
    """Returns whole columns of a shard of `rows` rows; ValueError if it is missing or damaged."""
    schema = pa.schema([pa.field(name, COLUMNS[name], nullable=False) for name in names])
    with _named(path):
        table = read_parquet(path, schema, rows=rows)
    return [table[name].to_pylist() for name in names]


def read_footer(path: Path) -> pq.FileMetaData:
    """Returns the footer of a shard; ValueError if it is missing or damaged."""
    with _named(path):
        return pq.read_metadata(require_file(path))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raises the errors of reading a shard as a ValueError with its name and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"the shard {path} is gone: {remedy(path)}") from error
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(
            f"the shard {path} is damaged ({shown_text(error)}): delete it, then {remedy(path)}"
        ) from error


def remedy(path: Path) -> str:
    """Returns the instruction that replaces an unusable shard."""
    if path.is_relative_to(local_folder()):
        return "run the same command again, which downloads it again"
    return "run the same preprocess command again"
