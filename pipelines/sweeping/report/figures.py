"""Figures of a sweep, as matplotlib draws them without a screen."""

import math
from collections.abc import Sequence
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

from ..space import Distribution, SearchSpace, is_minimised
from ..trials import Trial, TriedSettings
from .analysis import Importances
from .figure_style import (
    BLUE,
    GREY,
    ORANGE,
    PAGE,
    STYLE,
    label,
    value_text,
)


def draw_importances(found: Importances, objective: str) -> Figure:
    """A bar a setting, with its interval, and one for what they do together."""
    table = found.table[::-1]
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE / 2, 0.94 + 0.24 * len(table)), layout="constrained")
        axes = figure.subplots()
        names = [label(name) for name in table["setting"]]
        axes.barh("together,\nor noise", found.rest, color=GREY, height=0.6)
        axes.barh(names, table["importance"], color=BLUE, height=0.6)
        middle = table["importance"]
        # A resampled forest can lie wholly to one side of the one that is shown.
        reach = [(middle - table["low"]).clip(lower=0), (table["high"] - middle).clip(lower=0)]
        axes.errorbar(middle, names, xerr=reach, fmt="none", ecolor="black", capsize=2, lw=0.8)
        axes.set_xlim(0, 1)
        when = f" after epoch {found.after_epoch}" if found.after_epoch else ""
        axes.set_xlabel(f"share of the predicted variance of\n{label(objective)}{when}")
        axes.set_title(f"fANOVA over {found.trials} trials, 95% bootstrap", loc="left")
        axes.grid(axis="y", visible=False)
    return figure


def draw_slices(space: SearchSpace, trials: Sequence[Trial], best: TriedSettings) -> Figure:
    """The objective against each searched setting, a mark a trial."""
    objective, names = space.objectives[0], list(space.search)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.5 + 1.55 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, name in zip(grid.flat, names, strict=False):
            _draw_slice(axes, name, space.search[name], trials, best, objective)
        for axes in list(grid.flat)[len(names) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(label(objective))
        handles, texts = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside upper right", ncols=3)
    return figure


def _draw_slice(
    axes: Axes,
    name: str,
    distribution: Distribution,
    trials: Sequence[Trial],
    best: TriedSettings,
    objective: str,
) -> None:
    for state, marks in (
        ("stopped early", {"facecolors": "none", "edgecolors": GREY, "linewidths": 0.8}),
        ("finished", {"facecolors": BLUE, "edgecolors": "white", "linewidths": 0.4}),
    ):
        some = [one for one in trials if one.state == state and name in one.drawn]
        axes.scatter(
            [_place(distribution, one.drawn[name], one.number) for one in some],
            [one.value(objective) for one in some],
            s=18,
            label=state,
            **marks,
        )
    if name in best.drawn:
        place = _place(distribution, best.drawn[name], best.first.number)
        style = {"color": ORANGE, "edgecolors": "black", "linewidths": 0.5, "zorder": 3}
        axes.scatter([place], [best.value(objective)], s=80, marker="*", label="best", **style)
    axes.set_xlabel(label(name))
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


def _place(distribution: Distribution, value: Any, number: int) -> float:
    """Where a value stands: itself, or for a list its place, a little aside for each trial."""
    if not distribution.values:
        return float(value)
    return distribution.values.index(value) + 0.3 * (number * 0.618034 % 1 - 0.5)


def draw_parallel(
    space: SearchSpace, points: Sequence[TriedSettings], best: TriedSettings
) -> Figure:
    """A line a point through its settings, coloured by what it reached."""
    objective, names = space.objectives[0], list(space.search)
    values = [one.value(objective) or 0.0 for one in points]
    # A few trials that failed to learn would leave one colour for all others.
    low, high = np.percentile(values, [10, 100])
    scale = Normalize(low, high if high > low else low + 1e-9)
    colours = ScalarMappable(scale, "viridis_r" if is_minimised(objective) else "viridis")
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
        axes = figure.subplots()
        for one in sorted(points, key=lambda point: point.name == best.name):
            heights = [
                _height(space.search[name], one.drawn[name]) if name in one.drawn else np.nan
                for name in names
            ]
            is_best = one.name == best.name
            outline = [Stroke(linewidth=3.6, foreground="black"), Normal()] if is_best else None
            axes.plot(
                range(len(names)), heights, color=colours.to_rgba([one.value(objective)])[0],
                lw=2.2 if is_best else 0.9, alpha=1 if is_best else 0.75, path_effects=outline,
                ls="-" if one.first.state == "finished" else (0, (3, 2)), marker="o", ms=2.5,
            )  # fmt: skip
        _draw_scales(axes, space, names)
        axes.set_xlim(-0.25, len(names) - 0.6)
        axes.set_ylim(-0.09, 1.09)
        figure.colorbar(
            colours, ax=axes, label=label(objective), pad=0.01, fraction=0.035, extend="min"
        )
        line = f"point, the mean of {space.seeds} seeds" if space.seeds > 1 else "trial"
        text = f"a line a {line}; outlined: the best; dashed: stopped early"
        axes.set_title(text, loc="left", pad=8)
    return figure


def _draw_scales(axes: Axes, space: SearchSpace, names: list[str]) -> None:
    """An upright axis for every setting, with its values beside it."""
    axes.set_xticks(range(len(names)), [label(n).replace(" ", "\n") for n in names])
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place, name in enumerate(names):
        distribution = space.search[name]
        axes.axvline(place, color="black", lw=0.7, zorder=0)
        ends = distribution.values or (distribution.low, distribution.high)
        for value in ends:
            text = value_text(value) if distribution.values else f"{value:g}"
            axes.text(
                place + 0.05, _height(distribution, value), text, fontsize=6.5, va="center",
                zorder=4, bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip


def _height(distribution: Distribution, value: Any) -> float:
    """From 0 to 1 along the axis of a setting."""
    if distribution.values:
        return distribution.values.index(value) / max(1, len(distribution.values) - 1)
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def draw_history(
    space: SearchSpace, trials: Sequence[Trial], points: Sequence[TriedSettings]
) -> Figure:
    """What each trial reached in the order of the draws, and the best point so far."""
    objective = space.objectives[0]
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE / 2, 2.3), layout="constrained")
        axes = figure.subplots()
        finished = [one for one in trials if one.state == "finished"]
        stopped = [one for one in trials if one.state == "stopped early"]
        for some, colour, text in (
            (finished, BLUE, "finished"),
            (stopped, "none", "stopped early"),
        ):
            axes.scatter(
                [one.number for one in some], [one.value(objective) for one in some],
                s=16, c=colour, edgecolors=BLUE if colour == BLUE else GREY, label=text,
                linewidths=0.8,
            )  # fmt: skip
        ended = sorted((one.trials[-1].number, one.value(objective)) for one in points)
        values = np.array([value for _, value in ended], dtype=float)
        pick = np.minimum if is_minimised(objective) else np.maximum
        text = f"best mean of {space.seeds} seeds" if space.seeds > 1 else "best so far"
        axes.step(
            [number for number, _ in ended], pick.accumulate(values), where="post",
            color=ORANGE, label=text,
        )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="trial", ylabel=label(objective))
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.0)
    return figure


def draw_curves(space: SearchSpace, trials: Sequence[Trial], best: TriedSettings) -> Figure:
    """The objective epoch by epoch; a cross where the scheduler stopped a trial."""
    objective = space.objectives[0]
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE / 2, 2.3), layout="constrained")
        axes = figure.subplots()
        for one in sorted(trials, key=lambda trial: trial in best.trials):
            is_best = one in best.trials
            epochs = [row["epoch"] for row in one.curve if objective in row]
            values = [row[objective] for row in one.curve if objective in row]
            colour = ORANGE if is_best else GREY if one.state == "stopped early" else BLUE
            axes.plot(epochs, values, color=colour, lw=2 if is_best else 0.9, marker=".", ms=4)
            if one.state == "stopped early" and epochs:
                axes.plot(epochs[-1], values[-1], "x", color="black", ms=4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=label(objective))
        axes.set_title("orange: the best; crosses: stopped by ASHA", loc="left")
    return figure


def draw_front(
    space: SearchSpace, finished: Sequence[TriedSettings], front: Sequence[TriedSettings]
) -> Figure:
    """The first objective against each other one; the points of the Pareto front joined."""
    first, *others = space.objectives
    with rc_context(STYLE):
        figure = Figure(figsize=(min(PAGE, 3.5 * len(others)), 2.6), layout="constrained")
        grid = figure.subplots(1, len(others), squeeze=False, sharey=True)
        for axes, other in zip(grid[0], others, strict=True):
            axes.scatter(
                [one.value(other) for one in finished], [one.value(first) for one in finished],
                s=16, c=GREY, label="finished",
            )  # fmt: skip
            points = sorted((one.value(other) or 0.0, one.value(first) or 0.0) for one in front)
            axes.plot(*zip(*points, strict=True), "o-", color=ORANGE, ms=5, label="Pareto front")
            for one in front:
                where = (one.value(other) or 0.0, one.value(first) or 0.0)
                number = str(one.first.number)
                axes.annotate(number, where, xytext=(4, 4), textcoords="offset points", fontsize=7)
            axes.set_xlabel(label(other))
        grid[0, 0].set_ylabel(label(first))
        grid[0, 0].legend(loc="best")
    return figure


def draw_sensitivity(space: SearchSpace, found: dict[str, pd.DataFrame], note: str) -> Figure:
    """A panel a setting: mean over the seeds, its interval, and every seed as a dot."""
    objective = space.objectives[0]
    drawn = {name: table for name, table in found.items() if len(table)}
    columns = min(4, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.5 + 1.9 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, (name, table) in zip(grid.flat, drawn.items(), strict=False):
            _draw_curve(axes, name, table, space.around[name])
        for axes in list(grid.flat)[len(drawn) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(label(objective))
        if not is_minimised(objective):  # a share; Student's interval knows no upper end
            grid[0, 0].set_ylim(top=min(grid[0, 0].get_ylim()[1], 1.0))
        figure.suptitle(note, fontsize=8, x=0.01, ha="left")
    return figure


def _draw_curve(axes: Axes, name: str, table: pd.DataFrame, centre: Any) -> None:
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in table["value"])
    places = table["value"].tolist() if numeric else list(range(len(table)))
    held = [place for place, v in zip(places, table["value"], strict=True) if v == centre]
    if held:
        axes.axvline(held[0], color=GREY, lw=0.8, ls=":")
    axes.fill_between(places, table["low"], table["high"], color=BLUE, alpha=0.18, lw=0)
    axes.plot(places, table["mean"], "o-", color=BLUE, ms=3.5, lw=1.2)
    for place, values in zip(places, table["values"], strict=True):
        if len(values) > 1:
            axes.plot([place] * len(values), values, ".", color="black", ms=2.5, alpha=0.6)
    if not numeric:
        axes.set_xticks(places, [value_text(value) for value in table["value"]])
    axes.set_xlabel(label(name))
