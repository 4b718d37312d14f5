"""Making one shard: find and decode its clips, write what decoded, record what did not."""

import atexit
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
from stop_core.cache.retrying import still_to_retry
from stop_core.cache.shards import Failure, ShardPlan, ShardRecord
from stop_core.datasets import Clip
from stop_core.decoding import DecodedClip, DecodeError, DecodeProcess
from stop_core.decoding.process import DECODE_TIMEOUT
from stop_core.storage.atomic import FileFollower, appearing, leave_memory
from stop_core.storage.documents import MOST_TABLE, read_batches
from stop_core.storage.local_copies import LocalCopy, local_files
from stop_core.storage.paths import StoragePath, local_file


def write_shard(
    plan: ShardPlan,
    config: CacheConfig,
    data_root: StoragePath,
    cache: StoragePath,
    *,
    timeout: float = DECODE_TIMEOUT,
) -> ShardRecord:
    """Decodes the clips of a shard and writes its file, then its record; both appear whole.

    A clip that is missing or does not decode becomes a failure in the record, and the rest goes on.
    At most a row group of frames and one clip are in memory at a time. A shard that is complete is
    left as it is, so a worker that outlived its driver cannot disturb the run that took over. Where
    its failed clips are to be tried again (`retrying`), they alone are decoded, and the file is
    written anew, as if they had decoded the first time.

    Args:
        plan: the clips.
        config: what to make of each.
        data_root: where the clips' paths begin.
        cache: the folder of the cache.
        timeout: seconds that one clip may take to decode.

    Raises:
        OSError: if the cache cannot be written. What was complete before stays.
    """
    # Taken before decoding: a source that changes meanwhile no longer matches afterwards.
    sources = plan.sources(data_root)
    identity = plan.identity(config, sources)
    there = ShardRecord.load(cache, plan.name)
    attempts: dict[str, int] = {}
    kept: Iterator[_Row] = iter(())
    if there is not None and there.identity == identity:
        # From the same files: these attempts count. A record that is kept until the next one
        # replaces it keeps them through a kill; if the shard's file is new already, the sizes
        # differ, and the shard is made from the beginning.
        attempts = {failure.video_id: failure.attempts for failure in there.failures}
        if there.matches_file(cache):
            if not (there.has_retriable and still_to_retry(cache, [there])):
                return there
            if there.rows:
                kept = _read_rows(shard_path(cache, plan.name), config, there.rows)
    else:
        record_path(cache, plan.name).unlink(missing_ok=True)
    path = shard_path(cache, plan.name)
    failures: list[Failure] = []
    decoder = _decode_process(config, timeout)
    found = {clip.path for clip, stamp in zip(plan.clips, sources, strict=True) if stamp}
    rows = _all_rows(plan, data_root, found, decoder, kept, attempts, failures)
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        record = ShardRecord(plan.name, plan.split, 0, 0, "", identity, tuple(failures))
    else:
        with appearing(path) as staging:
            # What goes to an object store is read once more, for the upload.
            written = FileFollower(staging, leave=isinstance(path, Path))
            schema = shard_schema(config, plan.name)
            count = _write_rows(staging, config, schema, chain([first], rows), written)
        if isinstance(path, Path):
            leave_memory(path)  # the pages that were on their way to the disk before
        record = ShardRecord(
            plan.name, plan.split, count, written.bytes, written.sha256, identity, tuple(failures)
        )
    write_checked_json(record_path(cache, plan.name), record.to_dict())
    return record


@dataclass(frozen=True)
class _Row:
    small: dict[str, Any]
    """Every column but the frames."""
    frames: NDArray[np.uint8]
    """[T, H, W, 3]; good until as many further rows are asked for as a row group has."""


def _all_rows(
    plan: ShardPlan,
    data_root: StoragePath,
    found: set[str],
    decoder: DecodeProcess,
    kept: Iterator[_Row],
    attempts: dict[str, int],
    failures: list[Failure],
) -> Iterator[_Row]:
    """Yields the rows of a shard in the plan's order: kept ones as they are, the others decoded.

    Args:
        plan: the clips.
        data_root: where their paths begin.
        found: the paths at which there is a file.
        decoder: decodes those that are not kept.
        kept: rows that are there already, in the plan's order.
        attempts: how often clips have failed before, by video id.
        failures: the clips that yield no row are added here.
    """
    row = next(kept, None)
    old = {clip.video_id for clip in plan.clips} - set(attempts) if row is not None else set()
    wanted = [c.path for c in plan.clips if c.video_id not in old and c.path in found]
    sources: deque[LocalCopy] = deque()
    results = decoder.decode(local_files((data_root / path for path in wanted), sources))
    for clip in plan.clips:
        if row is not None and row.small["video_id"] == clip.video_id:
            yield row
            row = next(kept, None)
            continue
        tried = attempts.get(clip.video_id, 0) + 1
        if clip.path not in found:
            failures.append(_failure(clip, "find", "no such file", tried))
            continue
        result, source = next(results), sources.popleft()
        with source.closing:
            if source.problem or isinstance(result, DecodeError):
                reason = source.problem or str(result)
                failures.append(_failure(clip, "decode", reason, tried))
                continue
        yield _Row(_small_columns(clip, result), result.frames)


def _read_rows(path: StoragePath, config: CacheConfig, rows: int) -> Iterator[_Row]:
    """Yields the rows of a shard's file, as many as a row group has in memory at a time."""
    schema = shard_schema(config, path.name.removesuffix(".parquet"))
    most = MOST_TABLE + rows * config.most_clip_bytes
    with local_file(path) as local:
        at_once = rows_per_group(config)
        for batch in read_batches(local, schema, rows=rows, most=most, at_once=at_once):
            frames = batch.column(FRAMES_COLUMN)
            for i, small in enumerate(batch.drop_columns([FRAMES_COLUMN]).to_pylist()):
                pixels = np.frombuffer(frames[i].as_buffer(), np.uint8)
                yield _Row(small, pixels.reshape(-1, small[FRAME_HEIGHT], small[FRAME_WIDTH], 3))


_decoder: DecodeProcess | None = None


def _decode_process(config: CacheConfig, timeout: float) -> DecodeProcess:
    """Returns this process's decoder, which lives on from shard to shard."""
    global _decoder
    square, kept = config.crop == "center", rows_per_group(config)
    if _decoder is None:
        atexit.register(_close_decoder)
    wanted = DecodeProcess(
        config.frames, config.size, timeout, square, kept, config.decoder, hashed=True
    )
    if _decoder is None or not _decoder.does_the_same(wanted):
        _close_decoder()
        _decoder = wanted
    return _decoder


def _close_decoder() -> None:
    # A forked process has the parent's decoder in its memory, and must leave it alone.
    if _decoder is not None and _decoder.owner == os.getpid():
        _decoder.close()


def _failure(clip: Clip, stage: str, error: str, attempts: int) -> Failure:
    return Failure(clip.video_id, clip.path, clip.split, stage, error, attempts)


def _write_rows(
    path: Path,
    config: CacheConfig,
    schema: pa.Schema,
    rows: Iterator[_Row],
    written: FileFollower,
) -> int:
    """Writes the rows, a row group at a time, and returns how many there were."""
    most, count = rows_per_group(config), 0
    with open_writer(path, schema, config.compression) as writer:
        while group := list(islice(rows, most)):
            writer.write_table(_row_group(group, schema), row_group_size=len(group))
            written.follow()
            count += len(group)
    written.follow()  # the footer
    return count


def _row_group(rows: Sequence[_Row], schema: pa.Schema) -> pa.Table:
    """Returns a row group. Frames are not copied: each row's are a chunk where they lie."""
    kind = schema.field(FRAMES_COLUMN).type
    frames = pa.chunked_array([_one_value(row.frames, kind) for row in rows], kind)
    columns = [
        frames
        if field.name == FRAMES_COLUMN
        else pa.array([row.small[field.name] for row in rows], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _one_value(frames: NDArray[np.uint8], kind: pa.DataType) -> pa.Array:
    """Returns an array of one binary value, of fixed size or not."""
    pixels = pa.py_buffer(frames)
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, 1, [None, pixels])
    ends = pa.py_buffer(np.array([0, frames.size], np.int32))
    return pa.Array.from_buffers(kind, 1, [None, ends, pixels])


def _small_columns(clip: Clip, decoded: DecodedClip) -> dict[str, Any]:
    return {
        "video_id": clip.video_id,
        "split": clip.split,
        "label": clip.label,
        "class_name": clip.class_name,
        "captions": list(clip.captions),
        FRAME_HEIGHT: decoded.frames.shape[1],
        FRAME_WIDTH: decoded.frames.shape[2],
        "frame_index": decoded.frame_index.tolist(),
        "frame_time": decoded.frame_time.tolist(),
        "num_frames": decoded.num_frames,
        "fps": decoded.fps,
        "duration": decoded.duration,
        "width": decoded.width,
        "height": decoded.height,
        "source_path": clip.path,
        "source_sha256": decoded.source_sha256,
        "decoder": decoded.decoder,
    }
