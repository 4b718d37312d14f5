"""Reads clips of a finished cache in any order, with one copy from a memory map into a tensor.

Shapes: N clips of a split, B clips of a batch, T frames, S edge of a square of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stop_core.cache.files import CLIP_LIST, MANIFEST, shard_path
from stop_core.cache.integrity import BackgroundCheck, check_contents, local_shards
from stop_core.cache.layout import CLIP_COLUMNS
from stop_core.cache.manifest import Manifest, ShardEntry
from stop_core.cache.mapping import MappedShard, read_columns
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

    Args:
        path: the cache's folder or URI; shards at a URI are downloaded to this machine.

    Raises:
        FileNotFoundError: if there is no cache at `path`.
        ValueError: if it is unfinished; the message gives the command that finishes it.
    """

    def __init__(self, path: StoragePath | str) -> None:
        self.path = storage_path(path)
        self.manifest = Manifest.load(self.path)

    def split(self, name: str) -> CachedClips:
        """Returns the clips of one split, which can be empty.

        Raises:
            ValueError: if the cache was made without that split.
        """
        if name not in self.manifest.counts:
            raise ValueError(
                f"the cache {self.path} has no split {name!r}, only "
                f"{', '.join(self.manifest.counts)}: preprocess with --splits {name} as well, "
                "into another --cache"
            )
        return CachedClips(self.path, self.manifest, name)

    def verify(self, splits: Collection[str] | None = None) -> None:
        """Compares every byte of some splits, by default all, with the manifest.

        A file that this machine has verified before is hashed again only if it has changed.

        Raises:
            ValueError: if a shard differs; the message names it and the remedy.
        """
        check_contents(*self._shards(splits))

    def watch(self, splits: Collection[str]) -> BackgroundCheck:
        """Starts the same check in the background of a training that reads the cache."""
        return BackgroundCheck(*self._shards(splits))

    def _shards(self, splits: Collection[str] | None) -> tuple[Path, list[ShardEntry]]:
        entries = [e for e in self.manifest.shards if splits is None or e.split in splits]
        return local_shards(self.path, self.manifest, entries), entries

    def __reduce__(self) -> tuple[Callable[..., FrameCache], tuple[StoragePath]]:
        return FrameCache, (self.path,)


class CachedClips:
    """The clips of one split, numbered 0 to N-1 in a fixed order."""

    def __init__(self, path: StoragePath, manifest: Manifest, split: str) -> None:
        self.path = path
        self.shape = manifest.config.shape
        """F, S, S, 3: the frames of one clip as `read` returns them by default."""
        self._manifest = manifest
        self._split = split
        self._entries = tuple(entry for entry in manifest.shards if entry.split == split)
        # _starts[s] is the number of the first clip of shard s; the last element is N.
        self._starts = np.cumsum([0, *(entry.rows for entry in self._entries)])
        self._shards: dict[int, MappedShard] = {}
        self._opening = Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

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

        Args:
            indices: clip numbers; repetitions are allowed.
            view: the frames and pixels to read (default: all frames, their centre).
            out: a contiguous tensor of that shape to read into, for example a pinned one.

        Raises:
            IndexError: if an index is below 0, or N or above.
            ValueError: if a shard does not have the layout of the format, or the view needs more
                than is cached.
        """
        import torch

        frames, size = view.check(self.shape[0], self.shape[1])
        shape = (len(indices), frames, size, size, 3)
        if out is None:
            out = torch.empty(shape, dtype=torch.uint8)
        elif out.shape != shape or out.dtype != torch.uint8:
            raise ValueError(f"out is {out.dtype} {list(out.shape)}, not uint8 {list(shape)}")
        dense = is_dense(self._manifest.config.sampling)
        places = []
        for index in indices:  # reading begins for all clips at once, then each is copied
            shard, row = self._place(index)
            cached = shard.shapes[row]
            window = None if cached == shape[1:] else view.window(index, cached[:3], dense)
            shard.will_read(row, window)
            places.append((shard, row, window))
        for target_TSSC, (shard, row, window) in zip(out.numpy(), places, strict=True):
            if window is None:
                np.copyto(target_TSSC, shard.clip(row))
            else:
                window.copy(shard.clip(row), target_TSSC)
        return out

    def _place(self, index: int) -> tuple[MappedShard, int]:
        """Returns the shard of a clip, and the number of its row."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)} in {self.path}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        with self._opening:
            if number not in self._shards:
                entry = self._entries[number]
                path = shard_path(self._folder, entry.name)
                self._shards[number] = MappedShard(path, entry, self._manifest.config)
        return self._shards[number], index - int(self._starts[number])

    @cached_property
    def _folder(self) -> Path:
        """The folder of the shards on this machine."""
        return local_shards(self.path, self._manifest, self._entries)

    def _column(self, name: str) -> list[Any]:
        if self._manifest.clips_sha256:
            return cast(list[Any], self._clips[name].to_pylist())
        shards = [(shard_path(self._folder, e.name), e.rows) for e in self._entries]
        return [value for path, rows in shards for value in read_columns(path, rows, name)[0]]

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
        return CachedClips, (self.path, self._manifest, self._split)


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
