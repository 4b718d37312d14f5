"""A sweep follows its space, never reads the test split, and repeats no trial."""

import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from pipelines.cli.console import printing_json
from pipelines.cli.options import parse
from pipelines.cluster.resources import Resources
from pipelines.sweep import SweepConfig, main
from pipelines.tracking.store import tracking_uri
from pipelines.train import TrainConfig
from tests.json_documents import documented

SPACE = """
algorithm: tpe
trials: 2
startup_trials: 1
scheduler: asha
objective: val/top1
fixed: {method: vpt-deep, tower: tiny, epochs: 2, batch_size: 32, n_s: 2, max_prompts: 2}
search:
  alpha: {uniform: [0.25, 0.75]}
  eta: {choice: [1.0, 2.0]}
  spatial_width: {choice: [4]}
  learning_rate: {loguniform: [1.0e-5, 0.01]}
points_to_evaluate:
  - {alpha: 0.5, eta: 2.0, learning_rate: 0.01}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("trained_here")  # the confirmation
def test_sweep_uses_only_validation_data_and_repeats_no_trial(
    small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    # One at a time: each process imports torch and Ray for seconds.
    config = SweepConfig(space=space, cache=str(small_cache), output=tmp_path, max_concurrent=1)
    result = main(config)
    assert result is not None

    frame = result.trials
    assert sorted(frame["trial"]) == ["trial-0000", "trial-0001"]
    assert set(frame["state"]) <= {"finished", "stopped early"}
    first = frame[frame["trial"] == "trial-0000"].iloc[0]
    assert (first["alpha"], first["eta"], first["learning_rate"]) == (0.5, 2.0, 0.01)
    assert frame["alpha"].between(0.25, 0.75).all()
    client = MlflowClient(tracking_uri(tmp_path))
    runs = client.search_runs(["1"])
    trials = {r.data.tags["trial"]: r for r in runs if r.data.tags.get("kind") == "training"}
    sweep = next(run for run in runs if run.data.tags.get("kind") == "sweep")
    assert len(runs) == 1 + len(trials) == 1 + len(frame)
    for row in frame.to_dict("records"):
        run = trials[row["trial"]]
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert run.data.tags["state"] == row["state"]
        assert run.info.run_id == row["mlflow_run_id"]
        assert run.data.params["alpha"] == str(row["alpha"])
        assert run.info.status == ("FINISHED" if row["state"] == "finished" else "KILLED")
    assert not [n for run in trials.values() for n in run.data.metrics if n.startswith("test/")]

    best = parse(TrainConfig, ["--config", str(result.best_file)]).experiment
    winner = frame.iloc[0]
    assert (best.stop.alpha, best.stop.eta) == (winner["alpha"], winner["eta"])
    assert yaml.safe_load(result.best_file.read_text())["epochs"] == 2
    stored = {file.path for file in client.list_artifacts(sweep.info.run_id)}
    assert {"report.md", "trials.csv", "trials.json", "best.yaml", "figures"} <= stored
    report = (result.best_file.parent / "report.md").read_text()
    assert f"**val/top1 {winner['val/top1']:.4f}** ({winner['trial']})" in report
    assert "few for 3 settings" in report or "Too few trials" in report

    again = main(replace(config, confirm=1))
    capsys.readouterr()
    assert again is not None
    assert again.trials.equals(frame)
    rows = pd.read_csv(result.best_file.parent / "confirmation.csv")
    assert rows["seed"].tolist() == [1]
    assert rows["test/top1"].between(0, 1).all()
    assert set(rows["trial"]) == {winner["trial"]}
    with printing_json():
        last = main(config)
    assert last is not None
    document = documented("sweep", capsys)
    assert [row["trial"] for row in document["trials"]] == frame["trial"].tolist()
    assert document["best"]["file"] == str(result.best_file)
    assert document["confirmed"][0]["seed"] == 1
    assert last.trials.equals(frame)
    assert len(client.search_runs(["1"])) == len(runs) + 1, "of the confirmation"
    assert "## Confirmation" in (result.best_file.parent / "report.md").read_text()
    stored = {file.path for file in client.list_artifacts(sweep.info.run_id)}
    assert "confirmation.csv" in stored


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--workers 2 --gpus-per-worker 1.0 --compile on --max-concurrent 3 --seed 4",
        "--cache 's3://some bucket/cache' --trials-per-gpu 3 --output 'out of here' --restarts 0",
    ],
)
def test_reported_command_gives_the_same_options(words: str) -> None:
    config = parse(SweepConfig, shlex.split(words))
    asked = replace(config, trials=7, confirm=2, retry_failed=True)
    assert parse(SweepConfig, shlex.split(asked.command())[2:]) == config


@pytest.mark.parametrize("algorithm", ["grid", "one-at-a-time"])
def test_trials_option_is_refused_if_every_point_is_tried(algorithm: str, tmp_path: Path) -> None:
    around = "around: {n_s: 1}\n" if algorithm == "one-at-a-time" else ""
    space = tmp_path / "space.yaml"
    space.write_text(f"algorithm: {algorithm}\n{around}search: {{n_s: {{grid: [1, 2]}}}}\n")
    SweepConfig(space=space).checked_space()
    with pytest.raises(ValueError, match=f"trials is 3, but .* by {algorithm}.*leave --trials out"):
        main(SweepConfig(space=space, trials=3, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_trials_that_share_a_gpu_reserve_their_share(tmp_path: Path) -> None:
    config = parse(SweepConfig, ["--trials-per-gpu", "4", "--cache", "c"])
    assert config.shared_resources().gpus_per_worker == 0.25
    with pytest.raises(ValueError, match="not both"):
        SweepConfig(trials_per_gpu=2, resources=Resources(gpus_per_worker=1))
