"""A table with its output in a bucket has the rows of one on a disk, and repeats no training."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipelines.benchmark import BenchmarkConfig, main
from pipelines.cluster.resources import Resources
from pipelines.inference.evaluation import Evaluation
from pipelines.tables.table import TABLE_COSTS
from pipelines.training.pool import Job
from pipelines.training.result import TrainingResult
from stop_core.settings.experiment import ExperimentConfig
from stop_core.storage.paths import RemotePath, StoragePath, local_file
from tests.pipelines.conftest import NewStore


@pytest.fixture
def _runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains and evaluates in this process, without Ray."""

    def train(jobs: list[Job], resources: Resources, parent: str) -> list[TrainingResult]:
        return [one.training.train(resources, parent, one.label, in_process=True) for one in jobs]

    def evaluate(some: list[Evaluation], resources: Resources) -> list[TrainingResult]:
        return [one.run(resources) for one in some]

    monkeypatch.setattr("pipelines.benchmark.start_ray", lambda *folders, records: None)
    monkeypatch.setattr("pipelines.inference.evaluation.start_ray", lambda *folders, records: None)
    monkeypatch.setattr("pipelines.training.pool.run_all", train)
    monkeypatch.setattr("pipelines.inference.evaluation.evaluate_all", evaluate)


@pytest.mark.slow
@pytest.mark.usefixtures("_runs_here", "no_figures")
def test_a_table_in_a_bucket_has_the_rows_of_one_on_a_disk(
    small_cache: Path,
    small_experiment: ExperimentConfig,
    bucket: RemotePath,
    new_store: NewStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "tracking" / "mlflow.db"))
    stop = {k: v for k, v in small_experiment.parameters().items() if k != "seed"}
    stop |= {"epochs": 1, "frames": 3}
    rows = {"zero-shot CLIP": {**stop, "method": "zero-shot"}, "STOP": stop}
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"rows": rows}, sort_keys=False))

    def table(output: StoragePath) -> pd.DataFrame:
        config = BenchmarkConfig(
            table=tmp_path / "rows.yaml",
            cache=str(small_cache),
            output=output,
            seeds=1,
            views="2x1",
        )
        made = main(config)
        with local_file(made.folder / "table.csv") as here:
            return pd.read_csv(here).drop(columns=list(TABLE_COSTS))

    on_store = table(bucket)
    assert "2 of them to run" in capsys.readouterr().err
    pd.testing.assert_frame_equal(on_store, table(tmp_path / "outputs"))
    pd.testing.assert_frame_equal(on_store, table(bucket))
    assert "0 of them to run" in capsys.readouterr().err
    assert not list((bucket / "evaluations").glob("*/parts/*"))
