"""A sweep tries what its space says, never sees the test split, and is not run twice."""

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pipelines.command_line import parse
from pipelines.sweep import SweepConfig, main
from pipelines.sweep_search import Search
from pipelines.tracking import tracking_uri
from pipelines.train import TrainConfig
from pipelines.training_run import Resources
from stop_core.cache import CacheConfig, Manifest
from stop_core.cache.files import FORMAT_VERSION, write_json
from stop_core.datasets import Task
from sweeps.reading import Distribution, SearchSpace

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


@pytest.mark.parametrize(
    ("task", "objective", "fitting"),
    [("retrieval", "val/top1", "val/t2v_r1"), ("recognition", "val/t2v_r1", "val/top1")],
)
def test_an_objective_of_the_other_task_is_refused_before_anything_starts(
    task: Task, objective: str, fitting: str, tmp_path: Path
) -> None:
    config = CacheConfig("d", 1, 6, 32, None, (), ("train",), (), "0", task)
    manifest = Manifest(FORMAT_VERSION, config, "", {"train": 1}, 0, "", ())
    write_json(tmp_path / "manifest.json", manifest.to_dict())
    space = SearchSpace(1, objective, {}, {"n_s": Distribution("choice", (1, 2))})
    search = Search(space, "mine", 1, 0, tmp_path, tmp_path / "out", Resources())
    with pytest.raises(ValueError, match=f"space mine: .* is for {task}; use one of {fitting}"):
        search.run()
    assert not (tmp_path / "out").exists()
