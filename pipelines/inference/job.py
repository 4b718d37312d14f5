"""Runs a model over thousands of videos, in parts. Each part is a file that is written atomically.

    list -> [videos that are in no part] -> parts -> [read frames] -> [run the model, write] -> rows

An interruption loses only the unfinished parts. The same command resumes: it reads the finished
parts and processes the other videos. A finished video is recognised by name, size and mtime. One
that cannot be decoded is a row with the reason; the other videos are not affected.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict

import pyarrow as pa

from stop_core.storage.atomic import hash_json
from stop_core.storage.documents import read_parquet
from stop_core.storage.paths import HubAddress, StoragePath, local_file, matches, storage_path
from stop_core.storage.private import first_line
from stop_core.trained_model.index import VIDEO_COLUMNS

from ..cli.console import RunError, say
from ..cli.folders import alone_in
from ..cli.progress_bar import Done, ProgressBar
from ..cli.video_options import WorkerOptions
from ..cluster.devices import usable_gpus
from .stages import SCHEMAS, BothStages, PartRow, Pools, Work
from .video_list import Video

_MOST_A_PART = 16  # videos, which the model takes at once


class VideoJob:
    """One task for many videos, and the folder of its finished parts, one folder per task."""

    def __init__(self, folder: StoragePath, work: Work) -> None:
        self.folder = folder.resolve()
        self.work = work

    def done(self) -> pa.Table:
        """Returns the rows of all finished parts."""
        schema = SCHEMAS[self.work.kind]
        parts = []
        for path in matches(self.folder, "part-*.parquet"):
            with local_file(path) as here:
                parts.append(read_parquet(here, schema))
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def run(
        self, videos: Sequence[Video], workers: WorkerOptions, *, retry_failed: bool = False
    ) -> pa.Table:
        """Processes the unfinished videos; returns the row of every video, in their order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone_in(self.folder):
            rows, failed = row_numbers(self.done())
            again = failed if retry_failed else set()
            pending = [video for video in videos if video not in rows or video in again]
            if pending:
                for leftover in self.folder.glob(".part-*.tmp"):
                    leftover.unlink(missing_ok=True)
                here = workers.here(len(pending))
                finished = self._here(pending, workers) if here else self._ray(pending, workers)
                ProgressBar(len(pending)).follow(self._checked(finished))
            done = self.done()
            rows, _ = row_numbers(done)
            return done.take([rows[video] for video in videos])

    def _checked(self, finished: Iterator[PartRow]) -> Iterator[Done]:
        for row in finished:
            if row["error"]:
                raise RunError(
                    f"cannot write {row['path']}: {row['error']}. Finished parts are kept; fix the "
                    "problem and run the same command to resume"
                )
            yield Done(clips=row["videos"], failures=row["failures"])

    def _here(self, pending: Sequence[Video], workers: WorkerOptions) -> Iterator[PartRow]:
        gpu = usable_gpus(workers.device).count > 0
        with closing(BothStages(self.work, gpu, threads=None)) as both:
            yield from map(both, self._parts(pending, 1))

    def _ray(self, pending: Sequence[Video], workers: WorkerOptions) -> Iterator[PartRow]:
        from ..cluster.resources import node_resources
        from ..cluster.session import quiet_ray_data, start_ray

        model, cache = self.work.model.checkpoint, self.work.cache
        # Each machine downloads a model of the hub.
        folders = [] if model is None or isinstance(model, HubAddress) else [model]
        read = [*folders, *([storage_path(cache)] if cache else [])]
        start_ray(self.folder, *read, dashboard=False)
        quiet_ray_data()
        import ray.exceptions

        gpus = usable_gpus(workers.device, everywhere=True).count
        pools = Pools.on(node_resources(), workers.gpus_per_worker if gpus else 0, workers.workers)
        if pools.models:
            say(f"decoding on {pools.readers} CPUs; {pools.models} copies of the model on GPUs")
        first: list[PartRow] = []
        try:
            for row in pools.stream(self._parts(pending, pools.readers), self.work):
                if len(first) < pools.measured:
                    first.append(row)
                    if limit := pools.limit(first):
                        say(f"note: {limit}")
                yield row
        except ray.exceptions.RayError as problem:
            raise RunError(
                f"the workers failed ({first_line(problem)}). Finished parts are kept; run the "
                "same command to resume"
            ) from problem

    def _parts(self, pending: Sequence[Video], workers: int) -> list[PartRow]:
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
