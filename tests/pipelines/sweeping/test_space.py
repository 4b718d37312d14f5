"""Search spaces: the values they contain, and the points that are fixed before sampling."""

import itertools
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sweeping.space import (
    SWEEP_COSTS,
    SWEEP_MEASURES,
    Asha,
    Condition,
    Distribution,
    SearchSpace,
    check_possible,
    is_minimised,
)
from stop_core.settings.experiment import ExperimentConfig


def test_ranks_and_costs_are_minimised_and_shares_maximised() -> None:
    for name in (*itertools.chain.from_iterable(SWEEP_MEASURES.values()), *SWEEP_COSTS):
        assert is_minimised(name) == (name.endswith("_rank") or name in SWEEP_COSTS), name
    assert set(SWEEP_MEASURES["retrieval"]) == {
        f"val/{way}_{measure}"
        for way in ("t2v", "v2t")
        for measure in ("r1", "r5", "r10", "median_rank", "mean_rank")
    }


@pytest.mark.parametrize(
    ("condition", "holds", "fails"),
    [
        (Condition("eta", (1.0, 2.0)), [1.0, 2.0], [0.0, 1.5, None, "1.0"]),
        (Condition("eta", above=1.0), [1.0001, 5], [1.0, 0.5, None, "2"]),
        (Condition("eta", below=1.0), [0.9999, -5], [1.0, 1.5, None]),
        (Condition("eta", above=1.0, below=2.0), [1.5], [1.0, 2.0, 0.0, 3.0, None]),
        (Condition("eta", above=0.0, below=0.5), [0.25], [0.0, 0.5, -1, 1]),
        (Condition("eta", ("a", None)), ["a", None], ["b", 0]),
    ],
)
def test_a_condition_holds_for_its_values_and_strictly_between_its_bounds(
    condition: Condition, holds: list[Any], fails: list[Any]
) -> None:
    assert [value for value in [*holds, *fails] if condition.holds({"eta": value})] == holds
    assert not condition.holds({})
    assert not condition.holds({"other": holds[0]})


LISTED = Distribution(("a", None, 3))
RANGE = Distribution(low=-1.0, high=2.0)
STEPS = Distribution(low=0.5, high=2.2, step=0.5)
WHOLE = Distribution(low=2, high=5, is_whole=True)
WHOLE_STEPS = Distribution(low=1, high=8, step=3, is_whole=True)
TENTHS = Distribution(low=0.0, high=0.7, step=0.1)


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        (LISTED, ["a", None, 3], ["b", 0, False]),
        (RANGE, [-1.0, 0, 2.0, 0.123], [-1.0001, 2.0001, True, "0", None]),
        (STEPS, [0.5, 1.0, 1.5, 2.0], [0.0, 0.75, 2.2, 2.5]),
        (WHOLE, [2, 3, 4, 5], [1, 6, 2.0, 3.5, True]),
        (WHOLE_STEPS, [1, 4, 7], [2, 8, 10, -2, 4.0]),
        (TENTHS, [0.0, 0.1, 0.30000000000000004, 0.7], [0.05, 0.8, -0.1]),
    ],
)
def test_a_distribution_contains_what_it_can_draw_both_ends_included(
    distribution: Distribution, inside: list[Any], outside: list[Any]
) -> None:
    assert all(distribution.contains(value) for value in inside)
    assert not any(distribution.contains(value) for value in outside)


def test_lists_and_steps_are_listed_in_full_and_ranges_by_their_ends() -> None:
    assert LISTED.listed() == LISTED.examples() == ("a", None, 3)
    assert STEPS.listed() == (0.5, 1.0, 1.5, 2.0)
    assert WHOLE_STEPS.listed() == (1, 4, 7)
    assert all(type(value) is int for value in WHOLE_STEPS.listed())
    assert all(type(value) is float for value in Distribution(low=0, high=2, step=1).listed())
    assert TENTHS.listed() == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    assert RANGE.listed() == WHOLE.listed() == ()
    assert RANGE.examples() == (-1.0, 2.0)
    assert WHOLE_STEPS.examples() == (1, 8)


@given(
    low=st.integers(-30, 30),
    steps=st.integers(1, 30),
    more=st.integers(0, 9),
    step=st.sampled_from(["0.1", "0.3", "0.025", "1e-5", "7"]),
)
def test_a_distribution_contains_every_value_that_it_lists(
    low: int, steps: int, more: int, step: str
) -> None:
    """The range ends `more` tenths of a step after its last step."""
    first, each = Decimal(low) / 10, Decimal(step)
    high = first + each * (steps + Decimal(more) / 10)
    own = Distribution(low=float(first), high=float(high), step=float(each))
    assert own.listed() == tuple(float(first + each * number) for number in range(steps + 1))
    assert all(own.contains(value) for value in own.listed())


def _needs_two(point: dict[str, Any]) -> None:
    """A setting that depends on another: b needs an a above 1."""
    if point.get("b") and point.get("a", 0) <= 1:
        raise ValueError("b needs a")


def test_a_point_is_possible_if_some_value_of_another_setting_makes_it_so() -> None:
    search = {"a": Distribution((0, 2)), "b": Distribution((False, True))}
    check_possible(_needs_two, {"b": True}, {}, search)
    check_possible(_needs_two, {"b": True}, {"a": 2}, search)
    check_possible(_needs_two, {"a": 0}, {}, search)
    for point, around, others in (
        ({"b": True, "a": 0}, {}, search),  # a is given
        ({"b": True}, {"a": 1}, search),  # a is held
        ({"b": True}, {}, {"b": search["b"]}),  # a is not searched
        ({"b": True}, {}, {**search, "a": Distribution((0, 1))}),
    ):
        with pytest.raises(ValueError, match="b needs a"):
            check_possible(_needs_two, point, around, others)


def _space(search: dict[str, Distribution], **options: Any) -> SearchSpace:
    return SearchSpace(("val/top1",), options.pop("fixed", {}), search, **options)


def test_the_longest_training_and_the_grace_of_asha_follow_from_what_can_be_drawn() -> None:
    drawn = {"epochs": Distribution(low=3, high=9, is_whole=True)}
    assert _space(drawn).longest == 9
    assert _space({"epochs": Distribution((4, 12, 2))}).longest == 12
    assert _space({}, fixed={"epochs": 5}).longest == 5
    assert _space({}).longest == ExperimentConfig.epochs
    assert _space({}).possible("batch_size") == (ExperimentConfig.batch_size,)
    assert _space(drawn).possible("epochs") == (3, 9)
    assert _space(drawn).grace_period is None
    assert _space(drawn, scheduler=Asha(4)).grace_period == 4
    assert _space(drawn, scheduler=Asha(20)).grace_period == 9
    assert Asha() == Asha(grace_period=1, reduction_factor=3)
    plain = SearchSpace(("val/top1",), {}, {}, "random", None, None, 1, {}, (), 10)
    assert SearchSpace(("val/top1",), {}, {}) == plain
    assert Distribution() == Distribution((), False, 0, 0, None, False, False, ())


WHEN = {
    "method": Distribution(("stop", "vpt-deep"), is_grid=True),
    "eta": Distribution((0.0, 4.0), is_grid=True, when=(Condition("method", ("stop",)),)),
    "max_prompts": Distribution(
        (2, 4), is_grid=True, when=(Condition("method", ("stop",)), Condition("eta", above=0))
    ),
}


def test_a_setting_is_active_where_all_its_conditions_hold() -> None:
    space = _space(WHEN)
    assert space.active("method", {})
    assert space.active("max_prompts", {"method": "stop", "eta": 4.0})
    assert not space.active("max_prompts", {"method": "stop", "eta": 0.0})
    assert not space.active("max_prompts", {"eta": 4.0})
    assert _space(WHEN, fixed={"method": "stop"}).active("eta", {})
    both = _space(WHEN, fixed={"method": "stop", "n_s": 3}).experiment({"eta": 4.0})
    assert (both.stop.eta, both.stop.n_s) == (4.0, 3)


def test_a_grid_has_no_inactive_settings() -> None:
    wanted = [
        {"method": "stop", "eta": 0.0},
        {"method": "stop", "eta": 4.0, "max_prompts": 2},
        {"method": "stop", "eta": 4.0, "max_prompts": 4},
        {"method": "vpt-deep"},
    ]
    assert _space(WHEN, algorithm="grid").points() == wanted
    # With random sampling, grid settings are multiplied and the others are sampled.
    mixed = {**WHEN, "alpha": RANGE, "n_s": Distribution((1, 2))}
    assert _space(mixed, algorithm="random").points() == wanted
    assert _space({"alpha": RANGE}, algorithm="random").points() == [{}]
    steps = _space({"eta": STEPS, "n_s": Distribution((1, 2))}, algorithm="grid").points()
    assert steps == [{"eta": e, "n_s": n} for e in (0.5, 1.0, 1.5, 2.0) for n in (1, 2)]


def test_one_at_a_time_leaves_the_point_in_one_setting_and_has_it_once() -> None:
    space = _space(
        {"eta": STEPS, "n_s": Distribution((1, 2))},
        algorithm="one-at-a-time",
        around={"eta": 1.0, "n_s": 1},
    )
    assert space.points() == [
        {"eta": 1.0, "n_s": 1},
        {"eta": 0.5, "n_s": 1},
        {"eta": 1.5, "n_s": 1},
        {"eta": 2.0, "n_s": 1},
        {"eta": 1.0, "n_s": 2},
    ]
    space.points()[0]["eta"] = 9.0
    assert space.around["eta"] == 1.0


def test_a_point_is_decided_by_settings_whose_conditions_can_hold() -> None:
    space = _space(WHEN)
    for point, wanted in (
        ({"method": "stop", "eta": 4.0, "max_prompts": 2}, {}),
        ({"method": "stop", "eta": 0.0, "max_prompts": 2}, {"max_prompts": None}),
        ({"method": "vpt-deep", "eta": 4.0, "max_prompts": 2}, {"eta": None, "max_prompts": None}),
        ({"eta": 4.0, "max_prompts": 2}, {}),  # the method may still be stop
        ({"max_prompts": 2}, {}),
    ):
        decides = {name: value for name, value in point.items() if name not in wanted}
        assert space.deciding(point) == decides
    fixed = _space({n: d for n, d in WHEN.items() if n != "method"}, fixed={"method": "vpt-deep"})
    assert fixed.deciding({"eta": 4.0, "max_prompts": 2}) == {}


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Distribution((1.23456, 2)), "choice 1.235, 2"),
        (Distribution(("a", None), is_grid=True), "grid a, None"),
        (Distribution(low=0.25, high=1), "from 0.25 to 1"),
        (WHOLE, "a whole number from 2 to 5"),
        (WHOLE_STEPS, "a whole number from 1 to 8 in steps of 3"),
        (Distribution(low=1e-4, high=0.1, log=True), "from 0.0001 to 0.1 on a logarithmic scale"),
        (Condition("method", ("stop", "vop")), "method in ['stop', 'vop']"),
        (Condition("n_s", above=0, below=4), "n_s above 0 and below 4"),
        (Condition("eta", below=0.5), "eta below 0.5"),
    ],
)
def test_a_distribution_and_a_condition_are_named_in_words(one: object, words: str) -> None:
    assert str(one) == words
