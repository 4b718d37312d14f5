"""The two stages of inference on many videos: reading frames, and running the model on them.

    on GPUs:      parts -> [CPU actors: FrameReader] -> frames -> [GPU actors: PartModel] -> counts
    on the CPU:   parts -> [CPU actors: both stages] -> counts

A CPU decodes about 10 clips a second and a GPU embeds about 1,000, so a GPU is fed by the CPUs of
all nodes. On the CPU both stages compete for the same cores: there, one actor calls one after the
other, and no frame leaves its process.

Ray Data bounds the memory: frames between the stages use at most half of its object store, and the
readers wait when the model is slower. A part is lost only together with its frames, and read again.

Shapes: N videos of a part, T frames, S edge of their square.
"""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from stop_core.cache import FrameCache
from stop_core.cache.integrity import ChangedDataError
from stop_core.cache.views import View
from stop_core.decoding import DecodeError
from stop_core.storage.atomic import appearing
from stop_core.storage.paths import LocalCopy, local_files, storage_path
from stop_core.trained_model.frames import Preprocessing
from stop_core.trained_model.index import VIDEO_COLUMNS

from ..cli.console import RunError
from ..cli.folders import output_folder
from ..cluster.resources import copies_that_fit
from .model_choice import ModelChoice
from .video_list import Video

Kind = Literal["labels", "embedding"]
PartRow = dict[str, Any]
Stage = Callable[..., Callable[[PartRow], PartRow]]
_ENOUGH = 0.9  # share of its time for which a GPU should have frames
_MEASURED = 8  # parts, at least; the first ones include the start of the model

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
    """The task for every video."""

    model: ModelChoice
    """A value of `ModelChoice.found`."""
    preprocessing: Preprocessing
    """That of the model: a reader does not load the model."""
    kind: Kind
    top: int = 1
    """Number of labels of a video, the most probable ones."""
    timeout: float = 120.0
    cache: str | None = None
    """The frame cache that the videos are clips of."""


class FrameReader:
    """Reads the frames of one part after another, with one decoding process."""

    def __init__(self, work: Work) -> None:
        how = work.preprocessing
        self.shape = (how.frames, how.size, how.size, 3)
        self.decoder = how.decoder(work.timeout)
        self.cache = FrameCache(work.cache) if work.cache is not None else None

    def __call__(self, part: PartRow) -> PartRow:
        """Returns the part with its `frames`, and in `error` an error of the storage."""
        began = time.perf_counter()
        videos = [Video(**values) for values in part["videos"]]
        frames, reasons, error = np.empty((1, *self.shape), np.uint8), [""], ""
        try:
            if self.cache is not None:  # reads all data once per machine
                self.cache.verify({video.split for video in videos})
            frames, reasons = self.read(videos)
        except (OSError, ChangedDataError) as problem:
            error = str(problem)
        seconds = time.perf_counter() - began
        return {**part, "frames": frames, "reasons": reasons, "error": error, "reading": seconds}

    def read(self, videos: Sequence[Video]) -> tuple[NDArray[np.uint8], list[str]]:
        """Returns frames [N, T, S, S, 3], and the reason of each failure, "" for the others.

        The frames of a failed video are undefined.
        """
        frames = np.empty((len(videos), *self.shape), np.uint8)
        reasons = [""] * len(videos)
        for number, found in enumerate(self._frames(videos)):
            if isinstance(found, str):
                reasons[number] = found
            else:
                frames[number] = found
        return frames, reasons

    def close(self) -> None:
        """Stops the decoding process."""
        self.decoder.close()

    def _frames(self, videos: Sequence[Video]) -> Iterator[NDArray[np.uint8] | str]:
        """Yields the frames of each video, which the next one overwrites, or the reason."""
        if self.cache is not None:
            view = View(frames=self.shape[0], size=self.shape[1])
            for video in videos:
                yield self.cache.split(video.split).read([video.number], view)[0].numpy()
            return
        sources: deque[LocalCopy] = deque()
        paths = (storage_path(video.name) for video in videos)
        for result in self.decoder.decode(local_files(paths, sources)):
            source = sources.popleft()
            source.closing.close()  # the video is decoded; delete the downloaded copy
            if source.problem or isinstance(result, DecodeError):
                yield source.problem or str(result)
            else:
                yield result.frames


class PartModel:
    """Runs the model on the frames of one part after another, and writes their rows."""

    def __init__(self, work: Work, gpu: bool = False, threads: int | None = 1) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.work = work
        self.trained = work.model.load(gpu)

    def __call__(self, part: PartRow) -> PartRow:
        """Writes the rows of the part to its `path`; returns counts, seconds and the error."""
        began = time.perf_counter()
        done = {"path": part["path"], "videos": len(part["videos"]), "error": part["error"]}
        failures = sum(map(bool, part["reasons"]))
        if not part["error"]:
            rows = self.rows(part)
            try:
                with appearing(output_folder(part["path"])) as staging:
                    table = pa.Table.from_pylist(rows, schema=SCHEMAS[self.work.kind])
                    pq.write_table(table, staging)
            except OSError as problem:
                done["error"] = str(problem)
        seconds = {"reading": part["reading"], "running": time.perf_counter() - began}
        return {**done, "failures": failures, **seconds}

    def rows(self, part: PartRow) -> list[PartRow]:
        """Returns a row for every video, in their order."""
        rows = []
        for values, reason in zip(part["videos"], part["reasons"], strict=True):
            row = {**values, "video": values["name"], "error": reason or None}
            del row["name"]
            rows.append(row)
        good = [number for number, row in enumerate(rows) if row["error"] is None]
        if good:
            frames = part["frames"] if len(good) == len(rows) else part["frames"][good]
            self._answer([rows[number] for number in good], frames)
        return rows

    def _answer(self, rows: Sequence[PartRow], frames_NTSSC: NDArray[np.uint8]) -> None:
        with warnings.catch_warnings():  # Ray's arrays are read-only, and nothing writes to them
            warnings.filterwarnings("ignore", message=".*not writable.*")
            frames = torch.from_numpy(frames_NTSSC)
        if self.work.kind == "embedding":
            for row, embedding in zip(rows, self.trained.embed_videos(frames).cpu(), strict=True):
                row["embedding"] = embedding.tolist()
            return
        labels = self.trained.labels or ()
        probability_NC = self.trained.class_probabilities(frames).cpu()
        values, numbers = probability_NC.topk(min(self.work.top, len(labels)))
        for row, own, chosen in zip(rows, values.tolist(), numbers.tolist(), strict=True):
            row |= {"labels": [labels[number] for number in chosen], "probabilities": own}


class BothStages:
    """Both stages in one process."""

    def __init__(self, work: Work, gpu: bool = False, threads: int | None = 1) -> None:
        self.reader, self.model = FrameReader(work), PartModel(work, gpu, threads)

    def __call__(self, part: PartRow) -> PartRow:
        """Returns what `PartModel` returns."""
        return self.model(self.reader(part))

    def close(self) -> None:
        """Stops the decoding process."""
        self.reader.close()


@dataclass(frozen=True)
class Pools:
    """Numbers of actors."""

    readers: int
    """One per CPU; they also run the model if there are no `models`."""
    models: int = 0
    gpus_each: float = 0

    @classmethod
    def on(cls, nodes: Sequence[dict[str, float]], share: float, readers: int | None) -> "Pools":
        """Returns the pools that fill nodes with these resources, with at most `readers`, if given.

        `share` is that of a GPU for each model; 0 for the CPU.
        """
        cpus = int(sum(node.get("CPU", 0.0) for node in nodes))
        if not cpus:
            raise RunError("no node of the Ray cluster has a CPU; start nodes with CPUs")
        fit = copies_that_fit(nodes, {"GPU": share}) if share else 0
        return cls(min(readers or cpus, cpus), fit, share)

    def stream(
        self,
        parts: Sequence[PartRow],
        work: Work,
        reader: Stage = FrameReader,
        model: Stage = PartModel,
    ) -> Iterator[PartRow]:
        """Yields the answer of the model for each part as it is finished, in any order.

        Ray starts an actor or a node that fails again, and repeats its parts; a RayError if it
        fails repeatedly.
        """
        import ray.data

        # One block per part, because Ray repeats the whole block of a failed worker.
        rows: Any = ray.data.from_items(list(parts), override_num_blocks=len(parts))

        def pool(actors: int) -> ray.data.ActorPoolStrategy:
            most = max(1, min(actors, len(parts)))
            # For a GPU, all are started at once. On the CPU, Ray starts a further one when the
            # first is busy for long: each start takes seconds of the same cores.
            first = most if self.models else 1
            return ray.data.ActorPoolStrategy(min_size=1, initial_size=first, max_size=most)

        given: dict[str, Any] = {"compute": pool(self.readers), "num_cpus": 1}
        if not self.models:
            rows = rows.map(BothStages, fn_constructor_args=(work,), **given)
        else:
            gpu: dict[str, Any] = {"compute": pool(self.models), "num_gpus": self.gpus_each}
            rows = rows.map(reader, fn_constructor_args=(work,), **given)
            rows = rows.map(model, fn_constructor_args=(work, True), **gpu)
        yield from rows.iter_rows()

    @property
    def measured(self) -> int:
        """Number of finished parts from which `limit` judges."""
        return max(_MEASURED, 3 * self.models)

    def limit(self, finished: Sequence[PartRow]) -> str | None:
        """Returns a sentence if the readers, by the first finished parts, cannot keep GPUs busy."""
        if not self.models or len(finished) < self.measured:
            return None
        reading, running = (
            median(part[name] / part["videos"] for part in finished)
            for name in ("reading", "running")
        )
        share = self.readers * running / (self.models * reading)
        if share >= _ENOUGH:
            return None
        gpus = self.models * self.gpus_each
        return (
            f"decoding is the limit: {self.readers} CPUs feed {share:.0%} of "
            f"{'the GPU' if gpus <= 1 else f'{gpus:g} GPUs'}; add CPUs or nodes with CPUs"
        )
