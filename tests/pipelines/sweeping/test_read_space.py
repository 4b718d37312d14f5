"""Search spaces are read as documented, and errors name the line."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.experiment_fields import build_experiment
from pipelines.cli.folders import SWEEPS
from pipelines.sweeping.read_space import read_space
from pipelines.sweeping.sample_settings import planned, sample_settings
from pipelines.sweeping.space import SWEEP_COSTS, SWEEP_MEASURES, SearchSpace
from stop_core.settings.experiment import ExperimentConfig

PAPER = {"n_s", "alpha", "beta", "eta"}
SIZES = {"max_prompts", "spatial_width", "temporal_width", "depth", "learning_rate"}
DATASETS = (
    "activitynet", "didemo", "hmdb51", "motion", "msrvtt", "smoke", "ssv2", "ucf101", "vatex",
)  # fmt: skip


def _read(folder: Path, text: str) -> SearchSpace:
    path = folder / "space.yaml"
    path.write_text(text)
    return read_space(path)


def test_every_dataset_has_a_space_and_one_space_measures_sensitivity() -> None:
    found = {path.stem for path in SWEEPS.glob("*.yaml")}
    assert found == {*DATASETS, "paper_sensitivity"}


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_space_searches_the_settings_of_the_paper_and_the_sizes(name: str) -> None:
    space = read_space(SWEEPS / f"{name}.yaml")
    assert space.search.keys() >= PAPER | SIZES
    recognition = name in ("hmdb51", "motion", "smoke", "ssv2", "ucf101")
    assert space.objectives[0] in SWEEP_MEASURES["recognition" if recognition else "retrieval"]


def test_sensitivity_space_varies_one_setting_at_a_time_over_several_seeds() -> None:
    space = read_space(SWEEPS / "paper_sensitivity.yaml")
    assert space.search.keys() == PAPER
    assert space.algorithm == "one-at-a-time"
    assert space.seeds > 1
    points = space.points()
    assert points[0] == space.around
    for point in points[1:]:
        assert len([name for name in PAPER if point[name] != space.around[name]]) == 1
    for name, distribution in space.search.items():
        assert {point[name] for point in points} == set(distribution.values)
    assert len(points) == len({tuple(point.items()) for point in points})


@pytest.mark.parametrize(
    ("text", "inside", "outside", "ends"),
    [
        ("uniform: [0, 1]", 0.3, 1.2, (0.0, 1.0)),
        ("loguniform: [1e-3, 1]", 0.003, 0.0005, (0.001, 1.0)),
        ("quniform: [0, 1, 0.25]", 0.75, 0.7, (0.0, 1.0)),
        ("float: {low: 0, high: 1, step: 0.5}", 0.5, 0.4, (0.0, 1.0)),
        ("float: {low: 0.1, high: 1, log: true}", 0.5, 0.05, (0.1, 1.0)),
        ("choice: [0.1, 0.9]", 0.9, 0.5, (0.1, 0.9)),
        ("categorical: [0.1, 0.9]", 0.9, 0.5, (0.1, 0.9)),
        ("grid: [0.1, 0.9]", 0.9, 0.5, (0.1, 0.9)),
    ],
)
def test_ranges_are_read_in_the_notations_of_tune_and_optuna(
    tmp_path: Path, text: str, inside: float, outside: float, ends: tuple[float, float]
) -> None:
    drawn = _read(tmp_path, f"search: {{alpha: {{{text}}}}}").search["alpha"]
    assert drawn.contains(inside)
    assert not drawn.contains(outside)
    assert drawn.examples() == ends


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("randint: [1, 8]", 8, 9),
        ("qrandint: [4, 16, 4]", 12, 10),
        ("lograndint: [1, 64]", 64, 65),
        ("int: {low: 2, high: 8, step: 2}", 8, 7),
    ],
)
def test_integer_ranges_include_both_ends(
    tmp_path: Path, text: str, inside: int, outside: int
) -> None:
    drawn = _read(tmp_path, f"search: {{n_s: {{{text}}}}}").search["n_s"]
    assert drawn.contains(inside)
    assert not drawn.contains(outside)
    assert not drawn.contains(float(inside))


CONDITIONS = """
search:
  static_prompts: {choice: [4, 8], when: {method: [vpt-deep, vpt-shallow]}}
  beta: {uniform: [0, 2], when: {eta: {above: 0.5}, method: stop}}
  eta: {choice: [0.0, 4.0], when: {method: stop}}
  method: {choice: [stop, vpt-deep]}
"""


@pytest.mark.parametrize(
    ("drawn", "active"),
    [
        ({"method": "stop"}, {"eta"}),
        ({"method": "stop", "eta": 4.0}, {"eta", "beta"}),
        ({"method": "stop", "eta": 0.0}, {"eta"}),
        ({"method": "vpt-deep"}, {"static_prompts"}),
        ({"eta": 4.0}, set()),
    ],
)
def test_conditional_setting_is_drawn_after_its_parents_and_only_if_its_conditions_hold(
    tmp_path: Path, drawn: dict[str, Any], active: set[str]
) -> None:
    space = _read(tmp_path, CONDITIONS)
    conditional = {"static_prompts", "beta", "eta"}
    assert {name for name in conditional if space.active(name, drawn)} == active
    order = list(space.search)
    assert order.index("method") < order.index("eta") < order.index("beta")


def test_grid_has_every_combination_once_and_skips_settings_whose_conditions_fail(
    tmp_path: Path,
) -> None:
    text = """
algorithm: grid
search:
  eta: {grid: [0.0, 2.0]}
  n_s: {grid: [1, 2]}
  max_prompts: {grid: [2, 4], when: {eta: {above: 0}}}
"""
    points = _read(tmp_path, text).points()
    assert len(points) == 2 + 4
    assert {"eta": 0.0, "n_s": 1} in points
    assert {"eta": 2.0, "n_s": 2, "max_prompts": 4} in points


def test_all_steps_of_a_range_can_be_drawn(tmp_path: Path) -> None:
    space = _read(tmp_path, "algorithm: grid\nsearch: {alpha: {quniform: [0, 0.7, 0.1]}}")
    assert [point["alpha"] for point in space.points()] == [n / 10 for n in range(8)]
    for point, seed in planned(space, None, 0):
        assert sample_settings(space, point, seed, []) == point


def test_objectives_can_combine_accuracy_and_cost(tmp_path: Path) -> None:
    text = "objective: [val/top1, step_seconds]\nsearch: {n_s: {choice: [1]}}"
    assert _read(tmp_path, text).objectives == ("val/top1", SWEEP_COSTS[0])


ONE = "search: {n_s: {choice: [1]}}"
OTHER = "search: {alpha: {choice: [0.5]}}"
TWO = """algorithm: tpe
search:
  eta: {choice: [0, 4]}
  max_prompts: {choice: [1, 2], when: {eta: {above: 0}}}
points_to_evaluate:
"""


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("search:\n  alhpa: {uniform: [0, 1]}", 2, "did you mean alpha"),
        ("search:\n  n_s: {choice: [1]}\n  alpha:\n    uniform: [0, 2]", 3, "between 0 and 1"),
        ("search:\n  alpha:\n    uniform: [1, 0]", 3, "low < high"),
        ("search:\n  learning_rate:\n    loguniform: [0, 1]", 3, "above 0"),
        ("search:\n  n_s: {randint: [1, 2.5]}", 2, "valid integer"),
        ("search:\n  alpha: {uniform: [0, no]}", 2, "must be a number"),
        ("search:\n  n_s: {normal: [0, 1]}", 2, "must be drawn by one of"),
        ("search:\n  n_s:\n    choice: []", 3, "needs a list"),
        ("search:\n  n_s:\n    choice:\n    - 1\n    - two", 5, "n_s must be int, got 'two'"),
        ("search:\n  n_s: {choice: [1, 1]}", 2, "twice"),
        ("search: {}", 1, "search is empty"),
        ("search:\n  n_s: {uniform: [1, 8]}", 2, "randint"),
        ("search:\n  method: {uniform: [1, 8]}", 2, "not a number"),
        ("search:\n  share: {choice: ['false']}", 2, "share must be bool"),
        ("search:\n  seed: {choice: [1, 2]}", 2, "--seed"),
        (f"fixed:\n  n_s: 1\n  epochs: 2.5\n{ONE}", 3, "epochs must be int"),
        (f"fixed:\n  eta: 0\n  n_s: 0\n{OTHER}", 1, "no prompt to train"),
        (f"{ONE}\nobjective: val/topp1", 2, "val/top1"),
        (f"{ONE}\nobjective: test/top1", 2, "validation"),
        (f"{ONE}\nobjective: [val/top1, test/top1]", 2, "validation"),
        (f"{ONE}\nobjective: step_seconds", 2, "measure first"),
        (f"trials: 0\n{ONE}", 1, "greater than 0"),
        (f"{ONE}\ntrails: 3", 2, "'trails'"),
        ("fixed: {n_s: 3}\nsearch:\n  n_s: {choice: [1]}", 3, "both fixed and searched"),
        (f"algorithm: tpp\n{ONE}", 1, "'grid', 'random', 'tpe' or"),
        ("algorithm: tpe\nsearch:\n  n_s: {grid: [1]}", 3, "choice"),
        ("algorithm: grid\nsearch:\n  alpha: {uniform: [0, 1]}", 3, "quniform"),
        (f"algorithm: grid\ntrials: 3\n{ONE}", 2, "leave trials out"),
        (f"algorithm: tpe\nseeds: 3\n{ONE}", 2, "--confirm"),
        (f"scheduler: hyperband\n{ONE}", 1, "none, asha"),
        (f"scheduler: asha\nfixed: {{steps: 9}}\n{ONE}", 1, "leave scheduler out, or steps"),
        ("scheduler: asha\nsearch:\n  steps: {choice: [9, 12]}", 1, "scheduler out, or steps"),
        (f"fixed:\n  epochs: 5\n  steps: 9\n{ONE}", 1, "steps is 9 and epochs is 5"),
        (f"scheduler:\n  asha:\n    grace: 2\n{ONE}", 3, "grace_period"),
        (f"scheduler:\n  asha:\n    reduction_factor: 1\n{ONE}", 3, "greater than or equal to 2"),
        (
            "algorithm: one-at-a-time\nsearch:\n  n_s: {grid: [1]}",
            3,
            "around must give n_s a value",
        ),
        (f"around: {{n_s: 2}}\n{ONE}", 1, "one-at-a-time"),
        (f"algorithm: grid\nscheduler: asha\nseeds: 2\n{ONE}", 3, "leave scheduler out, or seeds"),
        (f"{ONE}\npoints_to_evaluate:\n- n_s: 1\n- n_s: 2", 4, "cannot draw"),
        (f"{ONE}\npoints_to_evaluate:\n- eta: 1", 3, "not searched"),
        (
            f"{TWO}- {{eta: 4}}\n- {{max_prompts: 1}}\n- {{eta: 4.0}}",
            8,
            "point 1 of the list again",
        ),
        (
            f"{TWO}- {{eta: 4, max_prompts: 1}}\n- {{eta: 0, max_prompts: 1}}\n- {{eta: 0}}",
            8,
            "point 2 of the list again",
        ),
        ("search:\n  n_s: {choice: [1], when: {etta: 1}}", 2, "no other setting"),
        ("fixed: {eta: 1}\nsearch:\n  n_s: {choice: [1], when: {eta: 2}}", 3, "never be drawn"),
        (
            "search:\n  n_s: {choice: [1], when: {eta: 1}}\n  eta: {choice: [1], when: {n_s: 1}}",
            2,
            "in a cycle",
        ),
        ("algorithm: grid\nsearch:\n  n_s: {grid: [0]}\n  eta: {grid: [0]}", 2, "n_s 0, eta 0"),
        ("search:\n  n_s: {choice: [1]}\n  n_s: {choice: [2]}", 3, "already on line 2"),
        ("search:\n  n_s: [1, 2", 2, "not YAML"),
        (f"fixed:\n  n_s: 1\n  segment_jitter: true\n{OTHER}", 3, "segment_jitter needs frames"),
        ("search:\n  n_s: {choice: [1]}\n  segment_jitter: {choice: [true]}", 3, "needs frames"),
        (
            "search:\n  method: {choice: [stop]}\n  n_s: {choice: [1], when: {method: {above: 0}}}",
            3,
            "method is no number",
        ),
        (
            "search:\n  n_s: {choice: [1], when: {eta: {}}}\n  eta: {choice: [1]}",
            2,
            "give a number",
        ),
        ("search:\n  n_s: {choice: [1], when: {etta: {above: 0}}}\n  etta: {}", 2, "did you mean"),
        ("search:\n  alpha: {float: {low: 0.1, high: 1, log: 3}}", 2, "log: .*valid boolean"),
        (f"{ONE}\nobjective: []", 2, "give a validation measure first"),
        ("- a list", 1, "must be"),
    ],
)
def test_invalid_space_is_refused_with_file_line_and_remedy(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'space.yaml'}, line {line}: ")


@pytest.mark.parametrize(
    ("fixed", "search"),
    [
        ("frames: 8, segment_jitter: true", "n_s: {choice: [1, 2]}"),
        ("frames: 8", "segment_jitter: {choice: [false, true]}"),
        ("segment_jitter: true", "frames: {choice: [4, 8]}\n  n_s: {choice: [1]}"),
        ("n_s: 1", "frames: {choice: [4, 8]}\n  segment_jitter: {choice: [false, true]}"),
        ("n_s: 0", "eta: {choice: [0.0, 4.0]}\n  method: {choice: [stop, vpt-deep]}"),
    ],
)
def test_setting_can_depend_on_a_fixed_or_a_searched_one(
    tmp_path: Path, fixed: str, search: str
) -> None:
    space = _read(tmp_path, f"fixed: {{{fixed}}}\nsearch:\n  {search}\nalgorithm: tpe\ntrials: 3")
    drawn = sample_settings(space, {}, 0, [])
    assert drawn is not None
    space.experiment(drawn)


def test_point_around_can_depend_on_a_fixed_setting(tmp_path: Path) -> None:
    text = """
algorithm: one-at-a-time
fixed: {frames: 4}
around: {segment_jitter: false}
search: {segment_jitter: {grid: [false, true]}}
"""
    assert _read(tmp_path, text).points() == [{"segment_jitter": False}, {"segment_jitter": True}]


@pytest.mark.parametrize(("depth", "active"), [(None, False), (2, True), (1, False)])
def test_none_is_neither_above_nor_below_a_bound(
    tmp_path: Path, depth: int | None, active: bool
) -> None:
    text = """
search:
  depth: {choice: [1, 2, null]}
  share: {choice: [false, true], when: {depth: {above: 1}}}
"""
    assert _read(tmp_path, text).active("share", {"depth": depth}) is active


def test_templates_have_one_form_in_every_part_of_a_space(tmp_path: Path) -> None:
    text = """
algorithm: tpe
trials: 3
search:
  templates: {choice: [default, ensemble]}
  context_tokens: {choice: [0, 4], when: {templates: ensemble}}
points_to_evaluate: [{templates: ensemble, context_tokens: 4}, {templates: [default]}]
"""
    space = _read(tmp_path, text)
    first, second = (sample_settings(space, point, 0, []) for point in space.points_to_evaluate)
    assert first == {"templates": "ensemble", "context_tokens": 4}
    assert second == {"templates": "default"}
    text = "algorithm: one-at-a-time\naround: {templates: default}\n"
    text += "search: {templates: {grid: [default, ensemble]}}"
    assert _read(tmp_path, text).points() == [{"templates": "default"}, {"templates": "ensemble"}]


def test_spaces_that_try_the_defaults_first_try_all_of_them() -> None:
    paths = [p for p in SWEEPS.glob("*.yaml") if "Tried first: the defaults" in p.read_text()]
    assert len(paths) == 7
    for path in paths:
        space = read_space(path)
        point, seed = planned(space, None, 0)[0]
        assert point.keys() == space.search.keys()
        drawn = sample_settings(space, point, seed, [])
        assert drawn == point
        tried = space.experiment(drawn).parameters()
        defaults = ExperimentConfig().parameters()
        assert {name: tried[name] for name in point} == {name: defaults[name] for name in point}


def test_examples_of_every_space_are_valid_experiments() -> None:
    for path in SWEEPS.glob("*.yaml"):
        space = read_space(path)
        for name, distribution in space.search.items():
            for value in distribution.examples():
                build_experiment({**space.fixed, name: value}, str(path))
