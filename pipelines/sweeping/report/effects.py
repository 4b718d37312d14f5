"""The sections of a sweep's report about the effects of the settings."""

import math

from ..results import SweepResult
from ..search import Search
from ..trials import Trials, TriedSettings
from ..wording import short
from .analysis import FEW_PER_SETTING, Importances, importances, sensitivity
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
    """Returns the sections as Markdown, and writes their figures."""
    if search.space.around:
        return _one_at_a_time(search, trials)
    space, folder, objective = search.space, search.folder, search.space.objectives[0]
    shown = [one for one in trials.all if one.value(objective) is not None]
    points, best = measured_points(search, trials), result.best
    parts = [
        "## Effects of the settings",
        _importances(search, importances(search, trials)),
        show_figure(draw_slices(space, shown, best), folder, "slices"),
        show_figure(draw_parallel(space, points, best), folder, "parallel"),
        "## History of the search",
        show_figure(draw_history(space, shown, trials.ranked(objective)), folder, "history"),
    ]
    if space.scheduler:
        parts.append(show_figure(draw_curves(space, shown, best), folder, "curves"))
    return parts


def measured_points(search: Search, trials: Trials) -> list[TriedSettings]:
    """Returns the finished points; without seeds, also trials that were stopped early."""
    if search.space.seeds > 1:
        return trials.points()
    objective = search.space.objectives[0]
    return [TriedSettings((one,)) for one in trials.all if one.value(objective) is not None]


def _one_at_a_time(search: Search, trials: Trials) -> list[str]:
    tables, seeds = sensitivity(search, trials), search.space.seeds
    interval = "95% bootstrap over the validation videos, one seed"
    few = "One seed says nothing about the spread between seeds: set `seeds` in the space."
    if seeds > 1:
        interval = f"95% interval of the mean (Student, {seeds} seeds, dots)"
        few = (
            f"The mean over {seeds} seeds is uncertain within its band: values whose bands overlap "
            "do not differ on this evidence."
        )
    note = f"band: {interval}; dotted: the value while other settings vary"
    figure = show_figure(draw_sensitivity(search.space, tables, note), search.folder, "sensitivity")
    rows = ["| setting | value | mean | 95% interval | seeds |", "|---|---:|---:|---|---:|"]
    for name, table in tables.items():
        for row in table.to_dict("records"):
            low, high = row["low"], row["high"]
            band = "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
            rows.append(
                f"| {name} | {short(row['value'])} | {row['mean']:.4f} | {band} | {row['seeds']} |"
            )
    return ["## Sensitivity", figure, few, "\n".join(rows)]


def _importances(search: Search, found: Importances | None) -> str:
    if found is None:
        return "Too few trials, or too similar ones, for importances of the settings."
    objective = search.space.objectives[0]
    basis = (
        f"after epoch {found.after_epoch}, which all of them reached"
        if found.after_epoch
        else "of the finished trials"
    )
    parts = [
        f"fANOVA importances of {objective} {basis}, {found.trials} trials: the share of each "
        "setting by itself in the variance that a forest predicts from the settings."
    ]
    if search.space.seeds > 1:
        parts.append("Differences between the seeds of a point are averaged, and not included.")
    if found.few:
        parts.append(
            f"**Warning**: {found.trials} trials are few for {len(found.table)} settings "
            f"(use at least {FEW_PER_SETTING} per setting, {FEW_PER_SETTING * len(found.table)} in "
            "all). The intervals show the uncertainty; draw no conclusion from the order of the "
            "bars."
        )
    if found.left_out:
        parts.append(f"Not included, as some trials do not have them: {', '.join(found.left_out)}.")
    rows = ["| setting | importance | 95% interval |", "|---|---:|---|"]
    rows += [
        f"| {name} | {share:.2f} | {low:.2f} to {high:.2f} |"
        for name, share, low, high in found.table.itertuples(index=False)
    ]
    rows.append(f"| interactions, or noise | {found.rest:.2f} | |")
    figure = show_figure(draw_importances(found, objective), search.folder, "importances")
    return "\n\n".join([*parts, "\n".join(rows), figure])
