"""Makes one shard: decodes its clips, writes their frames, and records the failures."""

import atexit
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import record_path, shard_path, write_checked_json
from stop_core.cache.layout import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    FRAMES_COLUMN,
    open_writer,
    rows_per_group,
    shard_schema,
)
from stop_core.cache.shards import Failure, ShardPlan, ShardRecord, still_to_retry
from stop_core.datasets import Clip
from stop_core.decoding import DecodedClip, DecodeProcess
from stop_core.decoding.process import DECODE_TIMEOUT
from stop_core.storage.atomic import FileFollower, appearing, leave_memory
from stop_core.storage.documents import MOST_TABLE, read_batches
from stop_core.storage.paths import LocalCopy, StoragePath, local_file, local_files

_Row = dict[str, Any]
"""The columns of a clip by name; `frames` is an array of one value."""


def write_shard(
    plan: ShardPlan,
    config: CacheConfig,
    data_root: StoragePath,
    cache: StoragePath,
    *,
    timeout: float = DECODE_TIMEOUT,
) -> ShardRecord:
    """Decodes the clips of a shard and writes its file, then its record, each atomically.

    A clip that is missing, or not decoded within `timeout` seconds, becomes a failure in the
    record. At most one row group of frames and one clip are in memory. A complete shard is not
    changed, so a worker that outlives its driver cannot disturb a resumed run. If its failed clips
    are to be retried, only they are decoded, and the file gets the bytes of a first attempt.
    """
    # Read before decoding, so that a source that changes meanwhile is noticed by the next run.
    sources = plan.sources(data_root)
    identity = plan.identity(config, sources)
    path, schema = shard_path(cache, plan.name), shard_schema(config, plan.name)
    there = ShardRecord.load(cache, plan.name)
    attempts: dict[str, int] = {}
    kept: Iterator[_Row] = iter(())
    if there is not None and there.identity == identity:
        # The sources are unchanged, so earlier attempts count. The old record stays until the new
        # one replaces it. After an interruption between file and record their sizes differ, and
        # the whole shard is made again.
        attempts = {failure.video_id: failure.attempts for failure in there.failures}
        if there.matches_file(cache):
            if not (there.has_retriable and still_to_retry(cache, [there])):
                return there
            if there.rows:
                kept = _read_rows(path, config, schema, there.rows)
    else:
        record_path(cache, plan.name).unlink(missing_ok=True)
    failures: list[Failure] = []
    decoder = _decode_process(config, timeout)
    found = {clip.path for clip, stamp in zip(plan.clips, sources, strict=True) if stamp}
    rows = _all_rows(plan, data_root, schema, found, decoder, kept, attempts, failures)
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        record = ShardRecord(plan.name, plan.split, 0, 0, "", identity, tuple(failures))
    else:
        with appearing(path) as staging:
            # Pages of a file for an object store stay in memory for the upload.
            written = FileFollower(staging, leave=isinstance(path, Path))
            count, rows, most = 0, chain([first], rows), rows_per_group(config)
            with open_writer(staging, schema, config.compression) as writer:
                while group := list(islice(rows, most)):
                    writer.write_table(_row_group(group, schema), row_group_size=len(group))
                    written.follow()
                    count += len(group)
            written.follow()  # the footer
        if isinstance(path, Path):
            leave_memory(path)  # pages that were still being written before
        record = ShardRecord(
            plan.name, plan.split, count, written.bytes, written.sha256, identity, tuple(failures)
        )
    write_checked_json(record_path(cache, plan.name), asdict(record))
    return record


def _all_rows(
    plan: ShardPlan,
    data_root: StoragePath,
    schema: pa.Schema,
    found: set[str],
    decoder: DecodeProcess,
    kept: Iterator[_Row],
    attempts: dict[str, int],
    failures: list[Failure],
) -> Iterator[_Row]:
    """Yields the rows of a shard in the plan's order: existing rows unchanged, the others decoded.

    The frames of a row are valid until a row group of further rows has been requested.
    `found` are the paths of the existing files, `attempts` the numbers of earlier failures by video
    id; clips without a row are appended to `failures`.
    """
    row = next(kept, None)
    old = {clip.video_id for clip in plan.clips} - set(attempts) if row is not None else set()
    wanted = [c.path for c in plan.clips if c.video_id not in old and c.path in found]
    sources: deque[LocalCopy] = deque()
    results = decoder.decode(local_files((data_root / path for path in wanted), sources))
    for clip in plan.clips:
        if row is not None and row["video_id"] == clip.video_id:
            yield row
            row = next(kept, None)
            continue
        stage, reason = "find", "no such file"
        if clip.path in found:
            result, source = next(results), sources.popleft()
            source.closing.close()
            if isinstance(result, DecodedClip) and not source.problem:
                yield _row(clip, result, schema.field(FRAMES_COLUMN).type)
                continue
            stage, reason = "decode", source.problem or str(result)
        tried = attempts.get(clip.video_id, 0) + 1
        failures.append(Failure(clip.video_id, clip.path, clip.split, stage, reason, tried))


def _read_rows(
    path: StoragePath, config: CacheConfig, schema: pa.Schema, rows: int
) -> Iterator[_Row]:
    """Yields the rows of a shard's file, with one row group in memory at a time."""
    most = MOST_TABLE + rows * config.most_clip_bytes
    with local_file(path) as local:
        at_once = rows_per_group(config)
        for batch in read_batches(local, schema, rows=rows, most=most, at_once=at_once):
            frames = batch.column(FRAMES_COLUMN)
            for k, small in enumerate(batch.drop_columns([FRAMES_COLUMN]).to_pylist()):
                yield small | {FRAMES_COLUMN: frames.slice(k, 1)}


_decoder: DecodeProcess | None = None


def _decode_process(config: CacheConfig, timeout: float) -> DecodeProcess:
    """Returns the decoder of this process, which is reused for all shards."""
    global _decoder
    square, kept = config.crop == "center", rows_per_group(config)
    if _decoder is None:
        atexit.register(_close_decoder)
    wanted = DecodeProcess(
        *(config.frames, config.size, timeout, square, kept, config.decoder),
        hashed=True,
        sampling=config.sampling,
    )
    if _decoder != wanted:
        _close_decoder()
        _decoder = wanted
    return _decoder


def _close_decoder() -> None:
    # A forked process inherits this variable, and must not close the parent's decoder.
    if _decoder is not None and _decoder.owner == os.getpid():
        _decoder.close()


def _row_group(rows: list[_Row], schema: pa.Schema) -> pa.Table:
    columns = [
        pa.chunked_array([row[FRAMES_COLUMN] for row in rows], field.type)
        if field.name == FRAMES_COLUMN
        else pa.array([row[field.name] for row in rows], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _row(clip: Clip, decoded: DecodedClip, kind: pa.DataType) -> _Row:
    """Returns one row, with the frames as an array of one value of `kind`, without a copy."""
    _, height, width, _ = decoded.frames.shape
    buffers = [None, pa.py_buffer(decoded.frames)]
    if not pa.types.is_fixed_size_binary(kind):
        buffers.insert(1, pa.py_buffer(np.array([0, decoded.frames.size], np.int32)))
    values = {**vars(clip), **vars(decoded), "source_path": clip.path}
    sides = {FRAME_HEIGHT: height, FRAME_WIDTH: width}
    return values | sides | {FRAMES_COLUMN: pa.Array.from_buffers(kind, 1, buffers)}
