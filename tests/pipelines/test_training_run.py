"""A training that fails and then succeeds has one MLflow run, which tells of both."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import training_run
from pipelines.failures import FAILURE
from pipelines.resources import Resources
from pipelines.training_run import TrainingRun
from stop_core.config import StopConfig
from stop_core.experiment import ExperimentConfig


def test_a_training_that_succeeds_at_last_is_no_failure_and_tells_of_the_attempt(
    captioned_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(*arguments: object) -> Path:
        raise KeyboardInterrupt

    stop = StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4)
    training = TrainingRun(ExperimentConfig(stop=stop, epochs=1), captioned_cache, tmp_path)
    monkeypatch.setattr(training_run, "train_alone", broken_off)
    with pytest.raises(KeyboardInterrupt):
        training.train(Resources(), here=True)
    client = MlflowClient(training.tracked.uri)
    assert FAILURE in client.get_run(training.tracked.run_id).data.tags
    monkeypatch.undo()
    result = training.train(Resources(), here=True)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert FAILURE not in run.data.tags
    (attempt,) = client.list_artifacts(result.run_id, "failures")
    kept = client.download_artifacts(result.run_id, attempt.path, str(tmp_path))
    assert "KeyboardInterrupt" in Path(kept).read_text()
