"""A sweep follows its space, never reads the test split, and repeats no trial."""

import shlex
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from ray import tune
from ray.tune.search import Searcher

from pipelines.cli.options import parse
from pipelines.cluster.resources import Resources
from pipelines.sweep import SweepConfig, main
from pipelines.sweeping.search import Search
from pipelines.sweeping.space import Distribution, SearchSpace
from pipelines.sweeping.trials import Trials
from pipelines.tracking.store import tracking_uri
from pipelines.train import TrainConfig
from stop_core.cache import CacheConfig, Manifest
from stop_core.cache.files import CACHE_FORMAT, write_checked_json
from stop_core.cache.manifest import ShardEntry
from stop_core.datasets import Task

SPACE = """
algorithm: tpe
trials: 3
startup_trials: 1
scheduler: asha
objective: val/top1
fixed: {method: stop, tower: tiny, epochs: 2, batch_size: 32, n_s: 2, max_prompts: 2}
search:
  alpha: {uniform: [0.25, 0.75]}
  eta: {choice: [1.0, 2.0]}
  spatial_width: {choice: [4]}
  learning_rate: {loguniform: [1.0e-5, 0.01]}
points_to_evaluate:
  - {alpha: 0.5, eta: 2.0, learning_rate: 0.01}
"""


def _write_manifest(
    cache: Path, task: Task = "recognition", splits: tuple[str, ...] = ("train",)
) -> None:
    """Writes the only file of a cache that is read before anything starts."""
    config = CacheConfig("d", 1, 6, 32, None, (), splits, (), "0" * 64, task)
    shards = tuple(ShardEntry(f"{split}-00000", split, 1, 1, "0" * 64) for split in splits)
    manifest = Manifest(CACHE_FORMAT, config, "", dict.fromkeys(splits, 1), 0, "0" * 64, shards)
    manifest = replace(manifest, data_hash=manifest.hash())
    write_checked_json(cache / "manifest.json", manifest.to_dict())


@pytest.mark.slow
def test_sweep_uses_only_validation_data_and_repeats_no_trial(
    small_cache: Path, tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    # One at a time: each process imports torch and Ray for seconds.
    config = SweepConfig(space=space, cache=str(small_cache), output=tmp_path, max_concurrent=1)
    result = main(config)
    assert result is not None

    frame = result.trials
    assert sorted(frame["trial"]) == ["trial-0000", "trial-0001", "trial-0002"]
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
    assert again is not None
    assert again.trials.equals(frame)
    rows = pd.read_csv(result.best_file.parent / "confirmation.csv")
    assert rows["seed"].tolist() == [1]
    assert rows["test/top1"].between(0, 1).all()
    assert set(rows["trial"]) == {winner["trial"]}
    last = main(config)
    assert last is not None
    assert last.trials.equals(frame)
    assert len(client.search_runs(["1"])) == len(runs) + 1, "of the confirmation"
    assert "## Confirmation" in (result.best_file.parent / "report.md").read_text()
    stored = {file.path for file in client.list_artifacts(sweep.info.run_id)}
    assert "confirmation.csv" in stored


@pytest.mark.parametrize(
    ("task", "objective", "fitting"),
    [("retrieval", "val/top1", "val/t2v_r1"), ("recognition", "val/t2v_r1", "val/top1")],
)
def test_objective_of_the_other_task_is_refused_before_anything_starts(
    task: Task, objective: str, fitting: str, tmp_path: Path
) -> None:
    _write_manifest(tmp_path, task)
    space = SearchSpace((objective,), {}, {"n_s": Distribution((1, 2))})
    search = Search(space, "mine", 1, 0, tmp_path, tmp_path / "out", Resources())
    with (
        pytest.raises(ValueError, match=f"space mine: .* is for {task}; use one of {fitting}"),
        search.opened(),
    ):
        pass
    assert not (tmp_path / "out").exists()


def test_more_trials_extend_a_sweep_and_other_settings_make_another(tmp_path: Path) -> None:
    _write_manifest(tmp_path)
    space = SearchSpace(("val/top1",), {}, {"n_s": Distribution((1, 2))}, trials=4)
    search = Search(space, "mine", None, 0, tmp_path, tmp_path / "out", Resources())
    assert replace(search, trials=9, max_concurrent=1).name == search.name
    assert replace(search, space=replace(space, trials=5)).name == search.name
    assert replace(search, seed=1).name != search.name
    assert replace(search, space=replace(space, algorithm="tpe")).name != search.name


@pytest.mark.parametrize("searched", [False, True])
def test_replaced_weights_make_another_sweep(tmp_path: Path, searched: bool) -> None:
    _write_manifest(tmp_path)
    weights, other = tmp_path / "weights.pt", tmp_path / "other.pt"
    other.write_bytes(b"others")
    fixed = {"tower": "ViT-B-32", "pretrained": str(weights)}
    search = {"n_s": Distribution((1, 2))}
    if searched:
        search["pretrained"] = Distribution((str(other), fixed.pop("pretrained")))
    space = SearchSpace(("val/top1",), fixed, search)
    names = []
    for content in (b"first", b"second", b"first"):
        weights.write_bytes(content)
        one = Search(space, "mine", None, 0, tmp_path, tmp_path / "out", Resources())
        names.append(one.name)
    assert names[0] == names[2] != names[1]


def test_started_trials_resume_even_if_fewer_are_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_manifest(tmp_path)
    space = SearchSpace(("val/top1",), {}, {"n_s": Distribution(low=1, high=99, is_whole=True)})
    search = Search(space, "mine", 5, 0, tmp_path, tmp_path / "out", Resources())
    trials = Trials(search.folder)
    begun = [trials.add({"n_s": number}, 0, f"run-{number}").name for number in range(1, 21)]
    driver = search.driver(trials, "")
    monkeypatch.setattr(Search, "at_once", lambda self: 1)
    monkeypatch.setattr(tune, "Tuner", lambda trainable, **options: options)
    samples = search._tuner(driver)["tune_config"].num_samples  # type: ignore[index]
    suggested = [driver.suggest(str(number)) for number in range(21)]
    assert [one["name"] for one in suggested[:20]] == begun  # type: ignore[index]
    assert suggested[20] == Searcher.FINISHED
    assert samples > 20, "Tune asks for no more than these"
    assert search._line(driver).startswith("0 of 20 trials ended")


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--workers 2 --gpus-per-worker 1.0 --compile True --max-concurrent 3 --seed 4",
        "--cache 's3://some bucket/cache' --trials-per-gpu 3 --output 'out of here' --restarts 0",
    ],
)
def test_reported_command_gives_the_same_options(words: str) -> None:
    config = parse(SweepConfig, shlex.split(words))
    asked = replace(config, trials=7, confirm=2, retry_failed=True)
    assert parse(SweepConfig, shlex.split(asked.command())[2:]) == config


@pytest.mark.parametrize(("frames", "fits"), [((3, 4), True), ((7, 8), False)])
def test_setting_is_checked_with_the_one_that_it_depends_on(
    frames: tuple[int, ...], fits: bool, tmp_path: Path
) -> None:
    _write_manifest(tmp_path, splits=("train", "val"))
    searched = {"frames": Distribution(frames), "segment_jitter": Distribution((False, True))}
    space = SearchSpace(("val/top1",), {}, searched)
    search = Search(space, "mine", 1, 0, tmp_path, tmp_path / "out", Resources())
    with nullcontext() if fits else pytest.raises(ValueError, match="7 frames of a clip"):
        search.check()


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
