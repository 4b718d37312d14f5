"""A folder has one MLflow run, told of once, whatever is killed or done by two at a time."""

from pathlib import Path

import pytest

from pipelines.tracking import direct_run
from pipelines.tracking.direct_run import TrackedRun
from pipelines.tracking.store import RUN_ID, open_experiment


class _Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, since to make one takes seconds."""
    return tmp_path_factory.mktemp("output")


def _run(output: Path, name: str) -> TrackedRun:
    experiment = open_experiment(output, name)
    return TrackedRun.of_folder(output / name, output, experiment, name, {"kind": "sweep"})


@pytest.mark.parametrize("place", ["environment", "mlflow_run_key", RUN_ID])
def test_a_folder_has_one_run_wherever_a_kill_came_in_between(
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


def test_folders_of_one_name_that_share_a_store_have_their_own_runs(output: Path) -> None:
    experiment = open_experiment(output, "shared")
    first, second = (
        TrackedRun.of_folder(output / user / "mine", output, experiment, "mine", {})
        for user in ("a", "b")
    )
    assert first.run_id != second.run_id


def test_what_a_run_has_come_to_is_a_point_more_only_where_it_has_changed(output: Path) -> None:
    run = _run(output, "metrics")
    for told in (
        {"best": 0.5, "least": 3.0},
        {"best": 0.5, "least": 3.0},
        {"best": 0.5, "least": 2.0},
    ):
        run.log_metrics(told)
    history = [one.value for one in run.client.get_metric_history(run.run_id, "best")]
    assert history == [0.5]
    assert len(run.client.get_metric_history(run.run_id, "least")) == 2
    assert run.client.get_run(run.run_id).data.metrics["least"] == 2.0
