"""A table is one MLflow run with its cells as children, no matter how often it is made."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.tables.mlflow_table import NOTE, publish_table, track
from pipelines.tables.table import ComparisonTable
from pipelines.tracking.direct_run import TrackedRun
from pipelines.tracking.store import open_experiment, tracking_uri
from pipelines.training.result import TrainingResult
from stop_core.settings.experiment import ExperimentConfig
from tests.pipelines.fake_results import recognised

STOP = ExperimentConfig()
ZERO = ExperimentConfig(method="zero-shot")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests, because creating one takes seconds."""
    return tmp_path_factory.mktemp("output")


def _results(folder: Path) -> list[TrainingResult]:
    right = [[True] * count + [False] * (20 - count) for count in (18, 15, 3)]
    configs = [replace(STOP, seed=0), replace(STOP, seed=1), ZERO]
    return [recognised(c, r, folder) for c, r in zip(configs, right, strict=True)]


def _publish(folder: Path, results: list[TrainingResult], name: str) -> TrackedRun:
    rows = {"zero-shot": [ZERO], "STOP": [replace(STOP, seed=seed) for seed in range(2)]}
    table = ComparisonTable("motion", 1, "d" * 64, rows, folder / "tables" / name, name=name)
    table.fill(results)
    tracked = track(table, folder)
    with tracked.ended():
        publish_table(table, tracked)
    return tracked


def _children(client: MlflowClient, parent: str) -> list[Run]:
    experiment = client.get_run(parent).info.experiment_id
    return list(client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'"))


def test_a_table_made_twice_is_one_run_with_each_cell_once(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = _results(tmp_path)
    first, second = (_publish(output, results, "twice") for _ in range(2))
    assert first.run_id == second.run_id
    run = first.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_top1/STOP"] == pytest.approx(33 / 40)
    assert "| STOP | **82.5 ± 10.6** |" in run.data.tags[NOTE]
    stored = first.client.download_artifacts(first.run_id, "table.json", str(tmp_path))
    assert len(json.loads(Path(stored).read_text())["data"]) == 2
    names = {file.path for file in first.client.list_artifacts(first.run_id)}
    assert {"table.csv", "table.md", "table.tex", "table.html"} <= names
    assert "82.5 ± 10.6" in capsys.readouterr().out

    cells = _children(first.client, first.run_id)
    assert sorted(cell.info.run_name for cell in cells) == [
        "STOP, seed 0", "STOP, seed 1", "zero-shot, seed 0",
    ]  # fmt: skip
    for cell in cells:
        assert cell.info.status == "FINISHED"
        assert cell.data.params["method"] == cell.data.tags["method"]
        assert cell.data.tags["row"] in ("STOP", "zero-shot")
    by_name = {cell.info.run_name: cell.data.metrics for cell in cells}
    for result in results:
        name = f"{'STOP' if result.method == 'stop' else 'zero-shot'}, seed {result.seed}"
        assert by_name[name]["test/top1"] == result.metrics["test/top1"]
        assert by_name[name]["val_best/top1"] == result.metrics["val/top1"]


def test_a_cell_is_the_run_of_its_training_unless_another_table_has_it(
    output: Path, tmp_path: Path
) -> None:
    experiment = open_experiment(output, "motion")
    results = [
        replace(result, run_id=TrackedRun.start(output, experiment, result.name).run_id)
        for result in _results(tmp_path)
    ]
    client = MlflowClient(tracking_uri(output))
    first = _publish(output, results, "first")
    own = {result.run_id for result in results}
    assert {cell.info.run_id for cell in _children(client, first.run_id)} == own

    second = _publish(output, results, "second")
    copies = _children(client, second.run_id)
    assert {cell.data.tags["training_run"] for cell in copies} == own
    assert {cell.info.run_id for cell in _children(client, first.run_id)} == own


def test_the_same_rows_can_be_compared_with_another_baseline(output: Path, tmp_path: Path) -> None:
    results = _results(tmp_path)
    rows = {"zero-shot": [ZERO], "STOP": [replace(STOP, seed=seed) for seed in range(2)]}
    for baseline in ("zero-shot", "STOP", "zero-shot"):
        table = ComparisonTable(
            "motion", 1, "d" * 64, rows, output / "tables" / "other", baseline=baseline
        )
        table.fill(results)
        tracked = track(table, output)
        publish_table(table, tracked)
        assert tracked.client.get_run(tracked.run_id).data.tags["baseline"] == baseline


def test_two_rows_of_one_configuration_are_two_cells(output: Path, tmp_path: Path) -> None:
    run = TrackedRun.start(output, open_experiment(output, "motion"), "zero-shot")
    result = replace(_results(tmp_path)[-1], run_id=run.run_id)
    for _ in range(2):
        rows = {"first": [ZERO], "second": [ZERO]}
        table = ComparisonTable("motion", 1, "d" * 64, rows, output / "tables" / "alike")
        table.fill([result])
        tracked = track(table, output)
        publish_table(table, tracked)
        cells = _children(tracked.client, tracked.run_id)
        by_row = {cell.data.tags["row"]: cell for cell in cells}
        assert len(cells) == 2
        assert by_row["first"].info.run_id == run.run_id
        assert by_row["second"].data.tags["training_run"] == run.run_id


def test_a_copy_is_completed_after_an_interruption(output: Path, tmp_path: Path) -> None:
    results = _results(tmp_path)
    tracked = _publish(output, results, "killed")
    cell = _children(tracked.client, tracked.run_id)[0]
    tracked.client.update_run(cell.info.run_id, status="RUNNING")
    _publish(output, results, "killed")
    assert len(_children(tracked.client, tracked.run_id)) == 3
    assert tracked.client.get_run(cell.info.run_id).info.status == "FINISHED"


def _view(client: MlflowClient, parent: str) -> dict[str, float]:
    """Returns the mean of each row as the view shows it that the table's description links to."""
    experiment = client.get_experiment(client.get_run(parent).info.experiment_id)
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.table-{parent[:8]}"])
    (key,) = view["groupBy"]["groupByKeys"]
    groups = defaultdict(list)
    for run in client.search_runs([experiment.experiment_id], view["searchFilter"]):
        groups[run.data.tags.get(key["groupByData"], "none")].append(run.data.metrics["test/top1"])
    return {row: fmean(values) for row, values in groups.items()}


def test_the_grouped_view_agrees_with_the_table_after_a_training_was_repeated(
    output: Path, tmp_path: Path
) -> None:
    experiment = open_experiment(output, "motion")
    client = MlflowClient(tracking_uri(output))

    def trained(result: TrainingResult, top1: float) -> TrainingResult:
        """Returns the result with a separate run that has this measure."""
        run = TrackedRun.start(output, experiment, result.name)
        run.log_metrics({"test/top1": top1})
        run.finish()
        return replace(result, run_id=run.run_id)

    first = [trained(result, result.metrics["test/top1"]) for result in _results(tmp_path)]
    tables = [_publish(output, first, name).run_id for name in ("own", "copied")]
    other = recognised(replace(STOP, seed=1), [True] * 5 + [False] * 15, tmp_path)
    repeated = trained(other, other.metrics["test/top1"])
    again = [first[0], repeated, first[2]]
    assert [_publish(output, again, name).run_id for name in ("own", "copied")] == tables
    for table in tables:
        assert _view(client, table) == pytest.approx({"STOP": (18 + 5) / 40, "zero-shot": 3 / 20})
    replaced = client.get_run(first[1].run_id).data.tags
    assert tables[0] in replaced["stale"]
    assert "row" not in replaced
    # The earlier training is restored from a backup: it is a cell again.
    recognised(replace(STOP, seed=1), [True] * 15 + [False] * 5, tmp_path)
    _publish(output, first, "own")
    assert _view(client, tables[0])["STOP"] == pytest.approx(33 / 40)
    assert "stale" not in client.get_run(first[1].run_id).data.tags


def test_a_failed_training_stays_a_child_of_its_table_without_a_row(
    output: Path, tmp_path: Path
) -> None:
    results = _results(tmp_path)
    tracked = _publish(output, results, "failed")
    experiment = open_experiment(output, "motion")
    failed = TrackedRun.start(
        output, experiment, "failed", tags={"mlflow.parentRunId": tracked.run_id}
    )
    failed.finish("FAILED")
    _publish(output, results, "failed")
    children = {child.info.run_id: child for child in _children(tracked.client, tracked.run_id)}
    assert len(children) == 4
    assert "row" not in children[failed.run_id].data.tags
