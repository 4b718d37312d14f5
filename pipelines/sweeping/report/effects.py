"""The part of a sweep's report that says how the settings act, in figures and in numbers."""

import math

from ..results import SweepResult
from ..search import Search
from ..trials import Trials, TriedSettings
from ..wording import short
from .analysis import (
    FEW_PER_SETTING,
    Importances,
    importances,
    sensitivity,
)
from .figure_style import show_figure
from .figures import (
    draw_curves,
    draw_history,
    draw_importances,
    draw_parallel,
    draw_sensitivity,
    draw_slices,
)


def effects(search: Search, trials: Trials, result: SweepResult) -> list[str]:
    """The sections, as Markdown; their figures are written beside."""
    if search.space.around:
        return _one_at_a_time(search, trials)
    return _search_figures(search, trials, result.best)


def measured_points(search: Search, trials: Trials) -> list[TriedSettings]:
    """The finished points; without seeds, also trials that were stopped on their way."""
    if search.space.seeds > 1:
        return trials.points()
    return [
        TriedSettings((one,))
        for one in trials.all
        if one.value(search.space.objectives[0]) is not None
    ]


def _one_at_a_time(search: Search, trials: Trials) -> list[str]:
    found = sensitivity(search, trials)
    seeds = search.space.seeds
    interval = (
        f"95% interval of the mean (Student, {seeds} seeds, dots)"
        if seeds > 1
        else "95% bootstrap over the validation videos, one seed"
    )
    note = f"band: {interval}; dotted: the value that the others are varied at"
    figure = show_figure(draw_sensitivity(search.space, found, note), search.folder, "sensitivity")
    rows = ["| setting | value | mean | 95% interval | seeds |", "|---|---:|---:|---|---:|"]
    for name, table in found.items():
        rows += [
            f"| {name} | {short(row['value'])} | {row['mean']:.4f} | "
            f"{_interval(row['low'], row['high'])} | {row['seeds']} |"
            for row in table.to_dict("records")
        ]
    few = (
        f"The mean over {seeds} seeds is known only to within its band: values whose bands "
        "overlap do not differ on this evidence."
        if seeds > 1
        else "One seed says nothing of the spread between seeds: give `seeds` in the space."
    )
    return ["## Sensitivity", figure, few, "\n".join(rows)]


def _search_figures(search: Search, trials: Trials, best: TriedSettings) -> list[str]:
    space, folder, objective = search.space, search.folder, search.space.objectives[0]
    shown = [one for one in trials.all if one.value(objective) is not None]
    parts = [
        "## How the settings act",
        _importances(search, importances(search, trials)),
        show_figure(draw_slices(space, shown, best), folder, "slices"),
        show_figure(
            draw_parallel(space, measured_points(search, trials), best), folder, "parallel"
        ),
        "## How the search went",
        show_figure(draw_history(space, shown, trials.ranked(objective)), folder, "history"),
    ]
    if space.scheduler:
        parts.append(show_figure(draw_curves(space, shown, best), folder, "curves"))
    return parts


def _importances(search: Search, found: Importances | None) -> str:
    if found is None:
        return "Too few trials, or too alike, to say which setting matters."
    objective = search.space.objectives[0]
    figure = show_figure(draw_importances(found, objective), search.folder, "importances")
    rows = ["| setting | importance | 95% interval |", "|---|---:|---|"]
    rows += [
        f"| {name} | {share:.2f} | {low:.2f} to {high:.2f} |"
        for name, share, low, high in found.table.itertuples(index=False)
    ]
    rows.append(f"| together (interactions), or noise | {found.rest:.2f} | |")
    basis = (
        f"after epoch {found.after_epoch}, where all can be compared"
        if found.after_epoch
        else "of the finished trials"
    )
    lines = [
        f"fANOVA importances of {objective} {basis}, {found.trials} trials: of the "
        "variance that a forest predicts from the settings, the share of one setting alone."
    ]
    if search.space.seeds > 1:
        lines.append("What the seeds of a point differ in is averaged, and is no part of it.")
    if found.few:
        lines.append(
            f"**Warning**: {found.trials} trials are few for {len(found.table)} settings "
            f"(at least {FEW_PER_SETTING} a setting would be wanted, "
            f"{FEW_PER_SETTING * len(found.table)} in all). The intervals show how little "
            "is known; draw no conclusion from the order of the bars."
        )
    if found.left_out:
        lines.append(f"Not judged, since not every trial has them: {', '.join(found.left_out)}.")
    return "\n\n".join([*lines, "\n".join(rows), figure])


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
