"""The comparison table says what the runs said, and refuses what does not belong together."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipelines.command_line import RunError
from pipelines.table import ComparisonTable, publish
from pipelines.training_run import TrainingResult
from stop_core.config import StopConfig
from stop_core.experiment import ExperimentConfig

STOP = ExperimentConfig()
PROBE = ExperimentConfig(method="linear-probe")


def _result(config: ExperimentConfig, top1: float, data_hash: str = "d" * 64) -> TrainingResult:
    metrics = {"val/top1": top1, "test/top1": top1 - 0.1, "test/mean_class": top1 - 0.2}
    return TrainingResult(
        name="run",
        method=config.method,
        dataset="motion",
        fold=1,
        seed=config.seed,
        metrics={**metrics, "best_epoch": 1.0, "trainable_parameters": 1234.0},
        config_hash=config.hash,
        data_hash=data_hash,
        git_commit="c" * 40,
        run_id="r",
        folder="f",
    )


def _table(folder: Path) -> ComparisonTable:
    experiments = {"STOP": [replace(STOP, seed=seed) for seed in range(3)], "probe": [PROBE]}
    return ComparisonTable("motion", 1, "d" * 64, experiments, folder / "tables" / "motion")


def _all(table: ComparisonTable) -> list[TrainingResult]:
    stop = [_result(one, 0.8 + 0.1 * one.seed) for one in table.experiments["STOP"]]
    return [*stop, _result(PROBE, 0.5)]


def test_a_row_is_the_mean_and_the_sample_deviation_over_its_seeds(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.fill(list(reversed(_all(table))))
    stop, probe = table.frame().to_dict("records")
    assert stop["val_top1_mean"] == pytest.approx(0.9)
    assert stop["val_top1_std"] == pytest.approx(0.1)
    assert stop["test_top1_mean"] == pytest.approx(0.8)
    assert stop["seeds"] == "0 1 2"
    assert probe["test_mean_class_mean"] == pytest.approx(0.3)
    assert pd.isna(probe["test_mean_class_std"])
    assert (probe["config_hash"], probe["git_commit"]) == (PROBE.hash, "c" * 12)


def test_a_result_from_other_data_is_refused(tmp_path: Path) -> None:
    table = _table(tmp_path)
    with pytest.raises(ValueError, match="other data"):
        table.fill([_result(PROBE, 0.5, data_hash="e" * 64)])


def test_a_missing_cell_is_shown_as_missing_and_complained_about(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.fill(_all(table)[:3])
    assert table.frame()["val_top1_mean"].isna().tolist() == [False, True]
    with pytest.raises(RunError, match=r"1 trainings failed.*out of memory"):
        table.complain_about(["out of memory"])


def test_the_same_table_is_published_twice_under_one_run_without_double_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = []
    for _ in range(2):
        table = _table(tmp_path)
        table.fill(_all(table))
        tracked = table.track(tmp_path)
        with tracked.ended():
            publish(table, tracked)
        runs.append(tracked.run_id)
    assert runs[0] == runs[1]
    run = tracked.client.get_run(runs[0])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_top1/STOP"] == pytest.approx(0.8)
    stored = tracked.client.download_artifacts(runs[0], "table.json", str(tmp_path))
    assert len(json.loads(Path(stored).read_text())["data"]) == 2
    assert "80.0 ± 10.0" in capsys.readouterr().out
    assert "80.0 ± 10.0" in (table.folder / "table.md").read_text()
    assert len(pd.read_csv(table.folder / "table.csv")) == 2


def test_tables_of_other_settings_do_not_share_a_folder(tmp_path: Path) -> None:
    from stop_core.cache import Manifest

    manifest = Manifest.__new__(Manifest)
    object.__setattr__(manifest, "data_hash", "d" * 64)
    config = type("Config", (), {"dataset": "motion", "fold": 1, "task": "recognition"})()
    object.__setattr__(manifest, "config", config)
    other = replace(STOP, stop=StopConfig(alpha=0.1))
    first, second = (
        ComparisonTable.planned(manifest, {"row": [one]}, tmp_path) for one in (STOP, other)
    )
    assert first.folder != second.folder
