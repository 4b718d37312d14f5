"""Each cache has one MLflow run, and an unusable store is reported before decoding begins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.cli.console import RunError
from pipelines.cli.progress_bar import Done
from pipelines.preprocessing import cache_record
from pipelines.preprocessing.cache_record import CacheRecord
from pipelines.preprocessing.make_cache import PreprocessConfig, make_cache
from pipelines.tracking import store
from pipelines.tracking.direct_run import TrackedRun
from stop_core.cache import Manifest, write_shard
from tests.pipelines.conftest import NewStore

pytestmark = pytest.mark.usefixtures("decoded_here")


@pytest.fixture(autouse=True)
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Decodes in this process; lists the number of clips of each decoded shard."""
    done: list[int] = []

    def serially(job: Any, plans: Any, root: Path, *others: Any) -> Iterator[Done]:
        for plan in plans:
            record = write_shard(plan, job.config, root, job.cache)
            done.append(record.rows)
            yield Done(record.rows, len(record.failures))

    monkeypatch.setattr("pipelines.preprocessing.make_cache.decode_shards", serially)
    return done


@pytest.fixture
def config(hmdb51_root: Path, tmp_path: Path, new_store: NewStore) -> PreprocessConfig:
    new_store(tmp_path / "out/mlflow.db")
    options = {"data_root": str(hmdb51_root), "cache": str(tmp_path / "cache"), "frames": 4}
    return PreprocessConfig(dataset="hmdb51", size=16, output=tmp_path / "out", **options)


def _runs(config: PreprocessConfig) -> list[tuple[str, float | None]]:
    client = MlflowClient(store.tracking_uri(config.output))
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'preprocess'")
    return [(run.info.status, run.data.metrics.get("clips/test")) for run in runs]


def test_an_unusable_store_is_reported_before_decoding(
    config: PreprocessConfig, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(
        RunError,
        match=r"the MLflow store http://127.0.0.1:9 .* cannot be used: the connection was refused",
    ):
        make_cache(config)
    assert not decoded


def test_an_unusable_store_leaves_a_finished_cache_intact(
    config: PreprocessConfig, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_cache(config)
    video = next(Path(config.data_path).rglob("*.avi"))
    video.touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="cannot be used"):
        make_cache(config)
    assert Manifest.load(config.cache_path) == manifest


@pytest.mark.parametrize("place", ["open_experiment", "log_params", "finish"])
def test_the_same_command_records_a_cache_that_could_not_be_recorded(
    config: PreprocessConfig,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    owner = cache_record if place == "open_experiment" else TrackedRun
    begin = CacheRecord.begin

    def goes_away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody answers\nat all")

    def begin_and_lose(record: CacheRecord, dataset: str) -> None:
        begin(record, dataset)
        monkeypatch.setattr(owner, place, goes_away)

    monkeypatch.setattr(CacheRecord, "begin", begin_and_lose)
    manifest = make_cache(config)
    said = capsys.readouterr().err
    assert "the cache is complete, but it could not be recorded in MLflow (nobody answers);" in said
    monkeypatch.undo()
    made = len(decoded)
    assert make_cache(config) == make_cache(config) == manifest
    assert len(decoded) == made
    assert _runs(config) == [("FINISHED", 4.0)]


def test_an_interruption_after_the_last_clip_leaves_the_record_pending(
    config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CacheRecord, "note_duration", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(config)
    monkeypatch.undo()
    make_cache(config)
    assert _runs(config) == [("FINISHED", 4.0)]
