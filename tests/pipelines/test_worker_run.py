"""A worker that is killed at any save ends with the bits and the records of one that is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.queued_run import QueuedRun
from pipelines.tracking import open_experiment, tracking_uri
from pipelines.training_worker import ALONE, WorkerTask
from pipelines.worker_run import WorkerRun
from pipelines.worker_session import FolderSession, Write
from stop_core.checkpoint import BEST_PROMPTS
from stop_core.experiment import ExperimentConfig
from stop_core.run_state import LAST_PROMPTS, PROGRESS, Origin, read_progress
from tests.tools import Curves, curves


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


class MortalSession(FolderSession):
    """Dies at save number `at`: before it is on disk, or right after."""

    def __init__(self, folder: Path, at: int, *, before: bool) -> None:
        super().__init__(folder)
        self.left, self.before = at, before

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        self.left -= 1
        if self.left == 0 and self.before:
            raise Killed
        super().report(metrics, write)
        if self.left == 0:
            raise Killed


def _task(config: ExperimentConfig, cache: Path, output: Path) -> WorkerTask:
    open_experiment(output, "motion")
    folder = output / "runs" / "one"
    tracked = QueuedRun(folder, tracking_uri(output))
    tracked.open(output, "motion", "one")
    return WorkerTask(
        config=config,
        cache=cache,
        folder=folder,
        tracking_uri=tracked.uri,
        progress_file=folder / "progress.json",
        threads=1,
        gpu=False,
        test=True,
        start=None,
        fork=False,
        origin=Origin("one", config.hash, "d" * 64, "", config.parameters()),
        micro_batch=None,
        checkpoint_activations=False,
        compile=False,
        checkpoint_minutes=60,
        checkpoint_every_steps=1,
    )


def _ended(task: WorkerTask) -> tuple[dict[str, np.ndarray], Curves]:
    """The weights of the last checkpoint, and all points of the run that do not tell a speed."""
    latest = FolderSession(task.folder / "checkpoints").latest()
    assert latest is not None
    weights = {f"{file} {k}": v for file in (LAST_PROMPTS, BEST_PROMPTS)
               for k, v in load_file(latest / file).items()}  # fmt: skip
    run = QueuedRun(task.folder, task.tracking_uri)
    assert run.deliver() is None
    return weights, curves(task.tracking_uri, run.run_id)


@pytest.fixture(scope="module")
def unbroken(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExperimentConfig, dict[str, np.ndarray], Curves]:
    config = replace(small_experiment, ema=0.5, frames=4, segment_jitter=True)
    config = config.for_dataset("hmdb51")
    task = _task(config, small_cache, tmp_path_factory.mktemp("unbroken"))
    WorkerRun(task, FolderSession(task.folder / "checkpoints")).run()
    return config, *_ended(task)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "before"), [(1, True), (2, False), (3, True), (5, False), (7, True), (7, False)]
)
def test_a_kill_at_any_save_changes_no_bit_and_no_record(
    unbroken: tuple[ExperimentConfig, dict[str, np.ndarray], Curves],
    small_cache: Path,
    tmp_path: Path,
    at: int,
    before: bool,
) -> None:
    config, weights, records = unbroken
    task = _task(config, small_cache, tmp_path)
    folder = task.folder / "checkpoints"
    with pytest.raises(Killed):
        WorkerRun(task, MortalSession(folder, at, before=before)).run()
    WorkerRun(task, FolderSession(folder)).run()
    ours, told = _ended(task)
    assert ours.keys() == weights.keys()
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)
    assert told == records
    assert {"train/loss", "val/top1", "test/top1"} <= told.keys()


@pytest.mark.slow
def test_a_training_begun_under_ray_train_is_taken_up_without_it(
    unbroken: tuple[ExperimentConfig, dict[str, np.ndarray], Curves],
    small_cache: Path,
    tmp_path: Path,
) -> None:
    config, weights, records = unbroken
    task = _task(config, small_cache, tmp_path)
    with pytest.raises(Killed):  # Ray Train's checkpoints lie in the folder of the run
        WorkerRun(task, MortalSession(task.folder, 5, before=False)).run()
    latest = FolderSession(task.folder).latest()
    assert latest is not None
    partial = task.folder / "checkpoint_000009"  # a copy that a kill has cut short
    shutil.copytree(latest, partial)
    progress = json.loads((partial / PROGRESS).read_text())
    (partial / PROGRESS).write_text(json.dumps({**progress, "step": 99}))
    (partial / BEST_PROMPTS).write_bytes((latest / BEST_PROMPTS).read_bytes()[:-40])
    WorkerRun(task, FolderSession(task.folder / ALONE)).run()
    assert read_progress(latest).step > 0
    ours, told = _ended(task)
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)
    assert told == records
