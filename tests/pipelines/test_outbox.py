"""Laws of the outbox: in order, nothing lost while the store is away, nothing doubled."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.outbox import Courier, Outbox, Record, RefusedError
from pipelines.queued_run import QueuedRun, deliver_waiting
from pipelines.tracking import open_experiment, tracking_uri


def _fails_at(number: int, taken: list[int], problem: Exception) -> Callable[[Record], None]:
    def send(record: Record) -> None:
        if record["number"] == number:
            raise problem
        taken.append(record["number"])

    return send


def test_records_wait_in_order_for_a_store_that_is_away(tmp_path: Path) -> None:
    taken: list[int] = []
    for number in range(5):
        Outbox(tmp_path).put({"kind": "k", "number": number})
    again = Outbox(tmp_path)
    problem = again.deliver(_fails_at(2, taken, ConnectionError("away")))
    assert isinstance(problem, ConnectionError)
    assert taken == [0, 1]
    assert len(again.waiting()) == 3
    assert again.deliver(_fails_at(-1, taken, ConnectionError())) is None
    assert taken == [0, 1, 2, 3, 4]
    assert not again.waiting()


def test_a_record_that_is_refused_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    taken: list[int] = []
    outbox = Outbox(tmp_path)
    for number in range(3):
        outbox.put({"kind": "k", "number": number})
    assert outbox.deliver(_fails_at(1, taken, RefusedError("no such thing"))) is None
    assert taken == [0, 2]
    (refused,) = outbox.refused()
    assert "no such thing" in refused.read_text()


def test_the_courier_tries_again_until_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Courier, "_FIRST_RETRY", 0.01)
    calls: list[int] = []
    done = threading.Event()

    def deliver() -> Exception | None:
        calls.append(1)
        if len(calls) < 3:
            return ConnectionError("away")
        done.set()
        return None

    courier = Courier(deliver)
    courier.call()
    assert done.wait(10)
    courier.close()
    assert len(calls) == 4  # once more at the end


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _history(output: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracking_uri(output)).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_what_was_told_during_an_outage_is_there_afterwards_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    open_experiment(tmp_path, "motion")
    folder = tmp_path / "runs" / "one"
    away = QueuedRun(folder, f"http://127.0.0.1:{_closed_port()}")
    away.open(tmp_path, "motion", "a training", tags={"kind": "training"})
    away.log_params({"alpha": 0.5})
    points = [(step, 1000 + step, {"train/loss": 1 / (1 + step)}) for step in range(3)]
    away.log_points(points)
    assert away.deliver() is not None
    assert away.run_id == ""
    (folder / "config.yaml").write_text("alpha: 0.5")
    away.log_file("config.yaml")
    away.log_points(points[1:])  # as a worker does that was killed before it knew
    away.finish()

    deliver_waiting(tmp_path)
    back = QueuedRun(folder, tracking_uri(tmp_path))
    assert not back.outbox.waiting()
    assert not back.outbox.refused()
    run = MlflowClient(back.uri).get_run(back.run_id)
    assert (run.info.status, run.data.params["alpha"]) == ("FINISHED", "0.5")
    assert _history(tmp_path, back.run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    files = {file.path for file in MlflowClient(back.uri).list_artifacts(back.run_id)}
    assert files == {"config.yaml", "environment.json"}


def test_a_process_that_dies_before_it_notes_the_id_of_its_run_finds_it_again(
    tmp_path: Path,
) -> None:
    experiment = open_experiment(tmp_path, "motion")
    run = QueuedRun(tmp_path / "run", tracking_uri(tmp_path))
    run.open(tmp_path, "motion", "a training")
    (waiting,) = run.outbox.waiting()
    record = waiting.read_text()
    assert run.deliver() is None
    first = run.run_id
    (run.folder / "mlflow_run_id").unlink()
    waiting.write_text(record)
    assert run.deliver() is None
    assert run.run_id == first
    assert len(MlflowClient(run.uri).search_runs([experiment])) == 1


def test_a_tag_that_is_taken_away_twice_is_gone_and_nothing_is_refused(tmp_path: Path) -> None:
    open_experiment(tmp_path, "motion")
    run = QueuedRun(tmp_path / "run", tracking_uri(tmp_path))
    run.open(tmp_path, "motion", "a training", tags={"kind": "training"})
    run.set_tags({"failure": "no memory"})
    for _ in range(2):
        run.remove_tags("failure", "never set")
    assert run.deliver() is None
    assert not run.outbox.refused()
    tags = MlflowClient(run.uri).get_run(run.run_id).data.tags
    assert "failure" not in tags
    assert tags["kind"] == "training"
