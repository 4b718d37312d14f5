"""Draws are in the space, never repeated, and the same after an interruption."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cli.folders import SWEEPS
from pipelines.sweeping.read_space import read_space
from pipelines.sweeping.sample_settings import planned, sample_settings, study_of
from pipelines.sweeping.space import Algorithm, Distribution, SearchSpace
from pipelines.sweeping.trials import Trial, Trials

SPACE = SearchSpace(
    ("val/top1",),
    {"method": "stop"},
    {
        "eta": Distribution((0.0, 2.0)),
        "alpha": Distribution(low=0.0, high=1.0),
        "n_s": Distribution(low=0, high=4, is_whole=True),
    },
    "tpe",
    12,
    startup_trials=4,
)


def _finish(trial: Trial, value: float) -> None:
    trial.state, trial.measures = "finished", {"val/top1": value}


def _sweep(folder: Path, space: SearchSpace, interrupted_after: tuple[int, ...] = ()) -> Trials:
    """A sweep whose trials reach their alpha; an interruption leaves only the files on disk."""
    trials = Trials(folder)
    for point, seed in planned(space, None, 0):
        drawn = sample_settings(space, point, seed, trials.all)
        assert drawn is not None
        trial = trials.add(drawn, seed)
        _finish(trial, drawn["alpha"])
        trials.save(trial)
        if trial.number in interrupted_after:
            trials = Trials(folder)
    return trials


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_interrupted_search_draws_the_same_settings(algorithm: Algorithm, tmp_path: Path) -> None:
    space = replace(SPACE, algorithm=algorithm)
    whole = _sweep(tmp_path / "whole", space)
    broken = _sweep(tmp_path / "broken", space, interrupted_after=(0, 5, 6))
    assert broken.all == whole.all


def test_tpe_learns_from_earlier_trials(tmp_path: Path) -> None:
    trials = _sweep(tmp_path, replace(SPACE, trials=24)).all
    early, late = trials[: SPACE.startup_trials], trials[-8:]
    mean = lambda some: sum(one.drawn["alpha"] for one in some) / len(some)  # noqa: E731
    assert mean(late) > 0.75
    assert mean(late) > mean(early)


def test_every_draw_is_in_the_space_valid_and_new(tmp_path: Path) -> None:
    space = replace(SPACE, search={n: d for n, d in SPACE.search.items() if n != "alpha"})
    trials = Trials(tmp_path)
    while (drawn := sample_settings(space, {}, 0, trials.all)) is not None:
        _finish(trials.add(drawn, 0), 0.5)
    seen = {(one.drawn["eta"], one.drawn["n_s"]) for one in trials.all}
    # All of the 2 x 5, except the one that leaves no prompt to train.
    assert seen == {(eta, n_s) for eta in (0.0, 2.0) for n_s in range(5)} - {(0.0, 0)}
    assert len(trials.all) == len(seen)


def test_setting_is_left_out_if_its_condition_fails() -> None:
    space = read_space(SWEEPS / "hmdb51.yaml")
    trials: list[Trial] = []
    for number in range(6):
        drawn = sample_settings(space, {} if number else {"eta": 0.0}, 0, trials)
        assert drawn is not None
        assert ("max_prompts" in drawn) == (drawn["eta"] > 0)
        assert all(space.search[name].contains(value) for name, value in drawn.items())
        trials.append(Trial(number, drawn, 0))


def test_points_to_evaluate_come_first_and_their_open_settings_are_drawn() -> None:
    space = replace(SPACE, points_to_evaluate=({"alpha": 0.25},), trials=3)
    plan = planned(space, None, 7)
    assert plan == [({"alpha": 0.25}, 7), ({}, 7), ({}, 7)]
    drawn = sample_settings(space, *plan[0], [])
    assert drawn is not None
    assert drawn["alpha"] == 0.25
    assert drawn.keys() == SPACE.search.keys()


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_point_to_evaluate_that_was_drawn_before_does_not_end_the_sweep(
    algorithm: Algorithm, tmp_path: Path
) -> None:
    first = ({"n_s": 1}, {"n_s": 1, "eta": 0.0}, {"n_s": 1, "eta": 2.0})
    search = {name: SPACE.search[name] for name in ("eta", "n_s")}
    space = replace(SPACE, search=search, algorithm=algorithm, points_to_evaluate=first, trials=6)
    trials = Trials(tmp_path)
    for point, seed in planned(space, None, 0):
        drawn = sample_settings(space, point, seed, trials.all)
        assert drawn is not None
        _finish(trials.add(drawn, seed), 0.5)
    tried = [one.drawn for one in trials.all]
    assert len(tried) == len({str(sorted(one.items())) for one in tried}) == 6
    assert all(point in tried for point in first[1:])


def test_grid_is_repeated_for_every_seed_and_every_draw() -> None:
    grids = replace(SPACE.search["eta"], is_grid=True)
    grid = replace(SPACE, algorithm="grid", search={"eta": grids}, trials=None, seeds=2)
    assert planned(grid, None, 5) == [({"eta": eta}, seed) for eta in (0.0, 2.0) for seed in (5, 6)]
    mixed = replace(SPACE, algorithm="random", search={**SPACE.search, "eta": grids}, trials=3)
    assert [point["eta"] for point, _ in planned(mixed, None, 0)] == [0.0, 2.0] * 3


def test_more_trials_start_with_the_same_ones() -> None:
    assert planned(SPACE, 20, 0)[:12] == planned(SPACE, None, 0)


def test_optuna_gets_the_state_of_every_trial() -> None:
    drawn = {"eta": 2.0, "alpha": 0.5, "n_s": 1}
    curve = [{"epoch": 1.0, "val/top1": 0.3}]
    trials = [
        Trial(0, drawn, 0, "finished", curve, {"val/top1": 0.6}),
        Trial(1, drawn, 0, "stopped early", curve),
        Trial(2, drawn, 0, "failed", reason="nan"),
        Trial(3, drawn, 0, "running", curve),
    ]
    found = study_of(SPACE, trials).trials
    assert [one.state.name for one in found] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert found[0].value == 0.6
    assert found[1].intermediate_values == {1: 0.3}
