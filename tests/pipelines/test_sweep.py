"""A sweep tries what its space says, never sees the test split, and is not run twice."""

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pipelines.command_line import parse
from pipelines.sweep import SweepConfig, main
from pipelines.tracking import tracking_uri
from pipelines.train import TrainConfig

SPACE = """
trials: 1
objective: val/top1
fixed: {method: stop, tower: tiny, epochs: 1, batch_size: 32, n_s: 2, max_prompts: 2}
search:
  alpha: {uniform: [0.25, 0.75]}
  eta: {grid: [1.0, 2.0]}
  spatial_width: {choice: [4]}
"""


@pytest.mark.slow
def test_a_sweep_tries_its_space_on_validation_alone_and_remembers(
    small_cache: Path, tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    config = SweepConfig(space=space, cache=small_cache, output=tmp_path)
    result = main(config)

    assert sorted(result.trials["eta"]) == [1.0, 2.0]
    assert result.trials["alpha"].between(0.25, 0.75).all()
    assert not [name for name in result.trials if name.startswith("test/")]
    client = MlflowClient(tracking_uri(tmp_path))
    runs = client.search_runs(["1"])
    trials = [run for run in runs if run.data.tags.get("kind") == "training"]
    assert len(trials) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {
        run.info.run_id for run in runs if run.data.tags.get("kind") == "sweep"
    }
    assert not [name for run in trials for name in run.data.metrics if name.startswith("test/")]

    best = parse(TrainConfig, ["--config", str(result.best_file)]).experiment
    winner = result.trials.iloc[0]
    assert (best.stop.alpha, best.stop.eta) == (winner["alpha"], winner["eta"])
    assert yaml.safe_load(result.best_file.read_text())["epochs"] == 1

    again = main(config)
    assert again.trials.equals(result.trials)
    assert len(client.search_runs(["1"])) == len(runs)
