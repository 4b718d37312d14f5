"""Laws of a training: remembered, the same after a kill, the same however many share it."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file

from pipelines.cli.errors import RunError
from pipelines.cluster.resources import Resources
from pipelines.tracking.store import tracking_uri
from pipelines.train import TrainConfig, main
from pipelines.training.result import TrainingResult
from pipelines.training.run import TrainingRun
from pipelines.training.start_from import StartFrom, find_checkpoint
from pipelines.training.task import FATAL, PREDICTIONS
from stop_core import StopConfig
from stop_core.cache import FrameCache
from stop_core.settings.experiment import ExperimentConfig
from stop_core.trained_model.model import TrainedModel
from stop_core.training.run_state import LAST_PROMPTS
from tests.pipelines.ray_nodes import ray_nodes
from tests.tools import (
    curves,
    files_below,
    is_loopback,
    kill_tree,
    listening,
    options_of,
    steps_saved,
)

ROOT = Path(__file__).resolve().parents[2]


def _curve(output: Path, result: TrainingResult, name: str) -> list[float]:
    history = MlflowClient(tracking_uri(output)).get_metric_history(result.run_id, name)
    return [point.value for point in history]


def _prompts(result: TrainingResult) -> dict[str, np.ndarray]:
    return load_file(result.prompts)


@pytest.fixture(scope="module")
def finished(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, TrainingResult]:
    output = tmp_path_factory.mktemp("output")
    config = TrainConfig(cache=small_cache, output=output, experiment=small_experiment)
    return config, main(config)


@pytest.mark.slow
def test_the_result_is_what_its_predictions_say(
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
def test_the_kept_weights_of_full_fine_tuning_predict_what_was_reported(
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
    finished: tuple[TrainConfig, TrainingResult],
) -> None:
    config, result = finished
    written = Path(result.folder).stat().st_mtime_ns
    again = main(config)
    assert again == replace(result, reused=True)
    assert Path(result.folder).stat().st_mtime_ns == written


@pytest.mark.slow
def test_mlflow_knows_settings_curves_hashes_and_files(
    finished: tuple[TrainConfig, TrainingResult], tmp_path: Path
) -> None:
    config, result = finished
    client = MlflowClient(tracking_uri(config.output))
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    experiment = config.experiment.for_dataset(result.dataset)
    for name, value in experiment.parameters().items():
        assert run.data.params[name] == str(value)
    assert run.data.tags["config_hash"] == experiment.hash
    assert run.data.tags["data_hash"] == result.data_hash
    assert run.data.metrics["test/top1"] == pytest.approx(result.metrics["test/top1"])
    curve = client.get_metric_history(result.run_id, "val/top1")
    assert len({point.step for point in curve}) == len(curve) == config.experiment.epochs
    files = {file.path for file in client.list_artifacts(result.run_id)}
    assert {"model", PREDICTIONS, "environment.json"} <= files
    copy = client.download_artifacts(result.run_id, "model", str(tmp_path))
    assert files_below(Path(copy)) == files_below(result.model)


@contextmanager
def _noted_listeners() -> Iterator[dict[str, str]]:
    """Collects where the processes of Ray listen meanwhile, and their names."""
    found: dict[str, str] = {}
    ended = threading.Event()

    def note() -> None:
        while not ended.wait(0.1):
            found.update(listening())

    thread = threading.Thread(target=note)
    thread.start()
    yield found
    ended.set()
    thread.join()


@pytest.mark.slow
def test_two_workers_train_what_one_trains(
    finished: tuple[TrainConfig, TrainingResult], tmp_path: Path
) -> None:
    config, alone = finished
    with _noted_listeners() as listeners:
        shared = main(replace(config, output=tmp_path, resources=Resources(workers=2)))
    assert sum("Train" in name for name in listeners.values()) >= 2, listeners
    assert all(map(is_loopback, listeners)), listeners
    # The weights themselves may differ: Adam takes the rounding of a tiny gradient for a direction.
    # The norm, before clipping, would show a gradient that is summed where it should be averaged.
    for curve in ("train/loss", "train/gradient_norm", "train/learning_rate"):
        ours, theirs = _curve(tmp_path, shared, curve), _curve(config.output, alone, curve)
        assert len(ours) == len(theirs) == config.experiment.epochs
        assert ours == pytest.approx(theirs, rel=1e-2), curve


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_killed_worker_raylet_and_driver_end_with_the_bits_and_records_of_an_unbroken_training(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path
) -> None:
    config = replace(small_experiment, epochs=4)
    unbroken = TrainingRun(config, small_cache, tmp_path / "unbroken").train(
        Resources(), in_process=True
    )

    output = tmp_path / "killed"
    command = [sys.executable, "pipelines/train.py", "--cache", str(small_cache)]
    command += ["--output", str(output), "--checkpoint-every-steps", "1", *options_of(config)]
    with ray_nodes(tmp_path) as stage:
        run = {"cwd": ROOT, "env": stage.environment, "start_new_session": True}
        with subprocess.Popen(command, **run) as driver:
            # Ray Train starts a worker again, on the same node or on the one that comes back.
            _wait_until(lambda: steps_saved(output) >= 2, driver)
            worker = stage.train_worker()
            assert worker is not None
            worker.kill()
            _wait_until(lambda: steps_saved(output) >= 4, driver)
            stage.kill("node0")
            stage.start("node0")
            _wait_until(lambda: steps_saved(output) >= 6, driver)
            kill_tree(driver)
        assert not list(output.glob("runs/*/result.json"))
        subprocess.run(command, check=True, **run)

    resumed = TrainingRun(config, small_cache, output).remembered()
    assert resumed is not None
    assert resumed.metrics == unbroken.metrics
    ours, theirs = _prompts(resumed), _prompts(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    runs = MlflowClient(tracking_uri(output)).search_runs(["1"])
    assert [run.info.run_id for run in runs] == [resumed.run_id]
    told = curves(tracking_uri(output), resumed.run_id)
    assert told == curves(tracking_uri(tmp_path / "unbroken"), unbroken.run_id)
    assert len(told["train/loss"]) == len(told["val/top1"]) == config.epochs


def _wait_until(holds: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not holds():
        assert driver.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_named_checkpoint_is_gone_on_with_or_forked_from_and_nothing_else(
    finished: tuple[TrainConfig, TrainingResult], tmp_path: Path
) -> None:
    config, result = finished
    there = Path(result.folder)
    elsewhere = replace(config, output=tmp_path, resume_from=there)
    # Finished there: nothing is left to train, and the result is the same.
    assert main(elsewhere).metrics == result.metrics
    other = replace(config.experiment, learning_rate=1e-3, epochs=1)
    changed = replace(config, output=tmp_path, resume_from=there, experiment=other)
    with pytest.raises(ValueError, match=r"epochs is 2 there and 1 here; learning_rate is 0.002"):
        main(changed)
    with pytest.raises(FileNotFoundError, match="no checkpoint or run gone"):
        main(replace(changed, resume_from=Path("gone"), fork=True))
    trained = _prompts(result)
    start = StartFrom(find_checkpoint(there, tmp_path), fork=True)
    run = TrainingRun(replace(other, learning_rate=1e-9), config.cache, tmp_path, start=start)
    forked = run.train(Resources(), in_process=True)
    assert forked.run_id != result.run_id
    assert "-fork" in forked.name
    last = load_file(start.checkpoint / LAST_PROMPTS)
    for name, values in _prompts(forked).items():
        assert values == pytest.approx(last[name], abs=1e-6)
    assert trained.keys() == last.keys()


@pytest.mark.slow
def test_a_training_that_fails_says_why_in_one_sentence_and_in_mlflow(
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


@pytest.mark.slow
def test_workers_give_up_on_changed_data_at_once_and_resume_when_it_is_repaired(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(small_cache, tmp_path / "cache"))
    shard = cache / "data" / "train-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    training = TrainingRun(replace(small_experiment, epochs=1), cache, tmp_path)
    workers = Resources(workers=2)
    with pytest.raises(RunError, match=f"{shard} is not as it was made: its SHA-256"):
        training.train(workers)
    assert training.remembered() is None
    assert (training.folder / FATAL).is_file()
    shard.write_bytes(whole)
    assert "test/top1" in training.train(workers).metrics


@pytest.mark.parametrize(
    ("experiment", "told"),
    [
        (ExperimentConfig(tower="ViT-B-32"), "--size 224"),
        (ExperimentConfig(stop=StopConfig(depth=5)), "only 4 blocks"),
        (ExperimentConfig(tower="ViT-B-33"), "ViT-B-32"),
    ],
)
def test_an_experiment_that_does_not_fit_its_cache_is_refused_before_it_starts(
    small_cache: Path, tmp_path: Path, experiment: ExperimentConfig, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
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


def test_a_missing_cache_is_one_sentence_with_the_command_that_makes_it(tmp_path: Path) -> None:
    command = [sys.executable, "pipelines/train.py", "--cache", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no frame cache at")
    assert "preprocess.py" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
