"""Reads clips of a finished cache in any order, with one copy from a memory map into a tensor.

Shapes: N clips of a split, B clips of a batch, T frames, S edge of a square of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stop_core.cache.fetching import LocalShards
from stop_core.cache.files import CLIP_LIST, MANIFEST
from stop_core.cache.integrity import BackgroundCheck, check_contents
from stop_core.cache.layout import CLIP_COLUMNS
from stop_core.cache.manifest import Manifest, ShardEntry
from stop_core.cache.mapping import MappedShard, ShardLayout, read_columns
from stop_core.cache.views import View
from stop_core.datasets.clip import NO_LABEL
from stop_core.decoding.sampling import is_dense
from stop_core.storage.atomic import hash_file
from stop_core.storage.documents import read_parquet
from stop_core.storage.paths import StoragePath, local_file, storage_path

# torch is imported where it is used: decoding workers import this package and do not need torch,
# which takes seconds to import.
if TYPE_CHECKING:
    from torch import Tensor

WHOLE = View()


class FrameCache:
    """A finished cache, local or on an object store. Cheap to open and to pickle.

    Shards at a URI are fetched when they are needed; `limit` is the bytes of all copies of shards
    on this machine. Raises FileNotFoundError if there is no cache; ValueError if it is unfinished.
    """

    def __init__(self, path: StoragePath | str, limit: int | None = None) -> None:
        self.path = storage_path(path)
        self.manifest = Manifest.load(self.path)
        self._limit = limit
        self._files = LocalShards(self.path, self.manifest, limit)

    def split(self, name: str) -> CachedClips:
        """Returns the clips of a split, which can be empty; ValueError if it is not cached."""
        if name not in self.manifest.counts:
            raise ValueError(
                f"the cache {self.path} has no split {name!r}, only "
                f"{', '.join(self.manifest.counts)}: preprocess with --splits {name} as well, "
                "into another --cache"
            )
        return CachedClips(self.path, self.manifest, name, self._files)

    def verify(self, splits: Collection[str] | None = None) -> None:
        """Compares every byte of some splits, by default all; ValueError if a shard differs.

        A file that this machine has verified before is hashed again only if it has changed. Copies
        of shards are compared when they are fetched and opened.
        """
        check_contents(*self._shards(splits))

    def watch(self, splits: Collection[str]) -> BackgroundCheck:
        """Starts the same check in the background of a training that reads the cache."""
        return BackgroundCheck(*self._shards(splits))

    def _shards(self, splits: Collection[str] | None) -> tuple[Path, list[ShardEntry]]:
        entries = [] if self._files.are_copies else self.manifest.shards
        chosen = [e for e in entries if splits is None or e.split in splits]
        return self._files.folder, chosen

    def __reduce__(self) -> tuple[Callable[..., FrameCache], tuple[Any, ...]]:
        return FrameCache, (self.path, self._limit)


class CachedClips:
    """The clips of one split, numbered 0 to N-1 in a fixed order."""

    def __init__(
        self, path: StoragePath, manifest: Manifest, split: str, files: LocalShards | None = None
    ) -> None:
        self.path = path
        self._files = files or LocalShards(path, manifest)
        self.source = self._files if self._files.are_copies else None
        """Fetches the shards if they are not on this machine."""
        self.shape = manifest.config.shape
        """F, S, S, 3: the frames of one clip as `read` returns them by default."""
        self._manifest = manifest
        self._split = split
        self._entries = tuple(entry for entry in manifest.shards if entry.split == split)
        # _starts[s] is the number of the first clip of shard s; the last element is N.
        self._starts = np.cumsum([0, *(entry.rows for entry in self._entries)])
        self._shards: dict[int, MappedShard] = {}
        self._layouts: dict[int, ShardLayout] = {}
        self._opening = Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def shards(self) -> list[str]:
        """N names: the shard of each clip."""
        return [entry.name for entry in self._entries for _ in range(entry.rows)]

    @cached_property
    def labels(self) -> Tensor:
        """[N], int64; ValueError if one is out of its range."""
        import torch

        labels = torch.tensor(self._column("label"), dtype=torch.int64)
        classes = len(self._manifest.class_names)
        least, most = (0, classes - 1) if classes else (NO_LABEL, NO_LABEL)
        if len(labels) and not least <= int(labels.min()) <= int(labels.max()) <= most:
            raise ValueError(
                f"the cache {self.path} has a label outside {least} to {most}: preprocess again"
            )
        return labels

    @cached_property
    def video_ids(self) -> list[str]:
        """N names, as the dataset's annotation gives them."""
        return self._column("video_id")

    @cached_property
    def captions(self) -> list[tuple[str, ...]]:
        """The sentences of each of the N clips, in the order of the annotation."""
        return [tuple(sentences) for sentences in self._column("captions")]

    def read(self, indices: Sequence[int], view: View = WHOLE, out: Tensor | None = None) -> Tensor:
        """Returns the frames of the clips at `indices`, [B, T, S, S, 3] uint8, in that order.

        By default, all frames are read, their centre. `out` is a contiguous tensor to read into,
        for example a pinned one. Raises IndexError if there is no such clip; ValueError if a shard
        does not have the layout of the format, or the view needs more than is cached.
        """
        import torch

        frames, size = view.check(self.shape[0], self.shape[1])
        shape = (len(indices), frames, size, size, 3)
        if out is None:
            out = torch.empty(shape, dtype=torch.uint8)
        elif out.shape != shape or out.dtype != torch.uint8:
            raise ValueError(f"out is {out.dtype} {list(out.shape)}, not uint8 {list(shape)}")
        if self.source is None:
            self._copy(indices, view, out.numpy())
        else:  # one at a time: a thread that holds a copy must not wait for room for another one
            for row, index in enumerate(indices):
                self._copy([index], view, out[row : row + 1].numpy())
        return out

    def _copy(self, indices: Sequence[int], view: View, out_BTSSC: NDArray[np.uint8]) -> None:
        """Copies clips; reading begins for all of them at once."""
        dense = is_dense(self._manifest.config.sampling)
        with ExitStack() as opened:
            places = []
            for index in indices:
                shard, row = opened.enter_context(self._place(index))
                cached, shown = shard.shapes[row], out_BTSSC.shape[1:]
                window = None if cached == shown else view.window(index, cached[:3], dense)
                shard.will_read(row, window)
                places.append((shard, row, window))
            for target_TSSC, (shard, row, window) in zip(out_BTSSC, places, strict=True):
                if window is None:
                    np.copyto(target_TSSC, shard.clip(row))
                else:
                    window.copy(shard.clip(row), target_TSSC)

    @contextmanager
    def _place(self, index: int) -> Iterator[tuple[MappedShard, int]]:
        """Yields the shard of a clip, mapped, and the number of its row."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)} in {self.path}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        entry, row = self._entries[number], index - int(self._starts[number])
        if self.source is None:  # it stays mapped
            with self._opening:
                if number not in self._shards:
                    with self._files.opened(entry.name) as path:
                        self._shards[number] = MappedShard(path, entry, self._manifest.config)
            yield self._shards[number], row
            return
        # A map of an evicted copy would hold its blocks on the disk, so it is not kept.
        with self.source.opened(entry.name) as path:
            known = self._layouts.get(number)
            shard = MappedShard(path, entry, self._manifest.config, known)
            self._layouts[number] = shard.layout
            yield shard, row

    def _column(self, name: str) -> list[Any]:
        if self._manifest.clips_sha256:
            return cast(list[Any], self._clips[name].to_pylist())
        return [
            value
            for entry, path in self._files.each(self._entries)
            for value in read_columns(path, entry.rows, name)[0]
        ]

    @cached_property
    def _clips(self) -> pa.Table:
        """The rows of `clips.parquet` of this split, after a comparison with the manifest."""
        clips = _clip_list(self.path, self._manifest.clips_sha256)
        own = clips.filter(pc.field("split") == self._split)
        if len(own) != len(self):
            raise _not_of_the_manifest(self.path)
        return own

    def __reduce__(self) -> tuple[Callable[..., CachedClips], tuple[Any, ...]]:
        # Without maps and columns, which are loaded again on demand.
        return CachedClips, (self.path, self._manifest, self._split, self._files)


@lru_cache(maxsize=1)  # the splits of a cache are in one file
def _clip_list(cache: StoragePath, sha256: str) -> pa.Table:
    """Returns the rows of `clips.parquet`; ValueError if it is not the file with that hash."""
    with local_file(cache / CLIP_LIST) as path:
        if not path.is_file() or hash_file(path) != sha256:
            raise _not_of_the_manifest(cache)
        return read_parquet(path, CLIP_COLUMNS)


def _not_of_the_manifest(cache: StoragePath) -> ValueError:
    return ValueError(
        f"{cache / CLIP_LIST} is not the file of the manifest: delete {cache / MANIFEST}, then run "
        "the same preprocess command again, which makes both again"
    )
