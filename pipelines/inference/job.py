"""Runs a model over thousands of videos, in parts. Each part is a file that is written atomically.

    list -> [videos that are in no part] -> parts -> [worker: decode, run the model, write] -> rows

An interruption loses only the unfinished parts. The same command resumes: it reads the finished
parts and processes the other videos. A finished video is recognised by name, size and mtime. One
that cannot be decoded is a row with the reason; the other videos are not affected.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from stop_core.cache import FrameCache
from stop_core.cache.integrity import ChangedDataError
from stop_core.cache.views import View
from stop_core.decoding import DecodeError
from stop_core.storage.atomic import appearing, hash_json
from stop_core.storage.documents import read_parquet
from stop_core.storage.paths import LocalCopy, local_files, storage_path
from stop_core.storage.private import first_line
from stop_core.trained_model.index import VIDEO_COLUMNS

from ..cli.console import RunError
from ..cli.folders import alone_in
from ..cli.progress_bar import Done, ProgressBar
from ..cli.video_options import WorkerOptions
from .model_choice import ModelChoice
from .video_list import Video

_MOST_A_PART = 64
Kind = Literal["labels", "embedding"]
_BATCH = 16  # videos

_ANSWERS: dict[Kind, dict[str, pa.DataType]] = {
    "labels": {"labels": pa.list_(pa.string()), "probabilities": pa.list_(pa.float64())},
    "embedding": {"embedding": pa.list_(pa.float32())},
}
SCHEMAS: dict[Kind, pa.Schema] = {
    kind: pa.schema(
        [pa.field(name, of, nullable=False) for name, of in VIDEO_COLUMNS.items()]
        + [pa.field(name, of) for name, of in {"error": pa.string(), **answer}.items()]
    )
    for kind, answer in _ANSWERS.items()
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
        self.decoder = how.decoder(work.timeout)
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


class VideoJob:
    """One task for many videos, and the folder of its finished parts, one folder per task."""

    def __init__(self, folder: Path, work: Work) -> None:
        self.folder = folder.resolve()
        self.work = work

    def done(self) -> pa.Table:
        """Returns the rows of all finished parts."""
        schema = SCHEMAS[self.work.kind]
        parts = [read_parquet(path, schema) for path in sorted(self.folder.glob("part-*.parquet"))]
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def run(
        self, videos: Sequence[Video], workers: WorkerOptions, *, retry_failed: bool = False
    ) -> pa.Table:
        """Processes the unfinished videos; returns the row of every video, in their order.

        Raises RunError if a part cannot be written, or workers fail repeatedly.
        """
        if workers.gpus_per_worker and not self.work.model.gpu:
            raise ValueError(
                "--gpus-per-worker reserves GPUs that the model does not use; give --gpu too"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder):
            rows, failed = row_numbers(self.done())
            again = failed if retry_failed else set()
            pending = [video for video in videos if video not in rows or video in again]
            if pending:
                for leftover in self.folder.glob(".part-*.tmp"):
                    leftover.unlink(missing_ok=True)
                here = workers.here(len(pending))
                finished = self._here(pending) if here else self._ray(pending, workers)
                ProgressBar(len(pending)).follow(self._checked(finished))
            done = self.done()
            rows, _ = row_numbers(done)
            return done.take([rows[video] for video in videos])

    def _checked(self, finished: Iterator[dict[str, Any]]) -> Iterator[Done]:
        for row in finished:
            if row["error"]:
                raise RunError(
                    f"cannot write {row['path']}: {row['error']}. Finished parts are kept; fix the "
                    "problem and run the same command to resume"
                )
            yield Done(clips=row["videos"], failures=row["failures"])

    def _here(self, pending: Sequence[Video]) -> Iterator[dict[str, Any]]:
        worker = VideoWorker(self.work, threads=None)
        try:
            yield from map(worker, self._parts(pending, 1))
        finally:
            worker.close()

    def _ray(self, pending: Sequence[Video], workers: WorkerOptions) -> Iterator[dict[str, Any]]:
        from ..cluster.session import quiet_ray_data, start_ray

        start_ray()
        quiet_ray_data()
        import ray
        import ray.exceptions

        share = workers.gpus_per_worker or float(self.work.model.gpu)
        resources = cast(Any, ray).cluster_resources()  # it has no types
        count = workers.workers or as_many_as_fit(resources, share)
        parts = self._parts(pending, count)
        count = min(count, len(parts))
        # One block per part, because Ray repeats the whole block of a failed worker.
        rows = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            cast(Any, VideoWorker),  # Ray's types know functions only
            fn_constructor_args=(self.work,),
            concurrency=(1, count),
            num_cpus=1,
            num_gpus=share or None,
        )
        try:
            yield from rows.iter_rows()
        except ray.exceptions.RayError as problem:
            raise RunError(
                f"the workers failed ({first_line(problem)}). Finished parts are kept; run the "
                "same command to resume"
            ) from problem

    def _parts(self, pending: Sequence[Video], workers: int) -> list[dict[str, Any]]:
        """Returns the parts: some videos each, and the file for their rows."""
        size = min(_MOST_A_PART, max(1, math.ceil(len(pending) / (4 * workers))))
        parts = []
        for start in range(0, len(pending), size):
            videos = [asdict(video) for video in pending[start : start + size]]
            name = f"part-{hash_json(videos)[:20]}.parquet"
            parts.append({"path": str(self.folder / name), "videos": videos})
        return parts


def row_numbers(done: pa.Table) -> tuple[dict[Video, int], set[Video]]:
    """Returns the row number of each video, and the failed videos. Success replaces failure."""
    columns = [done[name].to_pylist() for name in VIDEO_COLUMNS]
    bad = done["error"].is_valid().to_pylist()
    rows: dict[Video, int] = {}
    for row, key in enumerate(zip(*columns, strict=True)):
        video = Video(*key)
        if video not in rows or not bad[row]:
            rows[video] = row
    return rows, {video for video, row in rows.items() if bad[row]}


def as_many_as_fit(resources: dict[str, float], share: float) -> int:
    """Returns the number of workers: one per CPU, as far as each gets its share of a GPU."""
    fit = resources.get("CPU", 1.0)
    if share:
        fit = min(fit, resources.get("GPU", 0.0) / share)
    if fit < 1:
        raise RunError(
            f"a worker needs {share:g} GPUs, and Ray has {resources.get('GPU', 0.0):g}: lower "
            "--gpus-per-worker, or leave --gpu out"
        )
    return int(fit)
