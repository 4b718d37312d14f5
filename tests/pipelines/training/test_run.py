"""One training has one MLflow run, with its failed attempts, and reports its progress."""

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.cluster.resources import Resources
from pipelines.training import run as run_module
from pipelines.training.failures import FAILURE_TAG
from pipelines.training.run import TrainingRun
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig

pytestmark = pytest.mark.usefixtures("no_figures")


def test_a_training_that_succeeds_after_a_failure_is_finished_and_keeps_the_traceback(
    captioned_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> Path:
        raise KeyboardInterrupt

    stop = StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4)
    training = TrainingRun(ExperimentConfig(stop=stop, epochs=1), captioned_cache, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_in_process", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train(Resources(), in_process=True)
    client = MlflowClient(training.tracked.uri)
    assert FAILURE_TAG in client.get_run(training.tracked.run_id).data.tags
    result = training.train(Resources(), in_process=True)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert FAILURE_TAG not in run.data.tags
    (attempt,) = client.list_artifacts(result.run_id, "failures")
    file = client.download_artifacts(result.run_id, attempt.path, str(tmp_path))
    assert "KeyboardInterrupt" in Path(file).read_text()


def test_a_training_reports_every_epoch_and_the_checkpoint_that_it_resumes(
    captioned_cache: Path, tmp_path: Path
) -> None:
    stop = StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4)
    training = TrainingRun(ExperimentConfig(stop=stop, epochs=2), captioned_cache, tmp_path)
    training.train(Resources(), in_process=True)
    progress = training.progress_file.read()
    assert progress is not None
    assert (progress.step, progress.total) == (2, 2)
    first, second = progress.events
    number = r"\d\.\d+"
    line = rf"epoch 1/2: loss {number}, val/t2v_r1 {number}, best {number} \(epoch 1\)"
    assert re.fullmatch(line, first)
    assert second.startswith("epoch 2/2: ")
    (training.folder / "result.json").unlink()
    training.train(Resources(), in_process=True)
    again = training.progress_file.read()
    assert again is not None
    (resumed,) = again.events  # all epochs were trained before
    assert resumed.startswith(f"resuming {training.name} after epoch 2 of 2, step 2: ")
    assert Path(resumed.partition("step 2: ")[2]).is_dir()
