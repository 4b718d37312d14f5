"""Data that differs from its manifest is never trained on, measured or embedded silently."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file
from torch import Tensor

from pipelines.cli.console import RunError
from pipelines.cluster.resources import Resources
from pipelines.inference.model_choice import ModelChoice
from pipelines.inference.stages import BothStages, Work
from pipelines.inference.video_list import list_cached
from pipelines.preprocessing.find_cache import find_cache
from pipelines.tracking.queued_run import QueuedRun
from pipelines.tracking.store import open_experiment, tracking_uri
from pipelines.training.checkpoints import CHECKPOINTS, Write, latest_checkpoint, list_checkpoints
from pipelines.training.run import TrainingRun
from pipelines.training.session import FolderSession
from pipelines.training.task import StartFrom, WorkerTask
from pipelines.training.worker import WorkerRun
from stop_core import StopConfig
from stop_core.cache import CacheConfig, CacheJob, FrameCache, Manifest, hashed, write_shard
from stop_core.cache.export import Part, export
from stop_core.cache.files import MANIFEST, read_checked_json, write_checked_json
from stop_core.cache.integrity import BackgroundCheck, ChangedDataError
from stop_core.cache.layout import open_writer, shard_schema
from stop_core.datasets import DATASETS, select_clips
from stop_core.settings.experiment import ExperimentConfig
from stop_core.training.run_state import LAST_PROMPTS, Origin, read_progress
from tests.tools import curves, without_figures

Damage = Callable[[Path, Path], object]
Outcome = tuple[dict[str, np.ndarray], dict[str, list[tuple[int, float]]]]
"""Weights of a training, and its logged metrics."""
CONFIG = ExperimentConfig(
    stop=StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4),
    epochs=2, batch_size=4, warmup_steps=2, frames=2,
).for_dataset("csv")  # fmt: skip


def _make(root: Path, cache: Path, size: int = 32) -> Path:
    """Makes a cache of four training clips in two shards, and two clips of each other split."""
    selection = select_clips(DATASETS["csv"].read(root, 1))
    config = CacheConfig.of(DATASETS["csv"], selection, fold=1, frames=2, size=size)
    job = CacheJob.open(cache, config, selection.clips, 4)
    for plan in job.plans:
        write_shard(plan, config, root, job.cache)
    job.finish()
    return cache


@pytest.fixture(scope="module", autouse=True)
def _no_figures() -> Iterator[None]:
    with without_figures():
        yield


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]
) -> tuple[Path, Path]:
    """A finished cache, and one of the same clips in another size."""
    root = tmp_path_factory.mktemp("clips")
    lines = ["path,split,label"]
    for number in range(16):
        split = "train" if number < 8 else "val" if number < 12 else "test"
        write_video(root / f"{number}.avi", frames=4, seed=number)
        lines.append(f"{number}.avi,{split},{'wave' if number % 2 else 'jump'}")
    (root / "clips.csv").write_text("\n".join(lines))
    return _make(root, root / "cache"), _make(root, root / "other", size=16)


@pytest.fixture
def cache(whole: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the complete cache, to damage it."""
    return Path(shutil.copytree(whole[0], tmp_path / "cache"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all tests, because making an MLflow store takes seconds."""
    folder = tmp_path_factory.mktemp("output")
    open_experiment(folder, "csv")
    return folder


def _shard(cache: Path, name: str = "train-00000") -> Path:
    return cache / "data" / f"{name}.parquet"


def _flip(column: str) -> Damage:
    """Flips a bit of the last value of a column."""

    def damage(cache: Path, other: Path) -> None:
        path = _shard(cache)
        group = pq.read_metadata(path).row_group(0)
        (chunk,) = (
            one for one in map(group.column, range(group.num_columns))
            if one.path_in_schema.startswith(column)
        )  # fmt: skip
        data = bytearray(path.read_bytes())
        data[chunk.data_page_offset + chunk.total_compressed_size - 4] ^= 1
        path.write_bytes(data)

    return damage


def _zero(cache: Path, other: Path) -> None:
    data = bytearray(_shard(cache).read_bytes())
    data[1000:3000] = bytes(2000)
    _shard(cache).write_bytes(data)


def _swap(first: str, second: str) -> Damage:
    def damage(cache: Path, other: Path) -> None:
        one, two = _shard(cache, first).read_bytes(), _shard(cache, second).read_bytes()
        _shard(cache, first).write_bytes(two)
        _shard(cache, second).write_bytes(one)

    return damage


def _copy(source: str, target: str) -> Damage:
    return lambda cache, other: shutil.copyfile(_shard(cache, source), _shard(cache, target))


def _of_another_cache(cache: Path, other: Path) -> None:
    shutil.copyfile(_shard(other), _shard(cache))


def _written_again(cache: Path, other: Path) -> None:
    """Writes other labels in a valid file of the same size, footer and page layout."""
    path = _shard(cache)
    size = path.stat().st_size
    schema = shard_schema(FrameCache(cache).manifest.config, path.stem)
    table = pq.read_table(path).cast(schema)
    labels = pa.array([1 - label.as_py() for label in table["label"]], pa.int32())
    table = table.set_column(schema.get_field_index("label"), schema.field("label"), labels)
    with open_writer(path, schema) as writer:
        writer.write_table(table, row_group_size=len(table))
    assert path.stat().st_size == size


def _truncated(cache: Path, other: Path) -> None:
    _shard(cache).write_bytes(_shard(cache).read_bytes()[:-1])


def _gone(cache: Path, other: Path) -> None:
    _shard(cache).unlink()


def _a_pipe(cache: Path, other: Path) -> None:
    """Replaces a shard by a pipe, which blocks when opened."""
    _shard(cache).unlink()
    os.mkfifo(_shard(cache))


def _edited(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Edits the manifest and updates its checksum."""

    def damage(cache: Path, other: Path) -> None:
        values = read_checked_json(cache / MANIFEST)
        change(values)
        write_checked_json(cache / MANIFEST, values)

    return damage


# Changes that only the contents reveal, and those that sizes, footers or the manifest reveal.
IN_THE_CONTENTS = {
    "bit flipped in frames": _flip("frames"),
    "bit flipped in labels": _flip("label"),
    "bit flipped in captions": _flip("video_id"),
    "region zeroed": _zero,
    "written again in the same size": _written_again,
}
AT_ONCE = {
    "swapped within a split": _swap("train-00000", "train-00001"),
    "swapped across splits": _swap("train-00000", "val-00000"),
    "test copied over train": _copy("test-00000", "train-00000"),
    "train copied over test": _copy("train-00001", "test-00000"),
    "of another cache": _of_another_cache,
    "truncated": _truncated,
    "gone": _gone,
    "a pipe": _a_pipe,
    "manifest with a shard less": _edited(lambda v: v["shards"].pop(0)),
    "manifest with other counts": _edited(lambda v: v["counts"].update(train=7)),
    "manifest with other options": _edited(lambda v: v["config"].update(size=16)),
    "manifest with a shard of another split": _edited(
        lambda v: (v["shards"][0].update(split="test"), v["counts"].update(train=4, test=8))
    ),
    "manifest with other hashes": _edited(lambda v: v["shards"][0].update(sha256="0" * 64)),
}
ALL = IN_THE_CONTENTS | AT_ONCE


def _cases(damages: dict[str, Damage]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("damage", damages.values(), ids=damages.keys())


@_cases(AT_ONCE)
def test_sizes_footers_and_manifest_are_compared_before_reading(
    cache: Path, whole: tuple[Path, Path], output: Path, damage: Damage
) -> None:
    assert find_cache(str(cache), output) == cache
    damage(cache, whole[1])
    with pytest.raises(ValueError, match=str(cache)):
        find_cache(str(cache), output)  # used by train and benchmark
    with pytest.raises(ValueError, match=str(cache)):
        _frames(cache)


def _frames(cache: Path) -> list[Tensor]:
    return [FrameCache(cache).split(split).read([0]) for split in ("train", "val", "test")]


@_cases(ALL)
def test_every_change_is_detected_when_contents_are_compared(
    cache: Path, whole: tuple[Path, Path], tmp_path: Path, damage: Damage
) -> None:
    FrameCache(cache).verify()  # stores the hashes of the unchanged cache
    damage(cache, whole[1])
    with pytest.raises(ValueError, match=str(cache)):
        FrameCache(cache).verify()
    with pytest.raises(ValueError, match=str(cache)):
        export(cache, Part(), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_clips_of_a_changed_cache_are_not_embedded(cache: Path, tmp_path: Path) -> None:
    model = ModelChoice(tower="tiny", frames=2, labels=("jump", "wave"))
    worker = BothStages(Work(model, model.load().preprocessing, "labels", cache=str(cache)))
    videos = [vars(video) for video in list_cached(FrameCache(cache), ("train",))]
    row = {"path": str(tmp_path / "part.parquet"), "videos": videos}
    assert not worker(row)["error"]
    (tmp_path / "part.parquet").unlink()
    IN_THE_CONTENTS["bit flipped in frames"](cache, cache)
    assert "delete it, then run the same preprocess command" in worker(row)["error"]
    worker.close()
    assert not (tmp_path / "part.parquet").exists()


def _task(cache: Path, output: Path, name: str, config: ExperimentConfig = CONFIG) -> WorkerTask:
    folder = output / "runs" / name
    tracked = QueuedRun(folder, tracking_uri(output))
    tracked.open("csv", name)
    return WorkerTask(
        config=config, cache=cache, folder=folder, tracking_uri=tracked.uri,
        resources=Resources(checkpoint_minutes=60, checkpoint_every_steps=1), test=True, start=None,
        origin=Origin("one", config.hash, "d" * 64, "", config.parameters()),
    )  # fmt: skip


class _Killed(BaseException):
    """Simulates SIGKILL: no code catches it."""


class _Session(FolderSession):
    """Calls `then` after report number `at`."""

    def __init__(self, folder: Path, at: int, then: Callable[[], object]) -> None:
        super().__init__(folder)
        self.left, self.then = at, then

    def report(self, metrics: dict[str, float], write: Write | None) -> None:
        super().report(metrics, write)
        self.left -= 1
        if self.left == 0:
            self.then()


def _kill() -> None:
    raise _Killed


def _logged(task: WorkerTask) -> dict[str, list[tuple[int, float]]]:
    run = QueuedRun(task.folder, task.tracking_uri)
    assert run.deliver() is None
    return curves(task.tracking_uri, run.run_id)


@pytest.fixture(scope="module")
def unbroken(whole: tuple[Path, Path], output: Path) -> Outcome:
    task = _task(whole[0], output, "unbroken")
    WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    latest = list_checkpoints(task.folder / CHECKPOINTS)[-1]
    return load_file(latest / LAST_PROMPTS), _logged(task)


@pytest.mark.slow
@_cases(ALL)
def test_a_training_on_changed_data_has_no_result_and_no_metrics(
    cache: Path,
    whole: tuple[Path, Path],
    output: Path,
    damage: Damage,
    request: pytest.FixtureRequest,
) -> None:
    damage(cache, whole[1])
    task = _task(cache, output, request.node.callspec.id.replace(" ", "-"))
    with pytest.raises(ValueError, match=str(cache)):
        WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    for checkpoint in list_checkpoints(task.folder / CHECKPOINTS):
        progress = read_progress(checkpoint)
        assert not progress.curve
        assert progress.final is None
        assert progress.unverified
    assert not _logged(task)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear-probe", "zero-shot", "clip4clip"])
def test_no_method_measures_changed_data(cache: Path, output: Path, method: str) -> None:
    IN_THE_CONTENTS["bit flipped in labels"](cache, cache)
    config = replace(CONFIG, method=method, epochs=0 if method == "zero-shot" else 1)
    training = TrainingRun(config, cache, output)
    with pytest.raises(RunError, match=r"train-00000\S+ is not as it was made: its SHA-256"):
        training.train(Resources(), in_process=True)
    assert training.remembered() is None
    assert not (training.folder / "model").exists()
    run = MlflowClient(tracking_uri(output)).get_run(training.tracked.run_id)
    assert run.info.status == "FAILED"
    assert "not as it was made" in run.data.tags["failure"]
    assert not [name for name in run.data.metrics if name.startswith(("val/", "test/"))]


@pytest.mark.slow
def test_a_shard_that_changes_ends_the_training_which_resumes_after_its_repair(
    cache: Path, output: Path, unbroken: Outcome
) -> None:
    task = _task(cache, output, "during")
    good = _shard(cache).read_bytes()
    damage = IN_THE_CONTENTS["bit flipped in frames"]
    session = _Session(
        task.folder / CHECKPOINTS, 2, lambda: damage(cache, cache)
    )  # the end of an epoch
    with pytest.raises(ChangedDataError, match="not as it was made"):
        WorkerRun(task, session).run()
    latest = list_checkpoints(task.folder / CHECKPOINTS)[-1]
    assert read_progress(latest).step == 2
    with pytest.raises(ChangedDataError, match="not as it was made"):  # also after a resume
        WorkerRun(task, FolderSession(task.folder / CHECKPOINTS)).run()
    _shard(cache).write_bytes(good)
    _ends_as_unbroken(task, unbroken, begins_at=2)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Delays the hashing until the event is set."""
    event, compare = threading.Event(), BackgroundCheck._compare

    def late(self: BackgroundCheck) -> None:
        event.wait(60)
        compare(self)

    monkeypatch.setattr(BackgroundCheck, "_compare", late)
    yield event
    event.set()


@pytest.mark.slow
@pytest.mark.parametrize("repaired", [False, True])
def test_an_unverified_checkpoint_is_resumed_only_with_the_same_data(
    cache: Path,
    output: Path,
    unbroken: Outcome,
    held: threading.Event,
    repaired: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = _task(cache, output, f"unverified-{repaired}")
    good = _shard(cache).read_bytes()
    if repaired:
        IN_THE_CONTENTS["bit flipped in frames"](cache, cache)
    with pytest.raises(_Killed):
        WorkerRun(task, _Session(task.folder / CHECKPOINTS, 1, _kill)).run()
    first = latest_checkpoint(task.folder)
    assert first is not None
    assert read_progress(first).unverified
    assert not _logged(task)  # nothing is delivered before verification
    held.set()
    if repaired:
        _shard(cache).write_bytes(good)
        folder = task.folder.with_name("from-it")
        for fork in (False, True):
            other = replace(task, folder=folder, start=StartFrom(first, fork))
            with pytest.raises(ChangedDataError, match="have changed since"):
                WorkerRun(other, FolderSession(folder / CHECKPOINTS)).run()
    capsys.readouterr()
    _ends_as_unbroken(task, unbroken, begins_at=0 if repaired else 1)
    assert ("not resumed from" in capsys.readouterr().err) == repaired


def _ends_as_unbroken(task: WorkerTask, unbroken: Outcome, begins_at: int) -> None:
    run = WorkerRun(task, FolderSession(task.folder / CHECKPOINTS))
    assert run.progress.step == begins_at
    run.run()
    weights = load_file(list_checkpoints(task.folder / CHECKPOINTS)[-1] / LAST_PROMPTS)
    assert all(np.array_equal(weights[name], values) for name, values in unbroken[0].items())
    assert _logged(task) == unbroken[1]


def test_a_shard_that_is_repaired_before_hashing_is_refused(
    cache: Path, held: threading.Event
) -> None:
    good = _shard(cache).read_bytes()
    IN_THE_CONTENTS["bit flipped in frames"](cache, cache)
    contents = FrameCache(cache).watch(["train"])
    _shard(cache).write_bytes(good)  # the training may have read the damaged data
    held.set()
    with pytest.raises(ChangedDataError, match="was changed while"):
        contents.wait()


def test_the_contents_are_hashed_once_per_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def hash_and_note(path: Path) -> str:
        read.append(path)
        return _sum(path)

    monkeypatch.setattr(hashed, "hash_file", hash_and_note)
    size = len(list((cache / "data").iterdir()))
    FrameCache(cache).verify()
    assert len(read) == len(set(read)) == size
    FrameCache(cache).verify()
    contents = FrameCache(cache).watch(["train", "val", "test"])
    contents.wait()
    assert contents.is_verified()
    assert len(read) == size
    _shard(cache).touch()  # another mtime, the same bytes
    contents.wait()
    FrameCache(cache).verify()
    assert len(read) == size + 1


def test_a_change_that_restores_size_and_mtime_is_detected(cache: Path) -> None:
    FrameCache(cache).verify()
    before = _shard(cache).stat()
    IN_THE_CONTENTS["region zeroed"](cache, cache)
    os.utime(_shard(cache), ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ChangedDataError, match="not as it was made"):
        FrameCache(cache).verify()


@pytest.mark.parametrize("what", ["garbage", "unwritable"])
def test_stored_hashes_are_optional(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = tmp_path / "machine"
    monkeypatch.setenv("STOP_CACHE_FOLDER", str(folder))
    if what == "unwritable":
        folder.write_text("a file is in the way")
    FrameCache(cache).verify()
    if what == "garbage":
        (memory,) = (folder / "hashed").iterdir()
        assert memory.stat().st_mode & 0o077 == 0
        memory.write_bytes(b"\xff\x00{" + memory.read_bytes()[:-9])
    FrameCache(cache).verify()
    IN_THE_CONTENTS["region zeroed"](cache, cache)
    with pytest.raises(ChangedDataError, match="not as it was made"):
        FrameCache(cache).verify()


def test_shards_without_a_name_are_read_and_compared_by_their_hashes(
    cache: Path,
) -> None:
    manifest, entries = Manifest.load(cache), []
    for entry in manifest.shards:  # as the first programs with version 2 wrote it
        path = _shard(cache, entry.name)
        schema = shard_schema(manifest.config, entry.name)
        schema = schema.with_metadata(
            {k: v for k, v in schema.metadata.items() if k != b"stop.shard"}
        )
        table = pq.read_table(path).cast(schema)
        with open_writer(path, schema) as writer:
            writer.write_table(table, row_group_size=len(table))
        entries.append(replace(entry, file_bytes=path.stat().st_size, sha256=_sum(path)))
    manifest = replace(manifest, shards=tuple(entries))
    write_checked_json(cache / MANIFEST, replace(manifest, data_hash=manifest.hash()).to_dict())
    FrameCache(cache).verify()
    AT_ONCE["swapped within a split"](cache, cache)
    with pytest.raises(ChangedDataError):
        FrameCache(cache).verify()


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
