"""Reading a finished cache: any clips, in any order, one copy from a memory map into a tensor.

Shapes: N clips of a split, B clips of a batch, T frames, H = W = size.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stop_core.cache.files import shard_path
from stop_core.cache.layout import FRAMES, row_offsets
from stop_core.cache.manifest import Manifest, ShardEntry

# torch is imported where it is used: the workers that decode import this package, and would
# each wait seconds for a library that they have no use for.
if TYPE_CHECKING:
    from torch import Tensor


class FrameCache:
    """A finished cache directory. Cheap to open and to pickle: a worker opens its own maps.

    Raises:
        FileNotFoundError: if there is no cache at `path`.
        ValueError: if it is unfinished; the message gives the command that finishes it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)

    def split(self, name: str) -> CachedClips:
        """Returns the clips of one split, which may be none.

        Raises:
            ValueError: if the cache was made without that split.
        """
        if name not in self.manifest.counts:
            raise ValueError(
                f"the cache {self.path} has no split {name!r}, only "
                f"{', '.join(self.manifest.counts)}: preprocess with --splits {name} as well, "
                "into another --cache"
            )
        entries = [entry for entry in self.manifest.shards if entry.split == name]
        return CachedClips(self.path, entries, self.manifest.config.shape)

    def __reduce__(self) -> tuple[Callable[..., FrameCache], tuple[Path]]:
        return FrameCache, (self.path,)


class CachedClips:
    """The clips of one split, numbered 0 to N-1 in an order that never changes."""

    def __init__(
        self, path: Path, entries: Sequence[ShardEntry], shape: tuple[int, int, int, int]
    ) -> None:
        self.path = path
        self.shape = shape
        """T, H, W, 3."""
        self._entries = tuple(entries)
        # _starts[s] is the number of the first clip of shard s; the last element is N.
        self._starts = np.cumsum([0, *(entry.rows for entry in self._entries)])
        self._shards: dict[int, _MappedShard] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def labels(self) -> Tensor:
        """[N], int64."""
        import torch

        return torch.tensor(self._column("label"), dtype=torch.int64)

    @cached_property
    def video_ids(self) -> list[str]:
        """N names, as the dataset's annotation gives them."""
        return self._column("video_id")

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """N tuples of sentences; empty ones where the dataset has none."""
        return [tuple(sentences) for sentences in self._column("captions")]

    def read(self, indices: Sequence[int]) -> Tensor:
        """Returns the frames of the clips at `indices`, [B, T, H, W, 3] uint8, in that order.

        Raises:
            IndexError: if an index is below 0, or N or above.
            ValueError: if a shard is not laid out as the cache format says.
        """
        import torch

        frames = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        target = frames.numpy().reshape(len(indices), int(np.prod(self.shape)))
        for i, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"clip {index} of {len(self)} in {self.path}")
            shard = int(np.searchsorted(self._starts, index, side="right")) - 1
            target[i] = self._mapped(shard).row(index - int(self._starts[shard]))
        return frames

    def _mapped(self, shard: int) -> _MappedShard:
        if shard not in self._shards:
            self._shards[shard] = _MappedShard(self.path, self._entries[shard], self.shape)
        return self._shards[shard]

    def _column(self, name: str) -> list[Any]:
        paths = (shard_path(self.path, entry.name) for entry in self._entries)
        return [value for path in paths for value in _read_shard_column(path, name).to_pylist()]

    def __reduce__(self) -> tuple[Callable[..., CachedClips], tuple[Any, ...]]:
        # Without the maps and the columns: both are made again where they are needed.
        return CachedClips, (self.path, self._entries, self.shape)


class _MappedShard:
    """One shard file in memory-mapped form, checked when it is opened."""

    def __init__(self, cache: Path, entry: ShardEntry, shape: tuple[int, ...]) -> None:
        path = shard_path(cache, entry.name)
        with _open_shard(path) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._data: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
        self._clip_bytes = int(np.prod(shape))
        metadata = _read_footer(path)
        self._offsets = row_offsets(metadata, self._data, path)
        schema = metadata.schema.to_arrow_schema()
        width = schema.field(FRAMES).type.byte_width
        if len(self._offsets) != entry.rows or width != self._clip_bytes:
            raise ValueError(
                f"{path} holds {len(self._offsets)} rows of {width} bytes, and the manifest says "
                f"{entry.rows} of {self._clip_bytes}: preprocess again into another --cache"
            )

    def row(self, k: int) -> NDArray[np.uint8]:
        """Returns the bytes of row k, still in the map."""
        start = int(self._offsets[k])
        return self._data[start : start + self._clip_bytes]


def _open_shard(path: Path) -> Any:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise ValueError(
            f"the shard {path} is gone: run the same preprocess command again"
        ) from error


def _read_footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"the shard {path} is damaged ({error}): delete it and run the same preprocess command"
        ) from error


def _read_shard_column(path: Path, name: str) -> pa.ChunkedArray:
    _open_shard(path).close()
    _read_footer(path)
    return pq.read_table(path, columns=[name])[name]
