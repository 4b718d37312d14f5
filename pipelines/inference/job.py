"""Runs a model over thousands of videos, in parts. Each part is a file that is written atomically.

    list -> [videos that are in no part] -> parts -> [worker: decode, run the model, write] -> rows

An interruption loses only the unfinished parts. The same command resumes: it reads the finished
parts and processes the other videos. A finished video is recognised by name, size and mtime.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from stop_core.storage.atomic import hash_json
from stop_core.storage.documents import read_parquet
from stop_core.storage.private import first_line

from ..cli.errors import RunError
from ..cli.folder_lock import alone_in
from ..cli.progress_bar import Done, ProgressBar
from ..cli.video_options import WorkerOptions
from .video_list import Video
from .worker import SCHEMAS, VideoWorker, Work

_MOST_A_PART = 64


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
    columns = [done[name].to_pylist() for name in ("video", "size", "mtime_ns", "split", "number")]
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
