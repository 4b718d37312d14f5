"""The figures of a sweep show every trial and every value."""

import numpy as np
import pandas as pd
import pytest

from pipelines.sweeping.report.analysis import Importances
from pipelines.sweeping.report.figures import (
    draw_curves,
    draw_front,
    draw_history,
    draw_importances,
    draw_parallel,
    draw_sensitivity,
    draw_slices,
)
from pipelines.sweeping.space import Distribution, SearchSpace
from pipelines.sweeping.trials import Trial, TriedSettings


@pytest.mark.parametrize("values", [(1, None, 2), (1, 4, 2), ("a", "b", "c")])
def test_curve_has_a_point_per_value_and_a_line_at_the_held_one(
    values: tuple[object, ...],
) -> None:
    setting = Distribution(values, is_grid=True)
    space = SearchSpace(("val/top1",), {}, {"depth": setting}, around={"depth": values[1]})
    table = pd.DataFrame(
        {"value": pd.Series(values, dtype=object), "mean": [0.5, 0.6, 0.7],
         "low": 0.4, "high": 0.8, "values": [[0.5, 0.5]] * 3}
    )  # fmt: skip
    (axes, *_) = draw_sensitivity(space, {"depth": table}).axes
    dotted, curve = axes.lines[:2]
    assert len(curve.get_xdata()) == 3
    assert dotted.get_linestyle() == ":"
    assert dotted.get_xdata()[0] == curve.get_xdata()[1]


def test_bars_of_the_importances_add_up_to_one() -> None:
    table = pd.DataFrame(
        {"setting": ["n_s", "eta"], "importance": [0.5, 0.2], "low": 0.1, "high": 0.6}
    )
    (axes,) = draw_importances(Importances(table, 0.3, 12, None, ()), "val/top1").axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(1.0)


SPACE = SearchSpace(
    ("val/top1", "step_seconds"),
    {},
    {"n_s": Distribution((1, 2, 4)), "alpha": Distribution(low=0.0, high=1.0)},
)


def _trials() -> list[Trial]:
    """Six finished trials and a stopped one, which has no alpha."""
    found = []
    for number, top1 in enumerate((0.5, 0.4, 0.7, 0.6, 0.7, 0.3, 0.2)):
        drawn = {"n_s": (1, 2, 4)[number % 3], "alpha": number / 8}
        curve = [
            {"epoch": float(e), "val/top1": top1 * e / 2, "step_seconds": 1.0 + number % 4}
            for e in (1, 2)
        ]
        found.append(Trial(number, drawn, 0, "finished", curve))
    found[-1].state = "stopped early"
    del found[-1].drawn["alpha"]
    return found


def test_every_trial_is_drawn_and_the_best_is_marked() -> None:
    trials = _trials()
    best = TriedSettings((trials[2],))
    n_s, alpha = draw_slices(SPACE, trials, best).axes[:2]
    marks = [np.asarray(some.get_offsets()) for some in n_s.collections]
    assert sorted(np.concatenate(marks[:2])[:, 1]) == sorted(
        one.value("val/top1") or 0.0 for one in trials
    )
    assert sum(len(np.asarray(some.get_offsets())) for some in alpha.collections[:2]) == 6
    assert np.asarray(alpha.collections[2].get_offsets()).tolist() == [[0.25, 0.7]]
    lines = draw_parallel(SPACE, [TriedSettings((one,)) for one in trials], best).axes[0].lines
    curves = draw_curves(SPACE, trials, best).axes[0].lines
    assert (
        len([line for line in lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"])
        == 7
    )
    assert len([line for line in curves if line.get_marker() == "."]) == len(trials)
    assert len([line for line in curves if line.get_marker() == "x"]) == 1


def test_best_so_far_never_gets_worse_and_ends_with_the_best() -> None:
    trials = _trials()
    points = [TriedSettings((one,)) for one in reversed(trials[:-1])]
    (best,) = draw_history(SPACE, trials, points).axes[0].lines
    assert best.get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
    assert best.get_ydata().tolist() == [0.5, 0.5, 0.7, 0.7, 0.7, 0.7]


def test_best_so_far_of_several_seeds_is_the_best_mean() -> None:
    trials = _trials()[:6]
    points = [TriedSettings(tuple(trials[start : start + 2])) for start in (0, 2, 4)]
    (best,) = draw_history(SPACE, trials, points).axes[0].lines
    assert best.get_xdata().tolist() == [1, 3, 5]
    assert best.get_ydata() == pytest.approx([0.45, 0.65, 0.65])


def test_front_is_a_line_among_all_finished_points() -> None:
    points = [TriedSettings((one,)) for one in _trials()[:-1]]
    front = [points[2], points[0]]
    (axes,) = draw_front(SPACE, points, front).axes
    assert len(np.asarray(axes.collections[0].get_offsets())) == len(points)
    assert np.asarray(axes.lines[0].get_xydata()).tolist() == [[1.0, 0.5], [3.0, 0.7]]
    assert sorted(text.get_text() for text in axes.texts) == ["0", "2"]
