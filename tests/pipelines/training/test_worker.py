"""An interruption at any save changes neither the weights nor the records of a worker."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipelines.cluster.resources import Resources
from pipelines.tracking.queued_run import QueuedRun
from pipelines.tracking.store import open_experiment
from pipelines.training.checkpoints import CHECKPOINTS, Write, list_checkpoints, move_damaged_aside
from pipelines.training.session import FolderSession, RayTrainSession
from pipelines.training.task import PAUSE, WorkerTask
from pipelines.training.worker import WorkerRun
from stop_core.cache import FrameCache
from stop_core.cache.hashed import local_folder
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.training import TrainingOptions
from stop_core.training.checkpoint import BEST_PROMPTS
from stop_core.training.run_state import LAST_PROMPTS, PROGRESS, read_progress
from tests.pipelines.worker_tasks import InterruptedSession, Killed, new_task
from tests.tools import Curves, curves, without_figures


class PausingSession(FolderSession):
    """Asks for a pause after save number `at`."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder)
        self.left = at

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        super().report(metrics, write)
        self.left -= 1
        if self.left == 0:
            (self.folder.parent / PAUSE).touch()


class InterruptedRaySession(RayTrainSession):
    """The session of Ray Train, with a controller that answers at once.

    Is interrupted before save number `at`, after everything that followed the saves before.
    """

    def __init__(self, run: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(run)
        self.left = at
        monkeypatch.setattr("ray.train.report", lambda *arguments, **options: None)

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed
        super().report(metrics, write)


@dataclass(frozen=True)
class Reference:
    """An uninterrupted training, whose store also holds the runs of the other ones."""

    task: WorkerTask
    weights: dict[str, np.ndarray]
    records: Curves

    def new_task(self, folder: Path) -> WorkerTask:
        """The same task in another folder and MLflow run."""
        task = replace(self.task, folder=folder)
        QueuedRun(folder, task.tracking_uri).open("motion", folder.name)
        return task

    def check(self, task: WorkerTask, folder: str = CHECKPOINTS) -> None:
        """Asserts that a training ended with the same bits and records."""
        weights, records = _end_of(task, folder)
        assert weights.keys() == self.weights.keys()
        assert all(np.array_equal(weights[name], self.weights[name]) for name in weights)
        assert records == self.records


def _end_of(task: WorkerTask, folder: str = CHECKPOINTS) -> tuple[dict[str, np.ndarray], Curves]:
    """The weights of the last checkpoint, and all points of the run except speeds."""
    latest = list_checkpoints(task.folder / folder)[-1]
    assert read_progress(latest).final is not None
    weights = {f"{file} {k}": v for file in (LAST_PROMPTS, BEST_PROMPTS)
               for k, v in load_file(latest / file).items()}  # fmt: skip
    run = QueuedRun(task.folder, task.tracking_uri)
    assert run.deliver() is None
    return weights, curves(task.tracking_uri, run.run_id)


@pytest.fixture(scope="module")
def reference(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    # Six steps, of which four are an epoch: the last epoch is incomplete.
    options = TrainingOptions(
        steps=6, warmup=0.2, flip=True, randaugment=1, mixup=0.4, decay_biases=False
    )
    config = replace(
        small_experiment,
        epochs=ExperimentConfig.epochs,
        warmup_steps=ExperimentConfig.warmup_steps,
        batch_size=10,
        training=options,
        ema=0.5,
        frames=4,
        segment_jitter=True,
    )
    config = config.for_dataset("hmdb51")
    output = tmp_path_factory.mktemp("reference")
    open_experiment(output, "motion")
    resources = Resources(checkpoint_minutes=60, checkpoint_every_steps=1)
    task = new_task(output, small_cache, config, resources)
    with without_figures():
        WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    weights, records = _end_of(task)
    assert {"train/loss", "val/top1", "test/top1"} <= records.keys()
    return Reference(task, weights, records)


@pytest.fixture
def task(reference: Reference, tmp_path: Path) -> WorkerTask:
    return reference.new_task(tmp_path / "runs" / "one")


@pytest.mark.slow
def test_a_training_of_six_steps_is_validated_after_its_epoch_and_its_last_step(
    reference: Reference,
) -> None:
    progress = read_progress(list_checkpoints(reference.task.folder / CHECKPOINTS)[-1])
    assert (progress.step, progress.epochs_done) == (6, 2)
    assert [row["epoch"] for row in progress.curve] == [1, 2]
    assert [step for step, _ in reference.records["val/top1"]] == [4, 6]


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("at", "before"), [(1, True), (2, False), (3, True), (5, False), (7, True), (7, False)]
)
def test_an_interruption_at_any_save_changes_no_bit_and_no_record(
    reference: Reference, task: WorkerTask, at: int, before: bool
) -> None:
    folder = task.folder / CHECKPOINTS
    with pytest.raises(Killed):
        WorkerRun(task, InterruptedSession(folder, at, before=before)).run()
    WorkerRun(task, FolderSession(folder)).run()
    reference.check(task)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_copies_within_a_bound_change_no_bit_and_no_record_after_an_interruption(
    reference: Reference, task: WorkerTask
) -> None:
    """With room for one shard: those of the splits make room for each other."""
    largest = max(entry.file_bytes for entry in FrameCache(task.cache).manifest.shards)
    task = replace(task, resources=replace(task.resources, local_cache_gb=1.01 * largest / 1e9))
    folder = task.folder / CHECKPOINTS
    with pytest.raises(Killed):
        WorkerRun(task, InterruptedSession(folder, 3, before=True)).run()
    run = WorkerRun(task, FolderSession(folder))
    assert run.cache.split("train").source is not None
    run.run()
    reference.check(task)
    held = sum(path.stat().st_size for path in local_folder().glob("*/data/*"))
    assert 0 < held <= 1.01 * largest


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("at", "step"), [(1, 1), (4, 4), (5, 5), (6, 6)])
def test_a_pause_ends_a_training_after_its_save_and_changes_no_bit_and_no_record(
    reference: Reference, task: WorkerTask, at: int, step: int
) -> None:
    folder = task.folder / CHECKPOINTS
    WorkerRun(task, PausingSession(folder, at)).run()
    saved = read_progress(list_checkpoints(folder)[-1])
    assert (saved.step, saved.final) == (step, None)
    (task.folder / PAUSE).unlink()
    WorkerRun(task, FolderSession(folder)).run()
    reference.check(task)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("at", [1, 2, 4, 7, 8])
def test_training_under_ray_train_resumes_and_logs_steps_once(
    reference: Reference, task: WorkerTask, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with suppress(Killed):  # save 8 never comes: that training is interrupted after its end
        WorkerRun(task, InterruptedRaySession(task.folder, at, monkeypatch)).run()
    assert len(list_checkpoints(task.folder)) == min(at - 1, 2), "the last two are kept"
    WorkerRun(task, InterruptedRaySession(task.folder, 99, monkeypatch)).run()
    reference.check(task, ".")


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_steps_that_are_repeated_after_damage_are_logged_once(
    reference: Reference, task: WorkerTask
) -> None:
    folder = task.folder / CHECKPOINTS
    with pytest.raises(Killed):
        WorkerRun(task, InterruptedSession(folder, 7, before=True)).run()
    latest = list_checkpoints(folder)[-1]  # of the end of the last epoch, whose points are logged
    (latest / BEST_PROMPTS).write_bytes(b"")
    move_damaged_aside(task.folder)
    WorkerRun(task, FolderSession(folder)).run()
    reference.check(task)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_training_that_ray_train_began_resumes_without_it(
    reference: Reference, task: WorkerTask
) -> None:
    with pytest.raises(Killed):  # the checkpoints of Ray Train are in the folder of the run
        WorkerRun(task, InterruptedSession(task.folder, 5, before=False)).run()
    latest = list_checkpoints(task.folder)[-1]
    damaged = task.folder / "checkpoint_000009"
    shutil.copytree(latest, damaged)
    progress = json.loads((damaged / PROGRESS).read_text())
    (damaged / PROGRESS).write_text(json.dumps({**progress, "step": 99}))
    (damaged / BEST_PROMPTS).write_bytes((latest / BEST_PROMPTS).read_bytes()[:-40])
    WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    assert read_progress(latest).step > 0
    reference.check(task)


@pytest.mark.slow
def test_evaluation_batches_are_at_most_as_large_as_training_batches(
    task: WorkerTask, tmp_path: Path
) -> None:
    for micro_batch, expected in ((None, 10), (3, 3)):
        resources = Resources(micro_batch=micro_batch)
        run = WorkerRun(replace(task, resources=resources), FolderSession(tmp_path))
        assert run.objective.evaluation_batch == expected


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_compiling_is_no_part_of_the_identity_and_only_full_batches_are_compiled(
    reference: Reference, task: WorkerTask, compiled_sizes: list[int]
) -> None:
    folder = task.folder / CHECKPOINTS
    with pytest.raises(Killed):  # after the first of six steps
        WorkerRun(task, InterruptedSession(folder, 1, before=False)).run()
    assert not compiled_sizes, "a CPU compiles only if it is asked to"
    task = replace(task, resources=replace(task.resources, compile="on"))
    WorkerRun(task, FolderSession(folder)).run()
    assert compiled_sizes == [10] * 6, "to compile, and in each of the five other steps"
    reference.check(task)


@pytest.mark.slow
def test_a_figure_that_cannot_be_drawn_is_recorded_and_does_not_stop_the_training(
    reference: Reference, task: WorkerTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise ValueError("a figure that\nno one can draw")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    reference.check(task)
    problems = read_progress(list_checkpoints(task.folder / CHECKPOINTS)[-1]).problems
    assert problems == ["a figure is missing: a figure that no one can draw"] * 3
