"""Figures of a sweep, drawn by matplotlib without a display.

Optuna's own figures leave out trials that were stopped early, seeds, conditional settings and
intervals.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from stop_core.storage.escaping import in_figure

from ..space import Distribution, SearchSpace, is_minimised
from ..trials import State, Trial, TriedSettings
from .analysis import Importances

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"  # distinct to the colour-blind, and in print
PAGE = 7.0  # inches across the two columns of a paper
_STYLE: dict[Any, Any] = {  # matplotlib types its keys as a literal of some 300 names
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_SYMBOLS = {"n_s": "$N_s$", "alpha": r"$\alpha$", "beta": r"$\beta$", "eta": r"$\eta$"}


def label(name: str) -> str:
    """Returns the label of a setting or a measure, with the symbols of the paper."""
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    split, _, measure = name.rpartition("/")
    words = in_figure(measure).replace("_", " ")
    return f"{'validation ' if split == 'val' else ''}{words}"


def value_text(value: Any) -> str:
    """Returns the tick label of a value; None blocks or frames means all of them."""
    return "all" if value is None else in_figure(str(value))


_MARKS: dict[State, dict[str, Any]] = {
    "stopped early": {"facecolors": "none", "edgecolors": GREY, "linewidths": 0.8},
    "finished": {"facecolors": BLUE, "edgecolors": "white", "linewidths": 0.4},
}


def _value(one: Trial | TriedSettings, objective: str) -> float:
    value = one.value(objective)
    return math.nan if value is None else value


def _draw_trials(
    axes: Axes, trials: Sequence[Trial], place: Callable[[Trial], float], objective: str
) -> None:
    for state, marks in _MARKS.items():
        some = [one for one in trials if one.state == state]
        axes.scatter(
            [place(one) for one in some], [_value(one, objective) for one in some],
            s=18, label=state, **marks,
        )  # fmt: skip


@contextmanager
def _panels(
    count: int, width: float, height: float, vertical: str = ""
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yields a figure with panels in rows of four, and the shared style for the `with`.

    Sizes are in inches, of the whole figure and of a row of panels; labels and a title take half an
    inch more. `vertical` is the measure on the vertical axis, if it has one.
    """
    columns = min(4, count)
    rows = math.ceil(count / columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.5 + height * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in list(grid.flat)[count:]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(label(vertical))
        yield figure, list(grid.flat)[:count]


def draw_importances(found: Importances, objective: str) -> Figure:
    """Draws a bar per setting with its interval, and one for interactions."""
    table = found.table[::-1]
    with _panels(1, PAGE / 2, 0.44 + 0.24 * len(table)) as (figure, (axes,)):
        names = [label(name) for name in table["setting"]]
        middle = table["importance"]
        axes.barh("together,\nor noise", found.rest, color=GREY, height=0.6)
        axes.barh(names, middle, color=BLUE, height=0.6)
        # All resampled forests can be on one side of the forest of all trials.
        reach = [(middle - table["low"]).clip(lower=0), (table["high"] - middle).clip(lower=0)]
        axes.errorbar(middle, names, xerr=reach, fmt="none", ecolor="black", capsize=2, lw=0.8)
        axes.set_xlim(0, 1)
        when = f" after epoch {found.after_epoch}" if found.after_epoch else ""
        axes.set_xlabel(f"share of the predicted variance of\n{label(objective)}{when}")
        axes.set_title(f"fANOVA over {found.trials} trials, 95% bootstrap", loc="left")
        axes.grid(axis="y", visible=False)
    return figure


def draw_slices(space: SearchSpace, trials: Sequence[Trial], best: TriedSettings) -> Figure:
    """Draws the objective against each searched setting, with a mark per trial."""
    objective = space.objectives[0]
    with _panels(len(space.search), PAGE, 1.55, objective) as (figure, panels):
        for axes, (name, distribution) in zip(panels, space.search.items(), strict=True):
            place = _places(name, distribution)
            _draw_trials(axes, [one for one in trials if name in one.drawn], place, objective)
            if name in best.drawn:
                axes.scatter(
                    [place(best.first)], [_value(best, objective)], s=80, marker="*", label="best",
                    color=ORANGE, edgecolors="black", linewidths=0.5, zorder=3,
                )  # fmt: skip
            axes.set_xlabel(label(name))
            _scale_axis(axes, distribution)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper right", ncols=3)
    return figure


def _places(name: str, distribution: Distribution) -> Callable[[Trial], float]:
    def place(trial: Trial) -> float:
        if not distribution.values:
            return float(trial.drawn[name])
        # Spread around the place of the value, so that trials do not hide each other.
        aside = 0.3 * (trial.number * 0.618034 % 1 - 0.5)
        return distribution.values.index(trial.drawn[name]) + aside

    return place


def _scale_axis(axes: Axes, distribution: Distribution) -> None:
    if distribution.values:
        texts = [value_text(value) for value in distribution.values]
        axes.set_xticks(range(len(texts)), texts)
        axes.set_xlim(-0.6, len(texts) - 0.4)
        axes.grid(axis="x", visible=False)
    elif distribution.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        steps = MaxNLocator(4, steps=[1, 2, 5, 10], integer=distribution.is_whole)
        axes.xaxis.set_major_locator(steps)
        edge = 0.05 * (distribution.high - distribution.low)
        axes.set_xlim(distribution.low - edge, distribution.high + edge)


def draw_parallel(
    space: SearchSpace, points: Sequence[TriedSettings], best: TriedSettings
) -> Figure:
    """Draws a line per point through its settings, coloured by its objective."""
    objective, names = space.objectives[0], list(space.search)
    values = [_value(one, objective) for one in points]
    # Without the percentile, a few trials that failed to learn leave one colour for all others.
    low, high = np.percentile(values, [10, 100])
    scale = Normalize(low, high if high > low else low + 1e-9)
    colours = ScalarMappable(scale, "viridis_r" if is_minimised(objective) else "viridis")
    with _panels(1, PAGE, 2.5) as (figure, (axes,)):
        axes.grid(visible=False)
        for one in sorted(points, key=lambda point: point.name == best.name):
            heights = [
                _height(space.search[name], one.drawn[name]) if name in one.drawn else np.nan
                for name in names
            ]
            is_best = one.name == best.name
            outline = [Stroke(linewidth=3.6, foreground="black"), Normal()] if is_best else None
            axes.plot(
                range(len(names)), heights, color=colours.cmap(scale(_value(one, objective))),
                lw=2.2 if is_best else 0.9, alpha=1 if is_best else 0.75, path_effects=outline,
                ls="-" if one.first.state == "finished" else (0, (3, 2)), marker="o", ms=2.5,
            )  # fmt: skip
        _draw_scales(axes, space)
        axes.set_xlim(-0.25, len(names) - 0.6)
        axes.set_ylim(-0.09, 1.09)
        figure.colorbar(
            colours, ax=axes, label=label(objective), pad=0.01, fraction=0.035, extend="min"
        )
        line = f"point, the mean of {space.seeds} seeds" if space.seeds > 1 else "trial"
        text = f"a line per {line}; outlined: the best; dashed: stopped early"
        axes.set_title(text, loc="left", pad=8)
    return figure


def _draw_scales(axes: Axes, space: SearchSpace) -> None:
    """Draws an upright axis with its values for every setting."""
    axes.set_xticks(range(len(space.search)), [label(n).replace(" ", "\n") for n in space.search])
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place, distribution in enumerate(space.search.values()):
        axes.axvline(place, color="black", lw=0.7, zorder=0)
        for value in distribution.examples():
            text = value_text(value) if distribution.values else f"{value:g}"
            axes.text(
                place + 0.05, _height(distribution, value), text, fontsize=6.5, va="center",
                zorder=4, bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip


def _height(distribution: Distribution, value: Any) -> float:
    """Returns the place of a value on the axis of its setting, from 0 to 1."""
    if distribution.values:
        return distribution.values.index(value) / max(1, len(distribution.values) - 1)
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def draw_history(
    space: SearchSpace, trials: Sequence[Trial], points: Sequence[TriedSettings]
) -> Figure:
    """Draws the value of each trial in the order of the draws, and the best point so far."""
    objective = space.objectives[0]
    with _panels(1, PAGE / 2, 1.8, objective) as (figure, (axes,)):
        _draw_trials(axes, trials, lambda trial: trial.number, objective)
        ended = sorted((one.trials[-1].number, _value(one, objective)) for one in points)
        pick = np.minimum if is_minimised(objective) else np.maximum
        text = f"best mean of {space.seeds} seeds" if space.seeds > 1 else "best so far"
        axes.step(
            [number for number, _ in ended], pick.accumulate([value for _, value in ended]),
            where="post", color=ORANGE, label=text,
        )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("trial")
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.0)
    return figure


def draw_curves(space: SearchSpace, trials: Sequence[Trial], best: TriedSettings) -> Figure:
    """Draws the objective by epoch, with a cross where the scheduler stopped a trial."""
    objective = space.objectives[0]
    with _panels(1, PAGE / 2, 1.8, objective) as (figure, (axes,)):
        for one in sorted(trials, key=lambda trial: trial in best.trials):
            is_best = one in best.trials
            epochs = [row["epoch"] for row in one.curve if objective in row]
            values = [row[objective] for row in one.curve if objective in row]
            colour = ORANGE if is_best else GREY if one.state == "stopped early" else BLUE
            axes.plot(epochs, values, color=colour, lw=2 if is_best else 0.9, marker=".", ms=4)
            if one.state == "stopped early" and epochs:
                axes.plot(epochs[-1], values[-1], "x", color="black", ms=4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_title("orange: the best; crosses: stopped by ASHA", loc="left")
    return figure


def draw_front(
    space: SearchSpace, finished: Sequence[TriedSettings], front: Sequence[TriedSettings]
) -> Figure:
    """Draws the first objective against each other one, and a line through the Pareto front."""
    first, *others = space.objectives
    width = min(PAGE, 3.5 * len(others))
    with _panels(len(others), width, 2.1, first) as (figure, panels):
        for axes, other in zip(panels, others, strict=True):
            axes.scatter(
                [_value(one, other) for one in finished], [_value(one, first) for one in finished],
                s=16, c=GREY, label="finished",
            )  # fmt: skip
            points = sorted((_value(one, other), _value(one, first)) for one in front)
            axes.plot(*zip(*points, strict=True), "o-", color=ORANGE, ms=5, label="Pareto front")
            for one in front:
                axes.annotate(
                    str(one.first.number), (_value(one, other), _value(one, first)),
                    xytext=(4, 4), textcoords="offset points", fontsize=7,
                )  # fmt: skip
            axes.set_xlabel(label(other))
        panels[0].legend(loc="best")
    return figure


def draw_sensitivity(space: SearchSpace, found: dict[str, pd.DataFrame]) -> Figure:
    """Draws a panel per setting: mean over the seeds, its interval, and a dot per seed."""
    objective = space.objectives[0]
    interval = "95% bootstrap over the validation videos, one seed"
    if space.seeds > 1:
        interval = f"95% interval of the mean (Student, {space.seeds} seeds, dots)"
    drawn = {name: table for name, table in found.items() if len(table)}
    with _panels(len(drawn), PAGE, 1.9, objective) as (figure, panels):
        for axes, (name, table) in zip(panels, drawn.items(), strict=True):
            _draw_curve(axes, name, table, space.around[name])
        if not is_minimised(objective):  # a share; Student's interval has no upper bound
            panels[0].set_ylim(top=min(panels[0].get_ylim()[1], 1.0))
        note = f"band: {interval}; dotted: the value while other settings vary"
        figure.suptitle(note, fontsize=8, x=0.01, ha="left")
    return figure


def _draw_curve(axes: Axes, name: str, table: pd.DataFrame, centre: Any) -> None:
    values = table["value"].tolist()
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    places = values if numeric else list(range(len(values)))
    if centre in values:
        axes.axvline(places[values.index(centre)], color=GREY, lw=0.8, ls=":")
    axes.fill_between(places, table["low"], table["high"], color=BLUE, alpha=0.18, lw=0)
    axes.plot(places, table["mean"], "o-", color=BLUE, ms=3.5, lw=1.2)
    for place, seeds in zip(places, table["values"], strict=True):
        if len(seeds) > 1:
            axes.plot([place] * len(seeds), seeds, ".", color="black", ms=2.5, alpha=0.6)
    if not numeric:
        axes.set_xticks(places, [value_text(value) for value in values])
    axes.set_xlabel(label(name))
