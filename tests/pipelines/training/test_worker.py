"""A worker that is killed at any save ends with the bits and the records of one that is not."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch import Tensor

from pipelines.tracking.queued_run import QueuedRun
from pipelines.tracking.store import open_experiment, tracking_uri
from pipelines.training.checkpoints import Write, list_checkpoints, move_damaged_aside
from pipelines.training.session import FolderSession, RayTrainSession
from pipelines.training.task import CHECKPOINTS, FIGURES, WorkerTask
from pipelines.training.worker import WorkerRun
from stop_core.settings.experiment import ExperimentConfig
from stop_core.training.checkpoint import BEST_PROMPTS
from stop_core.training.run_state import LAST_PROMPTS, PROGRESS, Origin, read_progress
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


class UnnotedSession(RayTrainSession):
    """Ray Train without its controller, which is killed before it notes a single checkpoint.

    Dies before save number `at`, so after all of what the saves before have led to.
    """

    def __init__(self, run: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(run)
        self.left = at
        monkeypatch.setattr("ray.train.get_checkpoint", lambda: None)
        monkeypatch.setattr("ray.train.report", lambda *arguments, **options: None)

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed
        super().report(metrics, write)


def _task(config: ExperimentConfig, cache: Path, output: Path) -> WorkerTask:
    open_experiment(output, "motion")
    folder = output / "runs" / "one"
    tracked = QueuedRun(folder, tracking_uri(output))
    tracked.open("motion", "one")
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


def _ended(task: WorkerTask, folder: str = CHECKPOINTS) -> tuple[dict[str, np.ndarray], Curves]:
    """The weights of the last checkpoint, and all points of the run that do not tell a speed."""
    latest = list_checkpoints(task.folder / folder)[-1]
    assert read_progress(latest).final is not None
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
@pytest.mark.parametrize("at", [1, 2, 4, 7, 8])
def test_what_ray_has_not_noted_is_gone_on_with_and_told_once(
    unbroken: tuple[ExperimentConfig, dict[str, np.ndarray], Curves],
    small_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    config, weights, records = unbroken
    task = _task(config, small_cache, tmp_path)
    with suppress(Killed):  # save 8 never comes, so that one is killed after its end
        WorkerRun(task, UnnotedSession(task.folder, at, monkeypatch)).run()
    assert len(list_checkpoints(task.folder)) == at - 1
    WorkerRun(task, UnnotedSession(task.folder, 99, monkeypatch)).run()
    ours, told = _ended(task, ".")
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)
    assert told == records


@pytest.mark.slow
def test_steps_that_are_trained_again_after_damage_are_told_once(
    unbroken: tuple[ExperimentConfig, dict[str, np.ndarray], Curves],
    small_cache: Path,
    tmp_path: Path,
) -> None:
    config, weights, records = unbroken
    task = _task(config, small_cache, tmp_path)
    folder = task.folder / CHECKPOINTS
    with pytest.raises(Killed):
        WorkerRun(task, MortalSession(folder, 7, before=True)).run()
    latest = list_checkpoints(folder)[-1]  # of the last epoch's end, whose points are told
    (latest / BEST_PROMPTS).write_bytes(b"")
    move_damaged_aside(task.folder)
    WorkerRun(task, FolderSession(folder)).run()
    ours, told = _ended(task)
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)
    assert told == records


@pytest.mark.slow
@pytest.mark.parametrize(("micro_batch", "expected"), [(None, 16), (3, 3)])
def test_no_more_clips_are_evaluated_at_once_than_are_trained(
    unbroken: tuple[ExperimentConfig, dict[str, np.ndarray], Curves],
    small_cache: Path,
    tmp_path: Path,
    micro_batch: int | None,
    expected: int,
) -> None:
    task = replace(_task(unbroken[0], small_cache, tmp_path), micro_batch=micro_batch)
    assert WorkerRun(task, FolderSession(tmp_path)).objective.evaluation_batch == expected


@pytest.mark.slow
def test_nothing_is_compiled_for_a_figure_of_one_clip(
    unbroken: tuple[ExperimentConfig, dict[str, np.ndarray], Curves],
    small_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, weights, _ = unbroken
    sizes: list[int] = []

    def compiled(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(frames: Tensor) -> Tensor:
            sizes.append(len(frames))
            return encode(frames)

        return run

    monkeypatch.setattr("torch.compile", compiled)
    task = replace(_task(config, small_cache, tmp_path), compile=True)
    WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    assert sizes
    assert 1 not in sizes
    assert (task.folder / FIGURES / "explained_1.png").exists()
    ours, _ = _ended(task)
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)


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
    latest = list_checkpoints(task.folder)[-1]
    partial = task.folder / "checkpoint_000009"  # one that has been damaged
    shutil.copytree(latest, partial)
    progress = json.loads((partial / PROGRESS).read_text())
    (partial / PROGRESS).write_text(json.dumps({**progress, "step": 99}))
    (partial / BEST_PROMPTS).write_bytes((latest / BEST_PROMPTS).read_bytes()[:-40])
    WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    assert read_progress(latest).step > 0
    ours, told = _ended(task)
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)
    assert told == records


@pytest.mark.slow
def test_a_figure_that_cannot_be_drawn_ends_nothing_and_is_noted_in_the_result(
    unbroken: tuple[ExperimentConfig, dict[str, np.ndarray], Curves],
    small_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, weights, records = unbroken
    task = _task(config, small_cache, tmp_path)

    def fails(*arguments: object, **options: object) -> None:
        raise ValueError("a figure that\nno one can draw")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    ours, told = _ended(task)
    assert all(np.array_equal(ours[name], weights[name]) for name in weights)
    assert told == records
    problems = read_progress(list_checkpoints(task.folder / CHECKPOINTS)[-1]).problems
    assert problems == ["a figure is missing: a figure that no one can draw"] * 3
