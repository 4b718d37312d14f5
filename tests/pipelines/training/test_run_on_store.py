"""A training with its output on an object store is the one on a disk, after any interruption."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.console import RunError
from pipelines.cluster.resources import Resources
from pipelines.tracking.outbox import Outbox
from pipelines.training.launch import TrainingHooks
from pipelines.training.result import TrainingResult
from pipelines.training.run import TrainingRun
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage import locks, paths
from stop_core.storage.atomic import SUMS
from stop_core.storage.paths import RemotePath, StoragePath
from tests.pipelines.conftest import NewStore
from tests.tools import without_figures

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(autouse=True)
def _tracking(new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "tracking" / "mlflow.db"))


@pytest.fixture(scope="module")
def on_disk(
    small_experiment: ExperimentConfig,
    small_cache: Path,
    new_store: NewStore,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainingRun:
    """The same training on a disk, finished."""
    folder = tmp_path_factory.mktemp("disk")
    training = TrainingRun(small_experiment, small_cache, folder / "outputs")
    with pytest.MonkeyPatch.context() as patch, without_figures():
        patch.setenv("MLFLOW_TRACKING_URI", new_store(folder / "tracking" / "mlflow.db"))
        training.train(Resources(), in_process=True)
    return training


def _facts(training: TrainingRun) -> dict[str, Any]:
    """Everything of a finished training that must not depend on where its output is."""
    result, folder = training.remembered(), training.folder
    assert result is not None
    curve = [{k: v for k, v in row.items() if k != "step_seconds"} for row in result.curve]
    names = ("predictions.parquet", "model/prompts.safetensors", "model/labels.json")
    return {
        "metrics": result.metrics,
        "curve": curve,
        **{name: (folder / name).read_bytes() for name in names},
    }


def _on_store(like: TrainingRun, bucket: StoragePath) -> TrainingRun:
    return TrainingRun(like.config, like.cache, bucket)


@contextmanager
def _outage(requests: int | None) -> Iterator[list[float]]:
    """Lets every request fail until `requests` pauses were made; None: for ever."""
    slept: list[float] = []

    real = RemotePath.filesystem
    assert isinstance(real, property)

    def filesystem(self: RemotePath) -> Any:
        if requests is None or len(slept) < requests:
            raise OSError("AWS Error NETWORK_CONNECTION during PutObject operation")
        return real.__get__(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemotePath, "filesystem", property(filesystem))
        patch.setattr(paths.time, "sleep", slept.append)
        yield slept


def test_a_killed_training_resumes_on_an_empty_machine_and_waits_for_a_store_that_is_away(
    on_disk: TrainingRun, bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = _on_store(on_disk, bucket)
    upload = RemotePath.upload

    def killed(self: RemotePath, local: Path) -> None:
        if self.name == SUMS and self.parent.name == "checkpoint_000001":
            raise KeyboardInterrupt  # between two objects of the second checkpoint
        upload(self, local)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "upload", killed)
        patch.setattr(locks._Claim, "release", lambda claim: claim._ended.set())
        with pytest.raises(KeyboardInterrupt):
            training.train(Resources(), in_process=True)
    whole = {path.parent.name for path in (training.folder / "checkpoints").glob(f"*/{SUMS}")}
    assert whole == {"checkpoint_000000"}
    assert training.remembered() is None

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(locks, "EXPIRED", 0.0)  # the claim of the killed process
    resumed, outage, during = _on_store(on_disk, bucket), _outage(5), []

    def report(row: dict[str, float]) -> None:
        if row["epoch"] == 2 and not row["finished"]:
            during.append(outage.__enter__())

    try:
        resumed.train(Resources(), in_process=True, hooks=TrainingHooks(report))
    finally:
        outage.__exit__(None, None, None)
    assert during[0][:3] == [1.0, 2.0, 4.0]
    assert len(during[0]) == 5
    progress = resumed.progress_file.read()
    assert progress is not None
    assert progress.events[0].startswith(f"resuming {training.name} after epoch 1 of 2")
    assert _facts(resumed) == _facts(on_disk)


def test_an_outage_that_lasts_leaves_a_run_that_resumes(
    on_disk: TrainingRun, bucket: RemotePath
) -> None:
    training = _on_store(on_disk, replace(bucket, patience=0.0))
    outage = _outage(None)

    def report(row: dict[str, float]) -> None:
        if row["finished"]:
            outage.__enter__()  # before the model and the result are stored

    try:
        with pytest.raises((RunError, OSError), match="NETWORK_CONNECTION"):
            training.train(Resources(), in_process=True, hooks=TrainingHooks(report))
    finally:
        outage.__exit__(None, None, None)
    assert TrainingResult.load(training.folder) is None
    assert not (training.folder / "model" / SUMS).exists()
    resumed = _on_store(on_disk, bucket)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "EXPIRED", 0.0)  # the claim could not be removed
        resumed.train(Resources(), in_process=True)
    assert _facts(resumed) == _facts(on_disk)


def test_of_two_commands_at_once_one_waits_and_both_have_the_result_on_a_disk(
    on_disk: TrainingRun, bucket: RemotePath, capsys: pytest.CaptureFixture[str]
) -> None:
    second: list[TrainingResult] = []
    other = threading.Thread(
        target=lambda: second.append(
            _on_store(on_disk, bucket).train(Resources(), "parent", in_process=True)
        )
    )

    def report(row: dict[str, float]) -> None:
        if row["epoch"] == 1 and not other.is_alive():
            other.start()

    first = _on_store(on_disk, bucket).train(
        Resources(), in_process=True, hooks=TrainingHooks(report)
    )
    other.join()
    assert second[0].reused
    assert second[0].metrics == first.metrics
    assert not first.reused
    training = _on_store(on_disk, bucket)
    assert first.folder == second[0].folder == str(training.folder)
    assert _facts(training) == _facts(on_disk)
    assert not Outbox(training.folder / "outbox").waiting()
    assert not list((training.folder / ".lock").iterdir())
    assert "another process works in s3://" in capsys.readouterr().err


def test_a_training_on_a_store_needs_a_tracking_store(
    on_disk: TrainingRun, bucket: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(RunError, match="MLflow's SQLite store, which needs a disk"):
        _on_store(on_disk, bucket).train(Resources(), in_process=True)
    assert not list(bucket.listing())


def test_a_missing_bucket_is_refused_at_once(on_disk: TrainingRun, bucket: RemotePath) -> None:
    missing = replace(bucket, key="no-such-bucket/x")
    with pytest.raises(RunError, match=r"no-such-bucket.* cannot be written .*NO_SUCH_BUCKET"):
        _on_store(on_disk, missing).train(Resources(), in_process=True)
