"""Laws of the callback for Ray Train: an outage loses no report, and a resumed run repeats none.

Its methods are called as Ray's controller calls them, on a copy that went through pickle.
"""

import pickle
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.tracking.outbox import Courier
from pipelines.tracking.ray_train import OutboxCallback
from tests.mlflow_server import mlflow_server
from tests.pipelines.conftest import NewStore
from tests.tools import free_ports


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(Courier, "_FIRST_RETRY", 0.05)
    monkeypatch.setattr(Courier, "_LAST_RETRY", 0.1)
    monkeypatch.setattr("pipelines.tracking.ray_train._SECONDS_TO_DELIVER", 0.0)


def _in_controller(driver: OutboxCallback) -> OutboxCallback:
    copy = pickle.loads(pickle.dumps(driver))
    assert isinstance(copy, OutboxCallback)
    return copy


def _await_delivery(callback: OutboxCallback) -> None:
    """Waits for the thread of the controller, which has no other call to react to."""
    deadline = time.monotonic() + 120
    while callback.run.outbox.waiting():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    points = MlflowClient(uri).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_reports_of_an_outage_arrive_when_the_server_is_back(
    tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "mlflow.db")
    (port,) = free_ports(1)
    driver = OutboxCallback(
        tmp_path / "runs" / "first",
        "another project",
        uri=f"http://127.0.0.1:{port}",
        params={"lr": 0.1},
        tags={"team": "a"},
    )
    controller = _in_controller(driver)
    outbox = driver.run.outbox
    with driver:
        controller.after_report(None, [{"step": 1, "loss": 2.0, "note": "x"}, {"loss": 9.0}], None)
        controller.after_exception(None, {1: RuntimeError("worker is gone")})
        assert driver.run.run_id == ""
        assert outbox.waiting()
        with mlflow_server(store, tmp_path / "artifacts", port):
            _await_delivery(controller)
        # Away again; Ray has restarted the workers from a checkpoint before step 1.
        controller.after_report(None, [{"step": 1, "loss": 2.0}], None)
        controller.after_report(None, [{"step": 2, "loss": float("nan"), "acc": 0.5}], None)
    assert len(outbox.waiting()) >= 2, "the points and the end of the run"
    with mlflow_server(store, tmp_path / "artifacts", port):
        _await_delivery(driver)
    assert not outbox.refused()
    run_id = driver.run.run_id
    run = MlflowClient(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["team"] == "a"
    assert "git_commit" not in run.data.tags, "it is a tag of this project"
    assert [step for step, _ in _history(store, run_id, "loss")] == [1, 2]
    assert _history(store, run_id, "acc") == [(2, 0.5)]
    (failure,) = MlflowClient(store).list_artifacts(run_id, "failures")
    text = tmp_path / "artifacts" / run.info.experiment_id / run_id / "artifacts" / failure.path
    assert "worker 1\nRuntimeError: worker is gone" in text.read_text()
    experiment = MlflowClient(store).get_experiment(run.info.experiment_id)
    assert experiment.tags == {"mlflow.experimentKind": "custom_model_development"}


def test_a_later_training_in_the_folder_continues_the_run(
    tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "mlflow.db")
    ids = []
    for losses in ([3.0, 2.0], [1.0]):  # no step is reported: the reports are counted
        driver = OutboxCallback(tmp_path / "run", "motion", "named", uri=store)
        controller = _in_controller(driver)
        with driver:
            for loss in losses:
                controller.after_report(None, [{"loss": loss}], None)
        _await_delivery(driver)
        ids.append(driver.run.run_id)
    assert ids[0] == ids[1]
    assert _history(store, ids[0], "loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("problem", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_training_that_raises_ends_its_run(
    problem: type[BaseException], status: str, tmp_path: Path, new_store: NewStore
) -> None:
    store = new_store(tmp_path / "mlflow.db")
    driver = OutboxCallback(tmp_path / "run", "motion", uri=store)
    with pytest.raises(problem), driver:
        raise problem
    assert MlflowClient(store).get_run(driver.run.run_id).info.status == status


def test_a_full_disk_does_not_stop_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    controller = OutboxCallback(tmp_path / "run", "motion", uri="http://127.0.0.1:1")
    controller.after_report(None, [{"loss": 1.0}], None)
    assert "a record for MLflow cannot be written" in capsys.readouterr().err


def test_a_store_is_required(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI, or give uri"):
        OutboxCallback(tmp_path, "motion")
