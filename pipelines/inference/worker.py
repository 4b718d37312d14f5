"""A worker: decodes a part of the videos, runs the model on them, and writes the rows.

A video that cannot be decoded is a row with the reason; the other videos are not affected.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from stop_core.cache import FrameCache
from stop_core.cache.integrity import ChangedDataError
from stop_core.cache.views import View
from stop_core.decoding import DecodeError, DecodeProcess
from stop_core.storage.atomic import appearing
from stop_core.storage.local_copies import LocalCopy, local_files
from stop_core.storage.paths import storage_path

from .model_choice import ModelChoice
from .video_list import Video

Kind = Literal["labels", "embedding"]
_BATCH = 16  # videos

_VIDEO = [
    pa.field("video", pa.string(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("mtime_ns", pa.int64(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("number", pa.int64(), nullable=False),
    pa.field("error", pa.string()),
]
SCHEMAS: dict[Kind, pa.Schema] = {
    "labels": pa.schema(
        [
            *_VIDEO,
            pa.field("labels", pa.list_(pa.string())),
            pa.field("probabilities", pa.list_(pa.float64())),
        ]
    ),
    "embedding": pa.schema([*_VIDEO, pa.field("embedding", pa.list_(pa.float32()))]),
}


@dataclass(frozen=True)
class Work:
    """The task of a worker for every video."""

    model: ModelChoice
    """A value of `ModelChoice.found`."""
    kind: Kind
    top: int = 1
    """Number of labels of a video, the most probable ones."""
    timeout: float = 120.0
    """Deadline for decoding one video, in seconds."""
    cache: str | None = None
    """The frame cache that the videos are clips of."""


class VideoWorker:
    """A loaded model and a decoding process. Ray calls it with one part after another."""

    def __init__(self, work: Work, threads: int | None = 1) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.work = work
        self.trained = work.model.load()
        how = self.trained.preprocessing
        self.shape = (how.frames, how.size, how.size, 3)
        self.decoder: DecodeProcess = how.decoder(work.timeout)
        self.cache = FrameCache(work.cache) if work.cache is not None else None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Writes the rows of `videos` to `path`; an error of the storage is returned in `error`."""
        videos = [Video(**values) for values in row["videos"]]
        done = {"path": row["path"], "videos": len(videos), "failures": 0, "error": ""}
        try:
            if self.cache is not None:  # reads all data once per machine
                self.cache.verify({video.split for video in videos})
            rows = self.rows(videos)
            with appearing(Path(row["path"])) as staging:
                table = pa.Table.from_pylist(rows, schema=SCHEMAS[self.work.kind])
                pq.write_table(table, staging)
        except (OSError, ChangedDataError) as problem:
            return done | {"error": str(problem)}
        return done | {"failures": sum(one["error"] is not None for one in rows)}

    def rows(self, videos: Sequence[Video]) -> list[dict[str, Any]]:
        """Returns a row for every video, in their order."""
        rows: list[dict[str, Any]] = []
        waiting: list[dict[str, Any]] = []
        batch = np.empty((_BATCH, *self.shape), np.uint8)
        for number, (video, found) in enumerate(self._frames(videos), 1):
            row = {**asdict(video), "video": video.name, "error": None}
            del row["name"]
            rows.append(row)
            if isinstance(found, str):
                row["error"] = found
            else:
                batch[len(waiting)] = found
                waiting.append(row)
            if waiting and (len(waiting) == _BATCH or number == len(videos)):
                self._answer(waiting, batch[: len(waiting)])
                waiting = []
        return rows

    def close(self) -> None:
        """Stops the decoding process."""
        self.decoder.close()

    def _answer(self, rows: Sequence[dict[str, Any]], frames_BTSSC: NDArray[np.uint8]) -> None:
        frames = torch.from_numpy(frames_BTSSC)
        if self.work.kind == "embedding":
            for row, embedding in zip(rows, self.trained.embed_videos(frames).cpu(), strict=True):
                row["embedding"] = embedding.tolist()
            return
        labels = self.trained.labels or ()
        probability_BC = self.trained.class_probabilities(frames).cpu()
        values, numbers = probability_BC.topk(min(self.work.top, len(labels)))
        for row, own, chosen in zip(rows, values.tolist(), numbers.tolist(), strict=True):
            row |= {"labels": [labels[number] for number in chosen], "probabilities": own}

    def _frames(self, videos: Sequence[Video]) -> Iterator[tuple[Video, NDArray[np.uint8] | str]]:
        """Yields each video with its frames, which the next one overwrites, or the reason."""
        if self.cache is not None:
            view = View(frames=self.shape[0], size=self.shape[1])
            for video in videos:
                clip = self.cache.split(video.split).read([video.number], view)[0]
                yield video, clip.numpy()
            return
        sources: deque[LocalCopy] = deque()
        paths = (storage_path(video.name) for video in videos)
        for video, result in zip(
            videos, self.decoder.decode(local_files(paths, sources)), strict=True
        ):
            source = sources.popleft()
            source.closing.close()  # the video is decoded; delete the downloaded copy
            if source.problem or isinstance(result, DecodeError):
                yield video, source.problem or str(result)
            else:
                yield video, result.frames
