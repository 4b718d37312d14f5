"""A search is named after its space, data and seed, and refuses a space that does not fit."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune
from ray.tune.search import Searcher

from pipelines.cluster.resources import Resources
from pipelines.sweeping.search import Search
from pipelines.sweeping.space import Distribution, SearchSpace
from pipelines.sweeping.trials import Trials
from stop_core.cache import CacheConfig, Manifest
from stop_core.cache.files import CACHE_FORMAT, write_checked_json
from stop_core.cache.manifest import ShardEntry
from stop_core.datasets import Task


def _write_manifest(
    cache: Path,
    task: Task = "recognition",
    splits: tuple[str, ...] = ("train",),
    names: tuple[str, ...] = (),
) -> None:
    """Writes the only file of a cache that is read before anything starts."""
    config = CacheConfig("d", 1, 6, 32, None, (), splits, names, "0" * 64, task, "center", "none")
    shards = tuple(ShardEntry(f"{split}-00000", split, 1, 1, "0" * 64) for split in splits)
    manifest = Manifest(CACHE_FORMAT, config, "", dict.fromkeys(splits, 1), 0, "0" * 64, shards)
    manifest = replace(manifest, data_hash=manifest.hash())
    write_checked_json(cache / "manifest.json", manifest.to_dict())


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


@pytest.mark.parametrize("objective", ["val/base_top1", "val/top1", "trainable_parameters"])
@pytest.mark.parametrize("classes", ["base", "all"])
def test_trials_are_compared_by_a_measure_of_their_classes(
    objective: str, classes: str, tmp_path: Path
) -> None:
    _write_manifest(tmp_path, splits=("train", "val"), names=("run", "walk"))
    space = SearchSpace((objective,), {"classes": classes}, {"n_s": Distribution((1, 2))})
    search = Search(space, "mine", 1, 0, tmp_path, tmp_path / "out", Resources())
    other = {"base": "val/top1", "all": "val/base_top1"}[classes]
    message = f"objective is {objective}, which trainings with classes {classes} do not measure"
    with pytest.raises(ValueError, match=message) if objective == other else nullcontext():
        search.check()


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
    samples = search._tuner(driver, str(tmp_path))["tune_config"].num_samples  # type: ignore[index]
    suggested = [driver.suggest(str(number)) for number in range(21)]
    assert [one["name"] for one in suggested[:20]] == begun  # type: ignore[index]
    assert suggested[20] == Searcher.FINISHED
    assert samples > 20, "Tune asks for no more than these"
    assert search._line(driver).startswith("0 of 20 trials ended")


def test_the_line_of_an_ended_trial_says_how_and_whether_it_is_the_best(tmp_path: Path) -> None:
    _write_manifest(tmp_path)
    space = SearchSpace(("val/top1",), {}, {"n_s": Distribution(low=1, high=99, is_whole=True)})
    search = Search(space, "mine", 3, 0, tmp_path, tmp_path / "out", Resources())
    trials = Trials(search.folder)
    for n_s, value in enumerate((0.25, 0.5)):
        trial = trials.add({"n_s": n_s}, 0)
        trial.state = "finished"
        trial.add_epoch({"epoch": 2, "val/top1": value})
    trials.add({"n_s": 9}, 0).state = "failed"
    trials.all[2].reason = "out of memory"
    assert [search._ended_line(trial, trials) for trial in trials.all] == [
        "trial-0000 finished at epoch 2: val/top1 0.2500",
        "trial-0001 finished at epoch 2: val/top1 0.5000, the best so far",
        "trial-0002 failed at epoch 0: out of memory",
    ]


@pytest.mark.parametrize(("frames", "fits"), [((3, 4), True), ((7, 8), False)])
def test_setting_is_checked_with_the_one_that_it_depends_on(
    frames: tuple[int, ...], fits: bool, tmp_path: Path
) -> None:
    _write_manifest(tmp_path, splits=("train", "val"))
    searched = {"frames": Distribution(frames), "segment_jitter": Distribution((False, True))}
    space = SearchSpace(("val/top1",), {}, searched)
    search = Search(space, "mine", 1, 0, tmp_path, tmp_path / "out", Resources())
    with nullcontext() if fits else pytest.raises(ValueError, match="7 frames per clip"):
        search.check()
