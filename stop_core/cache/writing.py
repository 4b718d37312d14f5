"""Making one shard: find and decode its clips, write what decoded, record what did not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stop_core.cache.config import CacheConfig
from stop_core.cache.files import appearing, hash_file, record_path, shard_path, write_json
from stop_core.cache.layout import (
    FRAME_HEIGHT,
    FRAME_WIDTH,
    FRAMES,
    open_writer,
    rows_per_group,
    shard_schema,
)
from stop_core.cache.shards import Failure, ShardPlan, ShardRecord
from stop_core.datasets import Clip
from stop_core.decoding import DecodedClip, DecodeError, decode_clip
from stop_core.storage import StoragePath, local_file


def write_shard(
    plan: ShardPlan, config: CacheConfig, data_root: StoragePath, cache: StoragePath
) -> ShardRecord:
    """Decodes the clips of a shard and writes its file, then its record; both appear whole.

    A clip that is missing or does not decode becomes a failure in the record, and the rest goes on.
    At most one row group of frames is in memory at a time. A shard that is complete is left as it
    is, so a worker that outlived its driver cannot disturb the run that took over.

    Raises:
        OSError: if the cache cannot be written. What was complete before stays.
    """
    # Taken before decoding: a source that changes meanwhile no longer matches afterwards.
    identity = plan.identity(config, data_root)
    there = ShardRecord.load(cache, plan.name)
    if there is not None and there.identity == identity and there.matches_file(cache):
        return there
    record_path(cache, plan.name).unlink(missing_ok=True)
    path = shard_path(cache, plan.name)
    failures: list[Failure] = []
    rows = _decode_all(plan, config, data_root, failures)
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        record = ShardRecord(plan.name, plan.split, 0, 0, "", identity, tuple(failures))
    else:
        with appearing(path) as staging:
            count = _write_rows(staging, config, first, rows)
            digest, file_bytes = hash_file(staging), staging.stat().st_size
        record = ShardRecord(
            plan.name, plan.split, count, file_bytes, digest, identity, tuple(failures)
        )
    write_json(record_path(cache, plan.name), record.to_dict())
    return record


@dataclass(frozen=True)
class _Row:
    clip: Clip
    decoded: DecodedClip
    source_sha256: str


def _decode_all(
    plan: ShardPlan, config: CacheConfig, data_root: StoragePath, failures: list[Failure]
) -> Iterator[_Row]:
    """Yields the clips that decode, in the plan's order; adds the others to `failures`."""
    for clip in plan.clips:
        source = data_root / clip.path
        if not source.exists():
            failures.append(_failure(clip, "find", "no such file"))
            continue
        try:
            with local_file(source) as file:
                decoded = decode_clip(file, config.frames, config.size, config.crop == "center")
                row = _Row(clip, decoded, hash_file(file))
            yield row
        except (DecodeError, OSError, MemoryError) as error:
            # OSError and MemoryError are about this source here; writing happens elsewhere. An
            # object store that no longer answers says nothing of the source: this raises.
            source.exists()
            failures.append(_failure(clip, "decode", str(error) or type(error).__name__))
        except Exception as error:  # a file can be broken in ways that no decoder foresaw
            reason = f"unexpected {type(error).__name__}: {error}"
            failures.append(_failure(clip, "decode", reason))


def _failure(clip: Clip, stage: str, error: str) -> Failure:
    return Failure(clip.video_id, clip.path, clip.split, stage, error, attempts=1)


def _write_rows(path: Path, config: CacheConfig, first: _Row, rest: Iterator[_Row]) -> int:
    """Writes the rows, a row group at a time, and returns how many there were."""
    schema = shard_schema(config)
    most = rows_per_group(config)
    count, group = 0, [first]
    with open_writer(path, schema, config.compression) as writer:
        for row in rest:
            if len(group) == most:
                _write_group(writer, group, schema)
                count, group = count + most, []
            group.append(row)
        _write_group(writer, group, schema)
    return count + len(group)


def _write_group(writer: pq.ParquetWriter, rows: Sequence[_Row], schema: pa.Schema) -> None:
    kind = schema.field(FRAMES).type
    if pa.types.is_fixed_size_binary(kind):
        pixels = np.stack([row.decoded.frames for row in rows])
        buffers = [None, pa.py_buffer(pixels)]
        frames = pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), buffers)
    else:
        frames = pa.array([row.decoded.frames.data for row in rows], kind)
    values = [_small_columns(row) for row in rows]
    columns = [
        frames if field.name == FRAMES else pa.array([v[field.name] for v in values], field.type)
        for field in schema
    ]
    writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(rows))


def _small_columns(row: _Row) -> dict[str, Any]:
    clip, decoded = row.clip, row.decoded
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
        "source_sha256": row.source_sha256,
        "decoder": decoded.decoder,
    }
