"""Settings are drawn from the distributions that a space names, independently, by their seeds."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest

from pipelines.sweeping.sample_settings import planned, sample_settings, study_of
from pipelines.sweeping.space import Algorithm, Condition, Distribution, SearchSpace
from pipelines.sweeping.trials import Trial

DRAWS = 400
UNIFORM = Distribution(low=0.2, high=0.8)
LOG = Distribution(low=1e-4, high=1e-1, log=True)
STEPS = Distribution(low=0.5, high=2.0, step=0.5)
WHOLE = Distribution(low=1, high=4, is_whole=True)
WHOLE_STEPS = Distribution(low=1, high=9, step=4, is_whole=True)
WHOLE_LOG = Distribution(low=1, high=64, log=True, is_whole=True)
CHOICE = Distribution(("stop", "stop-static", "vpt-deep"))
SPACE = SearchSpace(
    ("val/top1",),
    {"spatial_width": 4},
    {
        "alpha": UNIFORM,
        "learning_rate": LOG,
        "eta": STEPS,
        "n_s": WHOLE,
        "max_prompts": WHOLE_STEPS,
        "batch_size": WHOLE_LOG,
        "method": CHOICE,
    },
)


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, Any]]:
    """The first draw of as many sweeps, each with its own seed."""
    return [_draw(SPACE, seed) for seed in range(DRAWS)]


def _draw(space: SearchSpace, seed: int, trials: list[Trial] | None = None) -> dict[str, Any]:
    found = sample_settings(space, {}, seed, trials or [])
    assert found is not None
    return found


def _is_even(values: list[float], share: Callable[[float], float]) -> bool:
    """The test of Kolmogorov and Smirnov at a level of 1e-4, where `share` is the distribution."""
    count = len(values)
    off = [abs(share(v) - (i + 0.5) / count) for i, v in enumerate(sorted(values))]
    return max(off) * math.sqrt(count) < 2.23


def _occur(values: list[Any], wanted: dict[Any, float]) -> bool:
    """Whether each value occurs as often as wanted, within five standard errors."""
    counts, count = Counter(values), len(values)
    return counts.keys() == wanted.keys() and all(
        abs(counts[v] - count * p) < 5 * math.sqrt(count * p * (1 - p)) for v, p in wanted.items()
    )


def test_each_setting_follows_its_distribution(drawn: list[dict[str, Any]]) -> None:
    of = {name: [one[name] for one in drawn] for name in SPACE.search}
    assert _is_even(of["alpha"], lambda value: (value - 0.2) / 0.6)
    assert _is_even(of["learning_rate"], lambda value: math.log10(value / 1e-4) / 3)
    assert _occur(of["eta"], dict.fromkeys((0.5, 1.0, 1.5, 2.0), 1 / 4))
    assert _occur(of["n_s"], dict.fromkeys((1, 2, 3, 4), 1 / 4))
    assert _occur(of["max_prompts"], dict.fromkeys((1, 5, 9), 1 / 3))
    assert _occur(of["method"], dict.fromkeys(CHOICE.values, 1 / 3))
    # Optuna draws the logarithm of a whole number between half below the first and half above the
    # last one, and rounds.
    edge = lambda value: math.log((value + 0.5) / 0.5) / math.log(64.5 / 0.5)  # noqa: E731
    below = [value for value in of["batch_size"] if value <= 7]
    assert abs(len(below) / DRAWS - edge(7)) < 5 * math.sqrt(edge(7) * (1 - edge(7)) / DRAWS)
    assert {1, 64} > {min(of["batch_size"]), max(of["batch_size"])} - {64, 63, 62, 61, 60}


def test_each_draw_is_of_the_right_type_and_in_its_range(drawn: list[dict[str, Any]]) -> None:
    for one in drawn:
        assert list(one) == list(SPACE.search)
        assert all(SPACE.search[name].contains(value) for name, value in one.items())
        assert all(isinstance(one[name], float) for name in ("alpha", "learning_rate", "eta"))
        assert all(type(one[name]) is int for name in ("n_s", "max_prompts", "batch_size"))


def test_settings_are_drawn_independently(drawn: list[dict[str, Any]]) -> None:
    numbers = [name for name in SPACE.search if name != "method"]
    scaled = {}
    for name in numbers:
        values = [math.log(one[name]) for one in drawn]
        mean = sum(values) / DRAWS
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / DRAWS)
        scaled[name] = [(value - mean) / spread for value in values]
    for i, first in enumerate(numbers):
        for second in numbers[i + 1 :]:
            both = zip(scaled[first], scaled[second], strict=True)
            assert abs(sum(a * b for a, b in both)) / DRAWS < 5 / math.sqrt(DRAWS), (first, second)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_draw_depends_only_on_the_seed_and_the_number_of_the_trial(algorithm: Algorithm) -> None:
    space = replace(SPACE, algorithm=algorithm)
    trial = Trial(0, _draw(space, 3), 3, "finished", measures={"val/top1": 0.5})
    other = replace(trial, measures={"val/top1": 0.9})
    assert _draw(space, 3) == trial.drawn
    assert _draw(space, 3, [trial]) == _draw(space, 3, [trial]) != trial.drawn
    assert _draw(space, 4) != trial.drawn
    another = replace(trial, drawn=_draw(space, 5))
    assert _draw(space, 3, [another]) != trial.drawn
    # As long as TPE begins with random draws, results do not matter.
    assert _draw(space, 3, [trial]) == _draw(space, 3, [other])


def _history(space: SearchSpace, states: str = "f" * 12) -> list[Trial]:
    """Trials that are better the larger their alpha is."""
    trials: list[Trial] = []
    for number, state in enumerate(states):
        drawn = _draw(replace(space, algorithm="random"), 100 + number)
        trial = Trial(number, drawn, 0, "finished" if state == "f" else "running")
        trial.measures = {"val/top1": drawn["alpha"]} if state == "f" else {}
        trials.append(trial)
    return trials


def test_tpe_keeps_away_from_what_is_running() -> None:
    space = replace(SPACE, algorithm="tpe", search={"alpha": UNIFORM}, startup_trials=4)
    draws = []
    for alpha in (0.79, 0.5):
        waiting = _history(space, "f" * 12 + "r" * 8)
        for trial in waiting[12:]:
            trial.drawn = {"alpha": alpha}
        draws.append(
            [sample_settings(replace(space), {}, seed, waiting) for seed in range(1000, 1012)]
        )
    assert draws[0] != draws[1]


def test_only_tpe_uses_the_tpe_sampler_with_its_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []
    plain = optuna.samplers.TPESampler

    def record(**options: Any) -> optuna.samplers.TPESampler:
        made.append(options)
        return plain(**options)

    monkeypatch.setattr("pipelines.sweeping.sample_settings.TPESampler", record)
    space = replace(SPACE, algorithm="tpe", startup_trials=7)
    _draw(space, 0, _history(space))
    # All settings together, for they depend on each other; in groups, for some have conditions.
    modelled = {"multivariate": True, "group": True, "constant_liar": True}
    assert [{**one, "seed": 0} for one in made] == [{**modelled, "n_startup_trials": 7, "seed": 0}]
    made.clear()
    _draw(replace(space, algorithm="random"), 0)
    assert not made


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_where_all_has_been_tried_with_a_seed_nothing_is_drawn(algorithm: Algorithm) -> None:
    whole = Distribution(low=1, high=40, is_whole=True)
    space = replace(SPACE, search={"max_prompts": whole}, algorithm=algorithm)
    tried = [Trial(n, {"max_prompts": n + 1}, 5, "finished") for n in range(39)]
    for trial in tried:
        trial.measures = {"val/top1": 0.1}
    assert sample_settings(space, {}, 5, tried) in ({"max_prompts": 40}, None)
    assert sample_settings(space, {}, 6, tried) is not None
    tried.append(Trial(39, {"max_prompts": 40}, 5, "failed"))
    assert sample_settings(space, {}, 5, tried) is None


def test_a_point_is_taken_as_it_is_and_only_the_rest_drawn() -> None:
    point = {"alpha": 0.31, "method": "stop-static", "n_s": 2}
    for seed in range(5):
        found = sample_settings(SPACE, point, seed, [])
        assert found is not None
        assert found.items() >= point.items()
        assert list(found) == list(SPACE.search)
    whole = dict(found)
    # A fixed point is not repeated with the same seed, but is with another seed.
    assert sample_settings(SPACE, whole, 7, [Trial(0, whole, 7)]) is None
    assert sample_settings(SPACE, whole, 8, [Trial(0, whole, 7)]) == whole


def test_a_point_that_was_tried_gives_way_to_a_free_draw_where_points_are_evaluated() -> None:
    whole = _draw(SPACE, 0)
    space = replace(SPACE, points_to_evaluate=(whole,))
    found = sample_settings(space, whole, 0, [Trial(0, whole, 0)])
    assert found not in (None, whole)


def test_a_condition_decides_whether_a_setting_is_drawn() -> None:
    when = (Condition("method", ("stop", "stop-static")), Condition("n_s", above=1, below=4))
    space = replace(SPACE, search={**SPACE.search, "alpha": replace(UNIFORM, when=when)})
    space = replace(
        space, search={**{"method": CHOICE, "n_s": WHOLE}, "alpha": space.search["alpha"]}
    )
    seen = set()
    for seed in range(60):
        found = _draw(space, seed)
        wanted = found["method"] != "vpt-deep" and found["n_s"] in (2, 3)
        assert ("alpha" in found) == wanted
        seen.add(wanted)
    assert seen == {True, False}


def test_invalid_combinations_are_drawn_again() -> None:
    """STOP without patches and without gaps has nothing to train."""
    nothing = Distribution((0.0, 4.0))
    space = SearchSpace(
        ("val/top1",), {"method": "stop"}, {"eta": nothing, "n_s": Distribution((0, 1))}
    )
    found = [_draw(space, seed) for seed in range(60)]
    assert {(one["eta"], one["n_s"]) for one in found} == {(0.0, 1), (4.0, 0), (4.0, 1)}


GRID = {"eta": Distribution((1.0, 2.0), is_grid=True), "n_s": Distribution((1, 2), is_grid=True)}


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_plan_of_points_has_each_with_each_seed(seeds: int) -> None:
    grid = replace(SPACE, algorithm="grid", search=GRID, seeds=seeds)
    points = [{"eta": eta, "n_s": n_s} for eta in (1.0, 2.0) for n_s in (1, 2)]
    assert planned(grid, None, 4) == [(p, 4 + more) for p in points for more in range(seeds)]
    around = {"eta": 2.0, "n_s": 1}
    one = replace(grid, algorithm="one-at-a-time", around=around)
    points = [around, {"eta": 1.0, "n_s": 1}, {"eta": 2.0, "n_s": 2}]
    assert planned(one, None, 4) == [(p, 4 + more) for p in points for more in range(seeds)]


@pytest.mark.parametrize(("given", "own", "wanted"), [(None, None, 1), (None, 5, 5), (3, 5, 3)])
def test_a_plan_of_draws_is_as_long_as_asked_for(
    given: int | None, own: int | None, wanted: int
) -> None:
    assert planned(replace(SPACE, trials=own), given, 2) == [({}, 2)] * wanted
    first = ({"alpha": 0.3}, {"alpha": 0.4})
    space = replace(SPACE, trials=own, points_to_evaluate=first)
    plan = [({"alpha": 0.3}, 2), ({"alpha": 0.4}, 2), *[({}, 2)] * 5]
    assert planned(space, given, 2) == plan[:wanted]
    mixed = replace(SPACE, trials=own, search={**SPACE.search, "eta": GRID["eta"]})
    points = [({"eta": eta}, 2) for eta in (1.0, 2.0)]
    assert planned(mixed, given, 2) == points * wanted


def test_optuna_has_the_distributions_directions_and_results_of_the_trials() -> None:
    drawn = _draw(SPACE, 0)
    curve = [{"epoch": 1.0, "val/top1": 0.1}, {"epoch": 2.0, "val/top1": 0.4}]
    trial = Trial(0, drawn, 0, "finished", curve, {"val/top1": 0.4, "step_seconds": 0.2})
    (seen,) = study_of(SPACE, [trial]).trials
    assert (seen.params, seen.value) == (drawn, 0.4)
    assert seen.intermediate_values == {1: 0.1, 2: 0.4}
    of = optuna.distributions
    assert seen.distributions == {
        "alpha": of.FloatDistribution(0.2, 0.8),
        "learning_rate": of.FloatDistribution(1e-4, 1e-1, log=True),
        "eta": of.FloatDistribution(0.5, 2.0, step=0.5),
        "n_s": of.IntDistribution(1, 4),
        "max_prompts": of.IntDistribution(1, 9, step=4),
        "batch_size": of.IntDistribution(1, 64, log=True),
        "method": of.CategoricalDistribution(CHOICE.values),
    }
    both = replace(SPACE, objectives=("val/top1", "step_seconds"))
    study = study_of(both, [trial])
    assert [one.name for one in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.trials[0].values == [0.4, 0.2]
    cost = study_of(both, [replace(trial, curve=[])], objectives=("step_seconds",))
    assert [one.name for one in cost.directions] == ["MINIMIZE"]
    assert cost.trials[0].values == [0.2]


def test_what_a_trial_did_not_measure_fails_it_and_several_objectives_prune_none() -> None:
    drawn, curve = _draw(SPACE, 0), [{"epoch": 1.0, "val/top1": 0.1, "step_seconds": 0.3}]
    both = replace(SPACE, objectives=("val/top1", "step_seconds"))
    stopped = Trial(0, drawn, 0, "stopped early", curve)
    without = Trial(1, drawn, 0, "finished", [], {"val/top1": 0.4})
    running = Trial(2, drawn, 0, "running")
    states = [one.state.name for one in study_of(both, [stopped, without, running]).trials]
    assert states == ["COMPLETE", "FAIL", "RUNNING"]
    alone = [one.state.name for one in study_of(SPACE, [stopped, without, running]).trials]
    assert alone == ["PRUNED", "COMPLETE", "RUNNING"]
