"""Laws of a training: stored, tracked, refused early, and the same on any number of workers."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.data import get_source
from safetensors.numpy import load_file

from pipelines.cli.console import Paused, RunError, printing_json
from pipelines.cluster.devices import choose_devices
from pipelines.cluster.resources import Resources
from pipelines.tracking.direct_run import download_model
from pipelines.tracking.environment import command_line
from pipelines.tracking.store import tracking_uri
from pipelines.train import TrainConfig, main
from pipelines.training.progress_file import ProgressFile
from pipelines.training.result import TrainingResult
from pipelines.training.run import TrainingRun
from pipelines.training.task import PREDICTIONS, StartFrom, find_checkpoint
from stop_core import StopConfig
from stop_core.cache import FrameCache
from stop_core.settings.experiment import ExperimentConfig
from stop_core.trained_model.files import PROMPTS
from stop_core.trained_model.model import TrainedModel
from stop_core.training.run_state import LAST_PROMPTS
from tests.json_documents import documented
from tests.pipelines.ray_nodes import train_worker
from tests.tools import files_below, is_loopback, listening, steps_saved


def _curve(output: Path, result: TrainingResult, name: str) -> list[float]:
    history = MlflowClient(tracking_uri(output)).get_metric_history(result.run_id, name)
    return [point.value for point in history]


@pytest.fixture(scope="module")
def finished(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, TrainingResult]:
    output = tmp_path_factory.mktemp("output")
    config = TrainConfig(cache=small_cache, output=output, experiment=small_experiment)
    return config, main(config)


@pytest.mark.slow
def test_the_result_follows_from_its_predictions(
    finished: tuple[TrainConfig, TrainingResult],
) -> None:
    _, result = finished
    rows = pd.read_parquet(Path(result.folder) / PREDICTIONS)
    for split, count in (("val", 0), ("test", 16)):
        own = rows[rows["split"] == split]
        assert len(own) == own["video_id"].nunique() >= count
        top1 = (own["label"] == own["predicted"]).mean()
        assert result.metrics[f"{split}/top1"] == pytest.approx(top1)
        assert result.metrics[f"{split}/top5"] == pytest.approx((own["rank"] <= 5).mean())
    assert 0 < result.costs["step_seconds"] < result.costs["memory_megabytes"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_the_stored_weights_of_full_fine_tuning_give_the_reported_predictions(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path
) -> None:
    settings = {"method": "clip4clip", "epochs": 1, "learning_rate": 1e-3, "context_tokens": 2}
    experiment = replace(small_experiment, **settings, templates=("ensemble",))
    training = TrainingRun(experiment, small_cache, tmp_path)
    result = training.train(Resources(), in_process=True)
    model = TrainedModel.load(result.folder)
    clips = FrameCache(small_cache).split("test")
    best, predicted = model.class_probabilities(clips.read(range(len(clips)))).max(-1)
    rows = pd.read_parquet(Path(result.folder) / PREDICTIONS).query("split == 'test'")
    assert predicted.tolist() == rows["predicted"].tolist()
    assert best.tolist() == pytest.approx(rows["probability"].tolist())
    assert model.labels == training.manifest.class_names
    assert model.provenance.metrics == result.metrics


@pytest.mark.slow
def test_a_finished_training_is_remembered_and_not_run_again(
    finished: tuple[TrainConfig, TrainingResult], capsys: pytest.CaptureFixture[str]
) -> None:
    config, result = finished
    written = Path(result.folder).stat().st_mtime_ns
    with printing_json():
        again = main(config)
    document = documented("train", capsys)
    assert document["metrics"] == result.metrics
    assert document["model"] == str(result.model)
    assert document["reused"]
    assert again == replace(result, reused=True)
    assert Path(result.folder).stat().st_mtime_ns == written


@pytest.mark.slow
def test_mlflow_has_settings_curves_hashes_and_files(
    finished: tuple[TrainConfig, TrainingResult], tmp_path: Path
) -> None:
    config, result = finished
    client = MlflowClient(tracking_uri(config.output))
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    settled = choose_devices(config.resources).settle(config.experiment)
    experiment = settled.for_dataset(result.dataset)
    for name, value in experiment.parameters().items():
        assert run.data.params[name] == str(value)
    assert run.data.tags["config_hash"] == experiment.hash
    assert run.data.tags["data_hash"] == result.data_hash
    assert run.data.metrics["test/top1"] == pytest.approx(result.metrics["test/top1"])
    curve = client.get_metric_history(result.run_id, "val/top1")
    assert len({point.step for point in curve}) == len(curve) == config.experiment.epochs
    files = {file.path for file in client.list_artifacts(result.run_id)}
    assert {PREDICTIONS, "environment.json"} <= files
    assert run.data.tags["mlflow.source.name"] == command_line()
    (data,) = run.inputs.dataset_inputs
    assert get_source(data).to_dict() == {"uri": str(Path(str(config.cache)).resolve())}
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.status == "READY"
    assert logged.params == run.data.params
    assert {one.key: one.value for one in logged.metrics}.items() >= {
        name: result.metrics[name] for name in result.metrics if name.startswith("test/")
    }.items()
    assert {one.dataset_digest for one in logged.metrics} == {result.data_hash[:12]}
    assert len(_curve(config.output, result, "test/top1")) == 1
    download_model(tracking_uri(config.output), result.run_id, "model", tmp_path)
    assert files_below(tmp_path / "model") == files_below(result.model)


class _Watcher(threading.Thread):
    """Collects where the processes of Ray listen, and kills a training worker after two steps."""

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self.progress = ProgressFile(run / "progress.json")
        self.listeners: dict[str, str] = {}
        self.has_killed = False
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1.0):
            self.listeners |= listening()
            progress = self.progress.read()
            if not self.has_killed and progress and progress.step >= 2:
                worker = train_worker(psutil.Process())
                assert worker is not None
                worker.kill()
                self.has_killed = True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_train_like_one_despite_a_kill(
    finished: tuple[TrainConfig, TrainingResult], small_cache: Path, tmp_path: Path, local_ray: None
) -> None:
    config, one = finished
    resources = Resources(workers=2, checkpoint_every_steps=1)
    config = replace(config, output=tmp_path, resources=resources)
    watcher = _Watcher(TrainingRun(config.experiment, small_cache, tmp_path).folder)
    watcher.start()
    two = main(config)
    watcher.ended.set()
    watcher.join()
    assert watcher.has_killed
    assert sum("Train" in name for name in watcher.listeners.values()) >= 2, watcher.listeners
    assert all(map(is_loopback, watcher.listeners)), watcher.listeners
    # The weights can differ: Adam turns the rounding of a tiny gradient into a direction. The norm
    # before clipping would reveal a gradient that is summed where it should be averaged.
    for curve in ("train/loss", "train/gradient_norm", "train/learning_rate"):
        ours, theirs = _curve(tmp_path, two, curve), _curve(finished[0].output, one, curve)
        assert len(ours) == len(theirs) == config.experiment.epochs
        assert ours == pytest.approx(theirs, rel=1e-2), curve


@pytest.mark.slow
def test_sigterm_saves_a_training_and_the_same_command_finishes_it(
    finished: tuple[TrainConfig, TrainingResult], tmp_path: Path
) -> None:
    config = replace(finished[0], output=tmp_path, resources=Resources(checkpoint_every_steps=1))
    before = signal.getsignal(signal.SIGTERM)

    def terminate() -> None:
        while steps_saved(tmp_path) < 1:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(Paused, match=r"saved after step \d+; run the same command") as end:
        main(config)
    thread.join()
    assert end.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert main(config).metrics == finished[1].metrics


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_given_checkpoint_is_resumed_or_forked_only_by_the_same_model(
    finished: tuple[TrainConfig, TrainingResult], tmp_path: Path
) -> None:
    config, result = finished
    there = Path(result.folder)
    elsewhere = replace(config, output=tmp_path, resume_from=there)
    # That training is finished: nothing is left to train, and the result is the same.
    assert main(elsewhere).metrics == result.metrics
    other = replace(config.experiment, learning_rate=1e-3, epochs=1)
    changed = replace(config, output=tmp_path, resume_from=there, experiment=other)
    with pytest.raises(ValueError, match=r"epochs is 2 there and 1 here; learning_rate is 0.002"):
        main(changed)
    with pytest.raises(FileNotFoundError, match="no checkpoint or run gone"):
        main(replace(changed, resume_from=Path("gone"), fork=True))
    trained = load_file(result.model / PROMPTS)
    start = StartFrom(find_checkpoint(there, tmp_path), fork=True)
    run = TrainingRun(replace(other, learning_rate=1e-9), config.cache, tmp_path, start=start)
    forked = run.train(Resources(), in_process=True)
    assert forked.run_id != result.run_id
    assert "-fork" in forked.name
    last = load_file(start.checkpoint / LAST_PROMPTS)
    for name, values in load_file(forked.model / PROMPTS).items():
        assert values == pytest.approx(last[name], abs=1e-6)
    assert trained.keys() == last.keys()


@pytest.mark.slow
def test_a_failed_training_reports_its_reason_in_one_sentence_and_in_mlflow(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path
) -> None:
    config = replace(small_experiment, learning_rate=1e30, clip_norm=1e30)
    training = TrainingRun(config, small_cache, tmp_path)
    with pytest.raises(RunError, match=r"the loss is .* lower --learning-rate") as caught:
        training.train(Resources(), in_process=True)
    assert "Traceback" not in str(caught.value)
    run_id = (training.folder / "mlflow_run_id").read_text()
    run = MlflowClient(tracking_uri(tmp_path)).get_run(run_id)
    assert run.info.status == "FAILED"
    assert "lower --learning-rate" in run.data.tags["failure"]


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (ExperimentConfig(tower="ViT-B-32", pretrained="random"), "--size 224"),
        (ExperimentConfig(stop=StopConfig(depth=5)), "only 4 blocks"),
        (ExperimentConfig(tower="ViT-B-33"), "ViT-B-32"),
    ],
)
def test_an_experiment_that_does_not_fit_its_cache_is_refused_before_it_starts(
    small_cache: Path, tmp_path: Path, experiment: ExperimentConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingRun(experiment, small_cache, tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_data_another_seed_or_setting_is_another_training(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path
) -> None:
    names = {
        TrainingRun(config, small_cache, tmp_path, test=test).name
        for test in (True, False)
        for config in (
            small_experiment,
            replace(small_experiment, seed=1),
            replace(small_experiment, learning_rate=1e-3),
        )
    }
    assert len(names) == 6


def test_a_missing_cache_is_reported_with_the_command_that_makes_it(tmp_path: Path) -> None:
    config = TrainConfig(cache=str(tmp_path / "none"), output=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no frame cache at .*none: .*stop preprocess"):
        main(config)
