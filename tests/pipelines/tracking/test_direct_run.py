"""A folder has one MLflow run, even after interruptions."""

from pathlib import Path

import pytest

from pipelines.tracking import direct_run
from pipelines.tracking.direct_run import TrackedRun
from pipelines.tracking.store import RUN_ID, open_experiment
from tests.pipelines.conftest import NewStore


class _Killed(BaseException):
    """Simulates SIGKILL: no code catches it."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, new_store: NewStore) -> Path:
    """An output folder with one store for all tests."""
    folder = tmp_path_factory.mktemp("output")
    new_store(folder / "mlflow.db")
    return folder


def _run(output: Path, name: str) -> TrackedRun:
    experiment = open_experiment(output, name)
    return TrackedRun.of_folder(output / name, output, experiment, name, {"kind": "sweep"})


@pytest.mark.parametrize("place", ["environment", "mlflow_run_key", RUN_ID])
def test_folder_has_one_run_wherever_it_was_interrupted(
    output: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write = direct_run.write_whole

    def killed(path: Path | None = None, text: str = "") -> None:
        if path and path.name != place:
            return write(path, text)
        raise _Killed

    monkeypatch.setattr(
        direct_run, "environment" if place == "environment" else "write_whole", killed
    )
    with pytest.raises(_Killed):
        _run(output, place)
    monkeypatch.undo()
    first, again = _run(output, place), _run(output, place)
    assert first.run_id == again.run_id
    (only,) = first.client.search_runs([open_experiment(output, place)])
    assert only.info.run_id == first.run_id
    assert [file.path for file in first.client.list_artifacts(first.run_id)] == ["environment.json"]


def test_folders_of_the_same_name_have_separate_runs(output: Path) -> None:
    experiment = open_experiment(output, "shared")
    first, second = (
        TrackedRun.of_folder(output / user / "mine", output, experiment, "mine", {})
        for user in ("a", "b")
    )
    assert first.run_id != second.run_id


def test_only_a_changed_result_is_logged_again(output: Path) -> None:
    run = _run(output, "metrics")
    for metrics in (
        {"best": 0.5, "least": 3.0},
        {"best": 0.5, "least": 3.0},
        {"best": 0.5, "least": 2.0},
    ):
        run.log_metrics(metrics)
    history = [one.value for one in run.client.get_metric_history(run.run_id, "best")]
    assert history == [0.5]
    assert len(run.client.get_metric_history(run.run_id, "least")) == 2
    assert run.client.get_run(run.run_id).data.metrics["least"] == 2.0
