"""One shard file, mapped into memory.

Shapes: F frames of a cached clip, H rows and W columns of a frame.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stop_core.cache.config import CacheConfig
from stop_core.cache.hashed import local_folder
from stop_core.cache.layout import FRAME_HEIGHT, FRAME_WIDTH, row_places
from stop_core.cache.manifest import ShardEntry

_ZSTD = pa.Codec("zstd")


class MappedShard:
    """The clips of a shard, in the map of its file; checked when it is opened.

    Raises:
        ValueError: if the file is gone, damaged, or not laid out as the cache format says.
    """

    def __init__(self, path: Path, entry: ShardEntry, config: CacheConfig) -> None:
        self._data = _map(path)
        self._places = row_places(read_footer(path), self._data, path)
        self._shapes = [config.shape] * entry.rows
        if config.crop == "none":
            sides = zip(*read_columns(path, FRAME_HEIGHT, FRAME_WIDTH), strict=True)
            self._shapes = [(config.frames, height, width, 3) for height, width in sides]
        expected = [int(np.prod(shape)) for shape in self._shapes]
        if self._places.length.tolist() != expected:
            raise ValueError(
                f"{path} holds {len(self._places.length)} rows of {sum(self._places.length)} bytes "
                f"in all, and the manifest says {entry.rows} of {sum(expected)}: preprocess again "
                "into another --cache"
            )

    def clip(self, k: int) -> NDArray[np.uint8]:
        """Returns the frames of row k, [F, H, W, 3]: still in the map, or decompressed."""
        places = self._places
        start, length = int(places.start[k]), int(places.length[k])
        data = self._data[start : start + int(places.stored[k])]
        if places.compressed:
            # The GIL is released meanwhile, so several threads do several clips.
            page = _ZSTD.decompress(pa.py_buffer(data), places.prefix + length)
            data = np.frombuffer(page, np.uint8)[places.prefix :]
        return data.reshape(self._shapes[k])


def open_shard(path: Path) -> Any:
    """Opens a shard file; ValueError if it is gone."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise _gone(path) from error


def _map(path: Path) -> NDArray[np.uint8]:
    """Returns the bytes of a file. Python's own `mmap` would keep a descriptor for every map, and
    a process may have 1,024 of them where a large dataset has thousands of shards."""
    try:
        with pa.memory_map(str(path)) as file:
            return np.frombuffer(file.read_buffer(), np.uint8)
    except FileNotFoundError as error:
        raise _gone(path) from error


def read_columns(path: Path, *names: str) -> list[list[Any]]:
    """Returns whole columns of a shard; ValueError if it is gone or damaged."""
    with open_shard(path) as file:
        try:
            table = pq.ParquetFile(file).read(list(names))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error
    return [table[name].to_pylist() for name in names]


def read_footer(path: Path) -> pq.FileMetaData:
    """Returns the footer of a shard; ValueError if it is gone or damaged."""
    with open_shard(path) as file:
        try:
            return pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error


def _gone(path: Path) -> ValueError:
    return ValueError(f"the shard {path} is gone: {remedy(path)}")


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"the shard {path} is damaged ({error}): delete it, then {remedy(path)}")


def remedy(path: Path) -> str:
    """Returns what to do about a shard that cannot be used."""
    if path.is_relative_to(local_folder()):
        return "run the same command again, which fetches it again"
    return "run the same preprocess command again"
