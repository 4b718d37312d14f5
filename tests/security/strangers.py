"""Complete folders of each untrusted kind, to be copied and damaged."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipelines.inference.model_choice import ModelChoice
from pipelines.inference.video_list import Video
from pipelines.sweeping.trials import Trials
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.queued_run import QueuedRun
from pipelines.training.result import TrainingResult
from pipelines.training.run import TrainingRun
from stop_core.cache import CacheConfig, CacheJob, FrameCache, read_failures, write_shard
from stop_core.cache.export import Part, export
from stop_core.cache.files import MANIFEST
from stop_core.cache.integrity import verify
from stop_core.clip.loading import load_clip
from stop_core.datasets import DATASETS, select_clips
from stop_core.model.methods import build_method
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig
from stop_core.trained_model.files import Provenance, label_classes
from stop_core.trained_model.frames import Preprocessing
from stop_core.trained_model.index import IndexInfo, SearchIndex, write_index
from stop_core.trained_model.model import TrainedModel, tower_facts
from stop_core.training.checkpoint import Checkpoint, check_whole
from stop_core.training.run_state import Origin, RunProgress
from tests.caches import write_cache
from tests.stop_core.datasets.conftest import TREES, make_tree_at

CONFIG = ExperimentConfig(
    stop=StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4), templates=("a {}",)
)
NAMES = ("red_square", "blue_circle")


def make_cache(folder: Path, write_video: Callable[..., Path]) -> None:
    """Makes a finished cache of two clips, with a failure."""
    root = folder.parent / "videos"
    for split in ("train", "test"):
        write_video(root / split / "one.avi")
    (root / "clips.csv").write_text(
        "path,split,label\ntrain/one.avi,train,wave\ntest/one.avi,test,wave\ngone.avi,test,wave\n"
    )
    write_cache("csv", root, folder, frames=2, size=32)


def _job(folder: Path) -> CacheJob:
    dataset = DATASETS["csv"]
    selection = select_clips(dataset.read(folder.parent / "videos", 1))
    config = CacheConfig.of(dataset, selection, fold=1, frames=2, size=32)
    return CacheJob.open(folder, config, selection.clips)


def read_cache(folder: Path) -> None:
    """Reads every part of a cache, and exports it."""
    cache = FrameCache(folder)
    for split in cache.manifest.counts:
        clips = cache.split(split)
        clips.read(range(len(clips)))
        assert len(clips.labels) == len(clips.video_ids) == len(clips.captions)
    list(verify(folder))
    read_failures(folder)
    training = TrainingRun(CONFIG, folder, folder.parent / "output")
    assert training.folder.parent == (folder.parent / "output" / "runs").resolve()
    try:
        export(folder, Part(), folder.parent / "pictures", "png")
    finally:
        shutil.rmtree(folder.parent / "pictures", ignore_errors=True)


def read_job(folder: Path) -> None:
    """Resumes a cache that was begun elsewhere."""
    (folder / MANIFEST).unlink(missing_ok=True)
    job = _job(folder)
    root = folder.parent / "videos"
    for plan in job.pending(root):
        write_shard(plan, job.config, root, job.cache)
    job.pending(root, retry_failed=True)
    job.finish()
    read_cache(folder)


def make_model(folder: Path) -> None:
    """Makes an untrained model with prompts."""
    clip = load_clip("tiny")
    facts = tower_facts(clip)
    model = build_method(CONFIG, clip, len(NAMES))
    how = Preprocessing(4, model.image_size, facts.mean, facts.std)
    origin = Provenance(facts.fingerprint, run="a run", dataset="motion", metrics={"test/top1": 1})
    classes = label_classes(NAMES, CONFIG.templates)
    TrainedModel(CONFIG, classes, how, origin, model).save(folder)


def read_model(folder: Path) -> None:
    """Loads a model and runs it."""
    trained = TrainedModel.load(folder)
    how = trained.preprocessing
    trained.class_probabilities(
        torch.zeros(1, how.frames, how.size, how.size, 3, dtype=torch.uint8)
    )


def make_index(folder: Path) -> None:
    """Makes an index of three videos."""
    folder.mkdir()
    rows = pa.table(
        {
            "video": ["/a.mp4", "/b.mp4", "/c.mp4"],
            "size": [1, 2, 3],
            "mtime_ns": [1, 2, 3],
            "split": ["", "", ""],
            "number": [-1, -1, -1],
            "error": pa.array([None, None, "truncated"], pa.string()),
            "embedding": pa.array([[1, 0], [0, 1], None], pa.list_(pa.float32())),
        }
    )
    write_index(folder, rows, IndexInfo("abc", ModelChoice(tower="tiny").to_dict(), None))


def read_index(folder: Path) -> None:
    """Searches a video, as `stop search` does."""
    index = SearchIndex(folder)
    ModelChoice.from_dict(index.info.model)
    for row, _ in index.nearest(np.zeros(index.embeddings_ME.shape[1], np.float32), 3):
        values = index.videos[row]
        Video(values.pop("video"), **values)


def make_checkpoint(folder: Path) -> None:
    """Makes a checkpoint of a layer and its optimiser."""
    folder.mkdir()
    prompts = {"a.weight": torch.ones(3, 2)}
    state = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3, 2)}}}
    progress = RunProgress(step=3, epochs_done=1, curve=[{"epoch": 1, "val/top1": 0.5}])
    origin = Origin("run", "c" * 12, "d" * 64, "", CONFIG.parameters())
    Checkpoint(progress, origin, prompts, prompts, {}, {}, state).save(folder)


def read_checkpoint(folder: Path) -> None:
    """Reads a checkpoint as a resumed training does."""
    check_whole(folder)
    found = Checkpoint.load(folder, [])
    assert found.progress.order >= (0, 0, False)
    found.origin.differences(found.origin)


def make_run(folder: Path) -> None:
    """Makes the folder of a finished training and a sweep, with a pending record."""
    folder.mkdir()
    numbers = {"val/top1": 0.5, "epoch": 1}
    TrainingResult(
        *("a run", "stop", "motion", 1, 0, numbers, "c" * 12, "d" * 64, "", ""), str(folder)
    ).save()
    trials = Trials(folder)
    trials.add({"n_s": 3}, 0).add_epoch(numbers)
    trials.save(trials.all[0])
    Outbox(folder / "outbox").put({"kind": "file", "name": "result.json"})


def read_run(folder: Path) -> None:
    """Reads the folder as a resumed command does, and delivers the pending records."""
    TrainingResult.load(folder)
    Trials(folder).ranked("val/top1")
    run = QueuedRun(folder, f"sqlite:///{folder.parent / 'none.db'}")
    run.log_points([(1, 0, {"a": 1.0})])

    def send(record: dict[str, object]) -> None:
        assert json.dumps(record)

    problem = run.outbox.deliver(send)
    if problem is not None:
        raise problem


def make_annotations(folder: Path) -> None:
    """Makes a small tree of every dataset with annotations."""
    for name in TREES:
        make_tree_at(folder / name, name)


def read_annotations(folder: Path) -> None:
    """Reads every dataset, and raises the first refusal at the end."""
    problems = []
    for name in sorted(TREES):
        try:
            for clip in DATASETS[name].read(folder / name, 1):
                # Links among the videos are allowed: they are the user's own, and only read.
                path = os.path.normpath(folder / name / clip.path)
                assert path.startswith(f"{folder}/{name}/"), clip.path
        except (ValueError, OSError) as problem:
            problems.append(problem)
    if problems:
        raise problems[0]


Maker = Callable[..., None]
Reader = Callable[[Path], None]
KINDS: dict[str, tuple[Maker, Reader]] = {
    "model": (make_model, read_model),
    "manifest": (make_cache, read_cache),
    "job": (make_cache, read_job),
    "index": (make_index, read_index),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "run": (make_run, read_run),
    "annotations": (make_annotations, read_annotations),
}


def files_of(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder, sorted."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
