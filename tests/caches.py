"""Small frame caches for the tests of other modules."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stop_core.cache import CacheConfig, CacheJob, write_shard
from stop_core.datasets import DATASETS, select_clips
from stop_core.decoding import DecodedClip, DecodeError, DecodeProcess, decode_clip
from stop_core.storage.atomic import hash_file


@contextmanager
def decoding_here() -> Iterator[None]:
    """Decodes in this process, as starting a decoding process takes a second of CPU time."""

    def decode(self: DecodeProcess, paths: Iterable[Path]) -> Iterator[DecodedClip | DecodeError]:
        for path in paths:
            try:
                clip = decode_clip(path, self.frames, self.size, self.crop, sampling=self.sampling)
            except DecodeError as error:
                yield error
            else:
                yield replace(clip, source_sha256=hash_file(path)) if self.hashed else clip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeProcess, "decode", decode)
        yield


def write_cache(dataset: str, root: Path, folder: Path, fold: int = 1, **options: Any) -> Path:
    """Makes a finished cache of all clips of a dataset; returns `folder`.

    Args:
        dataset: name of the dataset.
        root: its folder.
        folder: of the cache.
        fold: number of the fold.
        options: of `CacheConfig.of`, such as `frames` and `size`.
    """
    selection = select_clips(DATASETS[dataset].read(root, fold))
    config = CacheConfig.of(DATASETS[dataset], selection, fold=fold, **options)
    job = CacheJob.open(folder, config, selection.clips)
    with decoding_here():
        for plan in job.plans:
            write_shard(plan, config, root, job.cache)
    job.finish()
    return folder
