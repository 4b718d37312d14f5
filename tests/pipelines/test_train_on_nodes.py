"""A training on a Ray cluster survives SIGKILL of its processes."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors.numpy import load_file

from pipelines.cluster.resources import Resources
from pipelines.tracking.store import tracking_uri
from pipelines.training.run import TrainingRun
from stop_core.settings.experiment import ExperimentConfig
from stop_core.trained_model.files import PROMPTS
from tests.pipelines.ray_nodes import ray_nodes
from tests.tools import curves, kill_tree, options_of, steps_saved

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("no_figures")
def test_killing_a_node_and_the_driver_changes_neither_bits_nor_records(
    small_cache: Path, small_experiment: ExperimentConfig, tmp_path: Path
) -> None:
    config = replace(small_experiment, epochs=3)
    run = TrainingRun(config, small_cache, tmp_path / "unbroken")
    unbroken = run.train(Resources(), in_process=True)

    output = tmp_path / "killed"
    command = [sys.executable, "pipelines/train.py", "--cache", str(small_cache)]
    command += ["--output", str(output), "--checkpoint-every-steps", "1", *options_of(config)]
    with ray_nodes(tmp_path) as stage:
        options = {"cwd": ROOT, "env": stage.environment, "start_new_session": True}
        with subprocess.Popen(command, **options) as driver:
            _wait_until(lambda: steps_saved(output) >= 2, driver)
            stage.kill("node0")
            stage.start("node0")  # Ray Train restarts the worker there
            _wait_until(lambda: steps_saved(output) >= 4, driver)
            kill_tree(driver)
        assert not list(output.glob("runs/*/result.json"))
        subprocess.run(command, check=True, **options)

    resumed = TrainingRun(config, small_cache, output).remembered()
    assert resumed is not None
    assert resumed.metrics == unbroken.metrics
    ours, theirs = load_file(resumed.model / PROMPTS), load_file(unbroken.model / PROMPTS)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    runs = MlflowClient(tracking_uri(output)).search_runs(["1"])
    assert [run.info.run_id for run in runs] == [resumed.run_id]
    records = curves(tracking_uri(output), resumed.run_id)
    assert records == curves(tracking_uri(tmp_path / "unbroken"), unbroken.run_id)
    assert len(records["train/loss"]) == len(records["val/top1"]) == config.epochs


def _wait_until(holds: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while not holds():
        assert driver.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
