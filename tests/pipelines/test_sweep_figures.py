"""A figure shows what was tried, every value of it."""

import pandas as pd
import pytest

from pipelines.sweep_analysis import Importances
from pipelines.sweep_figures import draw_importances, draw_sensitivity
from sweeps.space import Distribution, SearchSpace


@pytest.mark.parametrize("values", [(1, None, 2), (1, 4, 2), ("a", "b", "c")])
def test_a_curve_has_a_place_for_every_value_and_a_line_at_the_one_that_is_held(
    values: tuple[object, ...],
) -> None:
    setting = Distribution(values, is_grid=True)
    space = SearchSpace(("val/top1",), {}, {"depth": setting}, around={"depth": values[1]})
    table = pd.DataFrame(
        {"value": pd.Series(values, dtype=object), "mean": [0.5, 0.6, 0.7],
         "low": 0.4, "high": 0.8, "values": [[0.5, 0.5]] * 3}
    )  # fmt: skip
    (axes, *_) = draw_sensitivity(space, {"depth": table}, "a note").axes
    dotted, curve = axes.lines[:2]
    assert len(curve.get_xdata()) == 3
    assert dotted.get_linestyle() == ":"
    assert dotted.get_xdata()[0] == curve.get_xdata()[1]


def test_the_bars_of_the_importances_add_up_to_all_of_the_variance() -> None:
    table = pd.DataFrame(
        {"setting": ["n_s", "eta"], "importance": [0.5, 0.2], "low": 0.1, "high": 0.6}
    )
    (axes,) = draw_importances(Importances(table, 0.3, 12, None, ()), "val/top1").axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(1.0)
