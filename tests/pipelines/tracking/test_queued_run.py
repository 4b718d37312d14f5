"""Laws of a queued run: nothing is lost or doubled, and its records go to one store."""

import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.data import get_source
from mlflow.entities import Run

from pipelines.tracking import queued_run
from pipelines.tracking.direct_run import download_model
from pipelines.tracking.queued_run import QueuedRun, UnnamedStoreError, deliver_waiting
from pipelines.tracking.store import tracking_uri
from tests.pipelines.conftest import NewStore
from tests.tools import free_ports

EXPERIMENTS = ["0", "1"]


def _history(output: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracking_uri(output)).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_records_of_an_outage_are_delivered_once(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    new_store(tmp_path / "mlflow.db")
    folder = tmp_path / "runs" / "one"
    away = QueuedRun(folder, f"http://127.0.0.1:{free_ports(1)[0]}")
    away.open("motion", "a training", tags={"kind": "training"})
    away.log_params({"alpha": 0.5})
    for _ in range(2):  # as at each start
        away.log_dataset("motion", "0123456789abcdef")
    points = [(step, 1000 + step, {"train/loss": 1 / (1 + step)}) for step in range(3)]
    away.log_points(points)
    assert away.deliver() is not None
    assert away.run_id == ""
    (folder / "config.yaml").write_text("alpha: 0.5")
    away.log_file("config.yaml")
    away.log_points(points[1:])  # as after a kill before the points were marked as logged
    away.finish()

    deliver_waiting(tmp_path)
    back = QueuedRun(folder, tracking_uri(tmp_path))
    assert not back.outbox.waiting()
    assert not back.outbox.refused()
    run = MlflowClient(back.uri).get_run(back.run_id)
    assert (run.info.status, run.data.params["alpha"]) == ("FINISHED", "0.5")
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("motion", "0123456789ab")
    assert _history(tmp_path, back.run_id, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    files = {file.path for file in MlflowClient(back.uri).list_artifacts(back.run_id)}
    assert files == {"config.yaml", "environment.json"}


def test_run_is_found_after_a_kill_before_its_id_was_stored(
    tmp_path: Path, new_store: NewStore
) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "mlflow.db"))
    run.open("motion", "a training")
    (waiting,) = run.outbox.waiting()
    record = waiting.read_text()
    assert run.deliver() is None
    first = run.run_id
    (run.folder / "mlflow_run_id").unlink()
    waiting.write_text(record)
    assert run.deliver() is None
    assert run.run_id == first
    assert len(MlflowClient(run.uri).search_runs(EXPERIMENTS)) == 1


def _waiting(run: QueuedRun) -> None:
    run.open("motion", "a training")
    run.log_points([(1, 1000, {"train/loss": 1.0})])


def _loss(uri: str, run_id: str) -> list[tuple[int, float, int]]:
    points = MlflowClient(uri).get_metric_history(run_id, "train/loss")
    return sorted((point.step, point.value, point.timestamp) for point in points)


def test_repeated_step_is_not_logged_again(tmp_path: Path, new_store: NewStore) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "mlflow.db"))
    _waiting(run)
    run.log_points([(2, 1010, {"train/loss": 0.5}), (2, 1011, {"val/top1": 0.1})])
    # Another process resumes from an earlier checkpoint and repeats step 2.
    again = QueuedRun(tmp_path / "runs" / "run", run.uri)
    again.log_points([(2, 1020, {"train/loss": 0.5})])
    again.log_points([(2, 1021, {"val/top1": 0.1}), (3, 1030, {"train/loss": 0.25})])
    assert again.deliver() is None
    assert _loss(run.uri, run.run_id) == [(1, 1.0, 1000), (2, 0.5, 1010), (3, 0.25, 1030)]
    assert len(MlflowClient(run.uri).get_metric_history(run.run_id, "val/top1")) == 1


def test_records_go_to_the_store_that_has_the_run(tmp_path: Path, new_store: NewStore) -> None:
    first, second = (new_store(tmp_path / f"{name}.db") for name in ("mlflow", "second"))
    run = QueuedRun(tmp_path / "runs" / "run", first)
    _waiting(run)
    assert run.deliver() is None
    run.log_points([(2, 1010, {"train/loss": 0.5})])
    elsewhere = QueuedRun(run.folder, second)
    assert elsewhere.store == first
    assert elsewhere.deliver() is None
    assert not elsewhere.outbox.refused()
    assert _loss(first, run.run_id) == [(1, 1.0, 1000), (2, 0.5, 1010)]
    assert not MlflowClient(second).search_runs(EXPERIMENTS)


def test_records_for_a_store_that_answers_do_not_wait_for_another(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    first, away = new_store(tmp_path / "mlflow.db"), f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    asked: list[str] = []
    find = queued_run.find_run

    def find_run(client: MlflowClient, run_id: str) -> Run | None:
        asked.append(client.tracking_uri)
        return find(client, run_id)

    monkeypatch.setattr(queued_run, "find_run", find_run)
    runs = [QueuedRun(tmp_path / "runs" / name, first) for name in "ab"]
    for run in runs:
        _waiting(run)
        assert run.deliver() is None
        elsewhere = QueuedRun(run.folder, away)
        elsewhere.open("motion", "a training")
        elsewhere.log_points([(2, 1010, {"train/loss": 0.5})])
    deliver_waiting(tmp_path)
    for run in runs:
        assert _loss(first, run.run_id) == [(1, 1.0, 1000), (2, 0.5, 1010)]
        assert not run.outbox.waiting()
    assert asked.count(away) == 1  # it may take a minute to fail


@pytest.mark.parametrize("given", ["server", "file"])
@pytest.mark.parametrize("noted", ["server", "file"])
def test_nothing_is_sent_to_a_store_that_only_the_folder_of_a_run_names(
    noted: str, given: str, tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may come from others, and the user's password is sent to a store."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = new_store(tmp_path / "output" / "mlflow.db")
    if given == "server":
        uri = new_store(tmp_path / "given.db")  # any other than that of the output folder
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    file = tmp_path / "other.db"
    other = new_store(file)
    before = file.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        where = other if noted == "file" else f"http://127.0.0.1:{server.getsockname()[1]}"
        run = QueuedRun(tmp_path / "output" / "runs" / "one", uri)
        run.adopt("0" * 32)
        (run.folder / "mlflow_store").write_text(where)
        _waiting(run)
        run.log_text("secret", "note.txt")
        problem = run.deliver(seconds=60)
        deliver_waiting(tmp_path / "output")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert isinstance(problem, UnnamedStoreError)
    assert f"set MLFLOW_TRACKING_URI={where}, or remove" in str(problem)
    assert file.read_bytes() == before
    assert len(run.outbox.waiting()) == 3
    assert not MlflowClient(uri).search_runs(EXPERIMENTS)
    if noted == "file":
        named = QueuedRun(run.folder, other)
        assert named.deliver() is None
        assert _loss(other, named.run_id) == [(1, 1.0, 1000)]


def test_moved_store_is_the_same_store(tmp_path: Path, new_store: NewStore) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    run = QueuedRun(before / "runs" / "run", new_store(before / "mlflow.db"))
    _waiting(run)
    assert run.deliver() is None
    before.rename(after)
    moved = QueuedRun(after / "runs" / "run", f"sqlite:///{after}/mlflow.db")
    _waiting(moved)
    moved.log_points([(2, 1010, {"train/loss": 0.5})])
    known = moved.run_id
    assert moved.deliver() is None
    assert (moved.run_id, moved.store) == (known, moved.uri)
    assert _loss(moved.uri, known) == [(1, 1.0, 1000), (2, 0.5, 1010)]


def test_run_whose_store_is_gone_resumes_in_another(tmp_path: Path, new_store: NewStore) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "first.db"))
    _waiting(run)
    assert run.deliver() is None
    (tmp_path / "first.db").unlink()
    other = QueuedRun(run.folder, new_store(tmp_path / "second.db"))
    other.open("motion", "a training")
    other.log_points([(2, 1010, {"train/loss": 0.5})])
    assert other.deliver() is None
    assert _loss(other.uri, other.run_id) == [(2, 0.5, 1010)]
    assert not (tmp_path / "first.db").exists()


def test_missing_store_is_not_created_while_the_other_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    run = QueuedRun(tmp_path / "runs" / "one", f"sqlite:///{tmp_path}/gone.db")
    run.adopt("0" * 32)
    run.log_points([(1, 1000, {"train/loss": 1.0})])
    deliver_waiting(tmp_path)
    assert len(run.outbox.waiting()) == 1
    assert not (tmp_path / "gone.db").exists()


def test_deleted_run_is_replaced_by_one_with_all_records(
    tmp_path: Path, new_store: NewStore
) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "store.db"))
    _waiting(run)
    assert run.deliver() is None
    first = run.run_id
    MlflowClient(run.uri).delete_run(first)
    run.open("motion", "a training")
    assert run.deliver() is None
    assert run.run_id != first
    run.log_points([(0, 1010, {"train/loss": 0.5})])
    assert run.deliver() is None
    assert not run.outbox.refused()
    assert _loss(run.uri, run.run_id) == [(0, 0.5, 1010)]


def test_no_password_is_stored_with_a_run(tmp_path: Path) -> None:
    run = QueuedRun(tmp_path, "postgresql://me:secret@host:5432/mlflow")
    run.adopt("abc")
    assert run.store == "postgresql://me:***@host:5432/mlflow"
    assert not any("secret" in file.read_text() for file in tmp_path.iterdir())


def test_missing_file_is_refused_with_its_name(tmp_path: Path, new_store: NewStore) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "mlflow.db"))
    run.open("motion", "a training")
    run.log_file("config.yaml")
    run.log_points([(1, 1000, {"train/loss": 1.0})])
    assert run.deliver() is None
    (refused,) = run.outbox.refused()
    assert "config.yaml is no longer there" in refused.read_text()
    assert _loss(run.uri, run.run_id) == [(1, 1.0, 1000)]


def test_blocked_outbox_does_not_delay_the_others(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = new_store(tmp_path / "mlflow.db")
    gone = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name in "abcd":
        run = QueuedRun(tmp_path / "runs" / name, uri)
        _waiting(run)
        if name in "ab":  # they are another store's, which is away
            run.adopt("0" * 32)
            (run.folder / "mlflow_store").write_text(gone)
        else:
            assert run.deliver() is None
            run.log_points([(2, 1010, {"train/loss": 0.5})])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gone)
    asked: list[str] = []
    deliver = QueuedRun.deliver
    monkeypatch.setattr(
        QueuedRun,
        "deliver",
        lambda run, **how: asked.append(run.folder.name) or deliver(run, **how),
    )
    deliver_waiting(tmp_path)
    assert asked == ["a", "c", "d"]  # a store that does not answer is asked once
    waiting = [len(QueuedRun(tmp_path / "runs" / name, uri).outbox.waiting()) for name in "abcd"]
    assert waiting == [2, 2, 0, 0]


def test_a_run_has_one_model_with_its_metrics_on_its_data(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "mlflow.db"))
    run.open("motion", "a training")
    run.log_params({"alpha": 0.5})
    run.log_dataset("motion", "0123456789abcdef", "s3://bucket/cache")
    measures = {"test/top1": 0.5, "val_best/top1": 0.75, "train/loss": 2.0}
    run.log_points([(7, 1000, measures)])
    (run.folder / "model").mkdir()
    (run.folder / "model" / "weights").write_text("w")
    client = MlflowClient(run.uri)

    def log() -> None:
        run.log_model("model", ["model/weights"], "the note")
        run.log_text("the next record", "note.txt")

    log()
    with monkeypatch.context() as patch:  # an interruption after the model was created
        patch.setattr(MlflowClient, "log_model_artifact", _fail)
        assert isinstance(run.deliver(), ConnectionError)
    log()
    assert run.deliver() is None
    assert not run.outbox.refused()
    stored = client.get_run(run.run_id)
    (output,) = stored.outputs.model_outputs
    (model,) = client.search_logged_models([stored.info.experiment_id])
    assert model.tags["mlflow.note.content"] == "the note"
    assert (model.model_id, model.status, model.params) == (
        output.model_id,
        "READY",
        {"alpha": "0.5"},
    )
    logged = {one.key: (one.value, one.step, one.dataset_digest) for one in model.metrics}
    assert logged == {
        "test/top1": (0.5, 7, "0123456789ab"),
        "val_best/top1": (0.75, 7, "0123456789ab"),
    }
    assert _history(tmp_path, run.run_id, "test/top1") == [(7, 0.5)]
    download_model(run.uri, run.run_id, "model", tmp_path)
    assert (tmp_path / "model" / "weights").read_text() == "w"


def _fail(*_: object) -> None:
    raise ConnectionError("away")


@pytest.mark.parametrize(
    ("cache", "source"),
    [
        ("/data/cache", {"uri": "/data/cache"}),
        ("s3://bucket/cache", {"uri": "s3://bucket/cache"}),
        ("gs://bucket/cache", {"uri": "gs://bucket/cache"}),
        ("", {"tags": {"hash": "0123456789abcdef"}}),  # the data of a training elsewhere
    ],
)
def test_mlflow_gives_the_source_of_a_dataset(
    cache: str, source: dict[str, object], tmp_path: Path, new_store: NewStore
) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "mlflow.db"))
    run.open("motion", "a training")
    run.log_dataset("motion", "0123456789abcdef", cache)
    assert run.deliver() is None
    (data,) = MlflowClient(run.uri).get_run(run.run_id).inputs.dataset_inputs
    assert get_source(data).to_dict() == source


def test_a_child_run_has_the_command_of_its_parent(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = new_store(tmp_path / "mlflow.db")
    monkeypatch.setattr("sys.argv", ["/usr/bin/stop", "sweep", "--space", "a b"])
    parent = QueuedRun(tmp_path / "runs" / "parent", uri)
    parent.open("motion", "a sweep")
    assert parent.deliver() is None
    monkeypatch.setattr("sys.argv", ["/ray/default_worker.py", "--node-ip-address"])
    child = QueuedRun(tmp_path / "runs" / "child", uri)
    child.open("motion", "a trial", parent=parent.run_id)
    assert child.deliver() is None
    for run in (parent, child):
        tags = MlflowClient(uri).get_run(run.run_id).data.tags
        assert tags["mlflow.source.name"] == "stop sweep --space 'a b'"


def test_tag_can_be_removed_twice(tmp_path: Path, new_store: NewStore) -> None:
    run = QueuedRun(tmp_path / "runs" / "run", new_store(tmp_path / "mlflow.db"))
    run.open("motion", "a training", tags={"kind": "training"})
    run.set_tags({"failure": "no memory"})
    for _ in range(2):
        run.remove_tags("failure", "never set")
    assert run.deliver() is None
    assert not run.outbox.refused()
    tags = MlflowClient(run.uri).get_run(run.run_id).data.tags
    assert "failure" not in tags
    assert tags["kind"] == "training"
