"""Writing into an untrusted folder follows no link in it."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.cli.console import RunError
from pipelines.cli.folders import alone_in
from pipelines.sweeping.trials import Trials
from pipelines.tracking.outbox import Outbox
from pipelines.tracking.queued_run import QueuedRun
from pipelines.training.checkpoints import move_damaged_aside, write_checkpoint
from pipelines.training.progress_file import ProgressFile
from pipelines.training.result import TrainingResult
from stop_core.cache.export import Part, export
from stop_core.cache.files import DATA, FAILURES, JOB, LOCK, MANIFEST, RECORDS, RETRY
from stop_core.trained_model.files import MODEL
from tests.security.fuzz import snapshot
from tests.security.strangers import make_cache, make_model, make_run, read_cache, read_job


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("strangers")
    make_cache(root / "cache", write_video)
    make_model(root / "run" / MODEL)
    make_run(root / "other")
    shutil.copytree(root / "other", root / "run", dirs_exist_ok=True)
    return root


@pytest.fixture
def inner(made: Path, tmp_path: Path) -> Path:
    """The untrusted folders, in a separate folder."""
    shutil.copytree(made, tmp_path / "inner")
    return tmp_path / "inner"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Files of the user, with the names of files that the program writes, replaces and removes."""
    folder = tmp_path / "outside"
    (folder / "checkpoint_000001").mkdir(parents=True)
    (folder / ".checkpoint_x").mkdir()
    names = ("victim", ".a.0123abcd.tmp", "train-00000.json", "train-00000.parquet", "0-file.json")
    for name in (*names, "a.png", "trial-0000.json", "checkpoint_000001/a", ".checkpoint_x/a"):
        (folder / name).write_text("precious")
    return folder


def _plant(place: Path, target: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


def _run(folder: Path) -> None:
    """Does everything that writes into the folder of a run."""
    with alone_in(folder):
        move_damaged_aside(folder)
        write_checkpoint(folder, lambda staging: None)
        ProgressFile(folder / "progress.json").write(1, 1, 0.5)
        run = QueuedRun(folder, f"sqlite:///{folder}/none.db")
        run.log_points([(1, 0, {"a": 1.0})])
        run.adopt("a" * 32)
        run.outbox.deliver(lambda record: None)
        if result := TrainingResult.load(folder):
            result.save()
        Trials(folder).add({}, 0)
        make_model(folder / MODEL)


@pytest.mark.parametrize(
    "name",
    [
        *(
            LOCK,
            "progress.json",
            "mlflow_told.json",
            "mlflow_store",
            "mlflow_run_id",
            "result.json",
        ),
        *("outbox", "outbox/.lock", "outbox/refused", "trials", "trials/trial-0000.json"),
        *("checkpoints", "checkpoint_000000", "checkpoint_000001", MODEL, ".checkpoint_x"),
        "figures",
    ],
)
@pytest.mark.parametrize("target", ["victim", ".", "checkpoint_000001", "absent"])
def test_no_link_in_a_run_is_written_through(
    inner: Path, outside: Path, name: str, target: str
) -> None:
    _plant(inner / "run" / name, outside / target)
    before = snapshot(outside)
    with suppress(ValueError, OSError, RunError):
        _run(inner / "run")
    assert snapshot(outside) == before


@pytest.mark.parametrize(
    "name",
    [
        *(LOCK, JOB, MANIFEST, FAILURES, RETRY, DATA, RECORDS),
        *(f"{RECORDS}/train-00000.json", f"{DATA}/train-00000.parquet"),
    ],
)
@pytest.mark.parametrize("target", ["victim", ".", "absent"])
def test_no_link_in_a_cache_is_written_through(
    inner: Path, outside: Path, name: str, target: str
) -> None:
    _plant(inner / "cache" / name, outside / target)
    before = snapshot(outside)
    for use in (read_cache, read_job):
        with suppress(ValueError, OSError), alone_in(inner / "cache"):
            use(inner / "cache")
        assert snapshot(outside) == before


def test_a_lock_that_is_a_link_is_refused_in_one_sentence(tmp_path: Path, outside: Path) -> None:
    _plant(tmp_path / "run" / LOCK, outside / "victim")
    before = snapshot(outside)
    with (
        pytest.raises(OSError, match=r"\.lock is a link, and a lock must be a file"),
        alone_in(tmp_path / "run"),
    ):
        pass
    box = Outbox(tmp_path / "run")
    box.put({"kind": "end"})
    with pytest.raises(OSError, match=r"\.lock is a link, and a lock must be a file"):
        box.deliver(lambda record: None)
    assert snapshot(outside) == before


def test_an_export_does_not_write_through_a_link(inner: Path, outside: Path) -> None:
    before = snapshot(outside)
    (inner / "pictures").symlink_to(outside)
    with pytest.raises((ValueError, OSError)):
        export(inner / "cache", Part(), inner / "pictures", "png")
    assert snapshot(outside) == before
