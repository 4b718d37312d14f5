"""Exports parts of a cache for other programs, as Parquet or as one PNG file per frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from stop_core.cache.config import CacheConfig
from stop_core.cache.fetching import LocalShards
from stop_core.cache.integrity import check_contents
from stop_core.cache.layout import FRAME_HEIGHT, FRAME_WIDTH, FRAMES_COLUMN, shard_schema
from stop_core.cache.manifest import Manifest, ShardEntry
from stop_core.storage.atomic import appearing_folder
from stop_core.storage.documents import read_batches
from stop_core.storage.names import inside
from stop_core.storage.paths import StoragePath

PartFormat = Literal["parquet", "png"]
Codec = Literal["none", "zstd", "snappy", "lz4"]
_ROWS_AT_A_TIME = 16
_MOST_BYTES = 1 << 28  # of the columns of a shard except the frames


@dataclass(frozen=True)
class Part:
    """The clips of a cache to export."""

    splits: tuple[str, ...] = ()
    """Empty for all."""
    classes: tuple[str, ...] = ()
    """Empty for all."""
    limit: int | None = None
    """Number of clips per split, the first ones; None for all."""


def export(
    cache: StoragePath, part: Part, to: Path, kind: PartFormat = "parquet", codec: Codec = "zstd"
) -> int:
    """Writes a part of a finished cache atomically to a new folder; returns the number of clips.

    Parquet has one file per shard, with all columns; PNG one folder per clip, one file per frame.
    Raises ValueError if `to` is not empty, or no clip is selected.
    """
    manifest = Manifest.load(cache)
    for what, chosen, known in (
        ("split", part.splits, tuple(manifest.counts)),
        ("class", part.classes, manifest.class_names),
    ):
        if strange := [name for name in chosen if name not in known]:
            raise ValueError(f"the cache {cache} has no {what} {strange[0]!r}: {', '.join(known)}")
    entries = [e for e in manifest.shards if not part.splits or e.split in part.splits]
    files = LocalShards(cache, manifest)
    if not files.are_copies:  # copies are compared when they are fetched
        check_contents(files.folder, entries)
    rows = _chosen(files, entries, part, manifest.config)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} is not an empty folder: choose another --to")
    with appearing_folder(to) as staging:
        count = (
            _write_parquet(rows, staging, codec) if kind == "parquet" else _write_png(rows, staging)
        )
        if not count:
            raise ValueError(f"no clip of {cache} was chosen: nothing is exported")
    return count


def _chosen(
    files: LocalShards, entries: Sequence[ShardEntry], part: Part, config: CacheConfig
) -> Iterator[tuple[str, pa.Table]]:
    """Yields batches of the selected rows, each with the name of its shard."""
    taken: dict[str, int] = {}
    for entry, path in files.each(entries):
        for batch in read_batches(
            path,
            shard_schema(config, entry.name),
            rows=entry.rows,
            most=_MOST_BYTES + entry.rows * config.most_clip_bytes,
            at_once=_ROWS_AT_A_TIME,
        ):
            table = pa.Table.from_batches([batch])
            if part.classes:
                table = table.filter(pc.is_in(table["class_name"], pa.array(part.classes)))
            if part.limit is not None:
                table = table.slice(0, max(0, part.limit - taken.get(entry.split, 0)))
            taken[entry.split] = taken.get(entry.split, 0) + len(table)
            if len(table):
                yield entry.name, table


def _write_parquet(rows: Iterator[tuple[str, pa.Table]], folder: Path, codec: Codec) -> int:
    """Writes one file per shard, with the metadata of its schema; returns the number of rows."""
    count = 0
    for name, parts in groupby(rows, key=lambda row: row[0]):
        _, first = next(parts)
        path = inside(folder, f"{name}.parquet")
        with pq.ParquetWriter(path, first.schema, compression=codec.upper()) as writer:
            for table in chain([first], (table for _, table in parts)):
                writer.write_table(table)
                count += len(table)
    return count


def _write_png(rows: Iterator[tuple[str, pa.Table]], folder: Path) -> int:
    """Writes <split>/<video_id>/<frame index>.png; returns the number of clips."""
    count = 0
    for _, table in rows:
        for row in table.to_pylist():
            clip = inside(folder, f"{row['split']}/{row['video_id']}")
            clip.mkdir(parents=True)
            shape = (len(row["frame_index"]), row[FRAME_HEIGHT], row[FRAME_WIDTH], 3)
            frames = np.frombuffer(row[FRAMES_COLUMN], np.uint8).reshape(shape)
            for index, frame in zip(row["frame_index"], frames, strict=True):
                Image.fromarray(frame).save(clip / f"{index:06d}.png")
            count += 1
    return count
