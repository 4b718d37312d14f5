"""report.md of a sweep: what was searched, what was found, how far to trust it, how to go on."""

import math
import shlex
from pathlib import Path

import pandas as pd

from pipelines.command_line import spell_out
from pipelines.environment import git_commit
from pipelines.sweep_analysis import FEW_PER_SETTING, Importances, importances, sensitivity
from pipelines.sweep_figures import (
    draw_curves,
    draw_front,
    draw_history,
    draw_importances,
    draw_parallel,
    draw_sensitivity,
    draw_slices,
)
from pipelines.sweep_results import BEST, SweepResult
from pipelines.sweep_search import Search
from pipelines.sweep_style import save
from pipelines.sweep_trials import Point, Trials
from pipelines.sweep_words import condition, describe, short, terms
from stop_core.cache.files import write_whole

REPORT = "report.md"
FIGURES = "figures"


class Report:
    """Writes the figures and the report of a sweep whose trials have ended."""

    def __init__(self, search: Search, trials: Trials, result: SweepResult, command: str) -> None:
        self.search = search
        self.space = search.space
        self.objective = search.space.objectives[0]
        self.trials = trials
        self.result = result
        self.command = command
        self.confirmed: pd.DataFrame | None = None
        """Of the last `--confirm`: a row a seed."""

    def write(self) -> Path:
        """Writes all of it; returns the path of the report."""
        parts = [self._head(), self._best()]
        if self.confirmed is not None:
            parts.append(self._confirmation(self.confirmed))
        if self.result.front:
            parts.append(self._front())
        parts += self._one_at_a_time() if self.space.around else self._search_figures()
        parts += [self._others(), self._space(), self._go_on()]
        path = self.search.folder / REPORT
        write_whole(path, "\n\n".join(part for part in parts if part) + "\n")
        return path

    def _head(self) -> str:
        states, seeds = [trial.state for trial in self.trials.all], self.space.seeds
        counts = [
            f"{states.count(state)} {state}"
            for state in ("finished", "stopped early", "failed")
            if state in states
        ]
        how = {
            "grid": "every point of the grid" + (f", {seeds} seeds a point" if seeds > 1 else ""),
            "random": "random draws",
            "tpe": f"Optuna's TPE, the first {self.space.startup_trials} draws at random",
            "one-at-a-time": f"one setting at a time, {seeds} seeds a point",
        }[self.space.algorithm]
        asha = self.space.scheduler
        stopping = (
            f"ASHA (grace period {asha.grace_period}, one in {asha.reduction_factor} goes on)"
            if asha
            else "none; every trial trains all its epochs"
        )
        return (
            f"# Sweep {self.search.name}\n\n"
            f"- **Data**: {self.search.dataset}, {self.search.cache}\n"
            f"- **Search**: {how}; seed {self.search.seed}\n"
            f"- **Early stopping**: {stopping}\n"
            f"- **Objective**: {', '.join(f'`{o}`' for o in self.space.objectives)}, on the "
            "validation split; the test split was not looked at\n"
            f"- **Trials**: {len(states)} ({', '.join(counts)})\n"
            f"- **Code**: git {git_commit()}"
        )

    def _best(self) -> str:
        best = self.result.best
        value = best.value(self.objective) or 0.0
        seeds = self.space.seeds
        which = ", ".join(one.name for one in best.trials)
        if seeds > 1:
            spread = pd.Series([one.value(self.objective) for one in best.trials]).std(ddof=1)
            which = f"mean of {seeds} seeds, standard deviation {spread:.4f}; {which}"
        lines = [
            "## Best settings",
            f"**{self.objective} {value:.4f}** ({which}): {describe(best.drawn)}",
        ]
        ranked = self.trials.ranked(self.objective)
        median = float(pd.Series([one.value(self.objective) for one in ranked]).median())
        finished = "points" if seeds > 1 else "trials"
        lines.append(
            f"That is {abs(value - median):.4f} better than the median of the {len(ranked)} "
            f"finished {finished} ({median:.4f})."
        )
        if left := self._incomplete():
            lines.append(
                f"Not compared, since not all of their {seeds} seeds finished: {'; '.join(left)}."
            )
        if start := self._start():
            reached = start.value(self.objective)
            if start.name == best.name:
                lines.append("It is what was tried first: the search has won nothing over it.")
            elif reached is not None:
                kept = "" if start.first.state == "finished" else f" ({start.first.state})"
                lines.append(
                    f"What was tried first ({start.name}{kept}) reached {reached:.4f}: the search "
                    f"has won {abs(value - reached):.4f} over it."
                )
        lines.append(
            "The best of many trials looks better on validation than it is: the number above is "
            f"of the {'seeds' if seeds > 1 else 'seed'} and the videos that chose it. `--confirm` "
            "retrains it on other seeds."
        )
        return "\n\n".join(lines)

    def _start(self) -> Point | None:
        """The point that the report compares with: one that was given, or the centre."""
        if not (self.space.points_to_evaluate or self.space.around):
            return None
        return next((one for one in self._points() if one.first.number == 0), None)

    def _points(self) -> list[Point]:
        """The finished points; without seeds, also trials that were stopped on their way."""
        if self.space.seeds > 1:
            return self.trials.points()
        return [Point((one,)) for one in self.trials.all if one.value(self.objective) is not None]

    def _incomplete(self) -> list[str]:
        """The settings that some seeds have finished, but not all."""
        compared = [trial for point in self.trials.points() for trial in point.trials]
        left = [one for one in self.trials.all if one.state == "finished" and one not in compared]
        return list(dict.fromkeys(describe(one.drawn) for one in left))

    def _confirmation(self, frame: pd.DataFrame) -> str:
        trial, best = frame["trial"].iloc[0], self.result.best.name
        lines = ["## Confirmation"]
        if trial != best:
            lines.append(
                f"**These are the settings of {trial}, which was the best before; those of {best} "
                "are not confirmed yet.** `--confirm` does it."
            )
        lines.append(
            f"The settings of {trial}, retrained on {len(frame)} seeds that the search did not "
            "use; the test split was looked at here for the first time:"
        )
        rows = ["| measure | mean | standard deviation | seeds |", "|---|---:|---:|---|"]
        for name in frame:
            if "/" not in str(name):
                continue
            values = frame[name].astype(float)
            spread = f"{values.std(ddof=1):.4f}" if len(values) > 1 else "-"
            each = ", ".join(f"{value:.4f}" for value in values)
            rows.append(f"| {name} | {values.mean():.4f} | {spread} | {each} |")
        return "\n\n".join([*lines, "\n".join(rows)])

    def _front(self) -> str:
        figure = draw_front(self.space, self.trials.points(), self.result.front)
        self._save(figure, "pareto")
        names = self.space.objectives
        rows = [
            f"| trial | {' | '.join(names)} | settings |",
            f"|---|{'---:|' * len(names)}---|",
        ]
        for one in self.result.front:
            values = " | ".join(short(one.value(name)) for name in names)
            rows.append(f"| {one.name} | {values} | {describe(one.drawn)} |")
        note = (
            "Nothing that finished is better than one of these in every objective. Each has its "
            "file for `train.py --config` in `pareto/`."
        )
        if self.space.seeds > 1:
            note += f" A row is the mean of {self.space.seeds} seeds, under the name of the first."
        if "step_seconds" in names:
            note += (
                " Step times were taken while other trials ran on the same machine: compare "
                "them only within this sweep, and use `--max-concurrent 1` for cleaner ones."
            )
        return "\n\n".join(["## Pareto front", note, "\n".join(rows), _shown("pareto")])

    def _one_at_a_time(self) -> list[str]:
        found = sensitivity(self.search, self.trials)
        seeds = self.space.seeds
        interval = (
            f"95% interval of the mean (Student, {seeds} seeds, dots)"
            if seeds > 1
            else "95% bootstrap over the validation videos, one seed"
        )
        note = f"band: {interval}; dotted: the value that the others are varied at"
        self._save(draw_sensitivity(self.space, found, note), "sensitivity")
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
        return ["## Sensitivity", _shown("sensitivity"), few, "\n".join(rows)]

    def _search_figures(self) -> list[str]:
        shown = [one for one in self.trials.all if one.value(self.objective) is not None]
        parts = ["## How the settings act"]
        found = importances(self.search, self.trials)
        parts.append(self._importances(found))
        self._save(draw_slices(self.space, shown, self.result.best), "slices")
        parts.append(_shown("slices"))
        self._save(draw_parallel(self.space, self._points(), self.result.best), "parallel")
        parts.append(_shown("parallel"))
        self._save(draw_history(self.space, shown, self.trials.ranked(self.objective)), "history")
        parts += ["## How the search went", _shown("history")]
        if self.space.scheduler:
            self._save(draw_curves(self.space, shown, self.result.best), "curves")
            parts.append(_shown("curves"))
        return parts

    def _importances(self, found: Importances | None) -> str:
        if found is None:
            return "Too few trials, or too alike, to say which setting matters."
        self._save(draw_importances(found, self.objective), "importances")
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
            f"fANOVA importances of {self.objective} {basis}, {found.trials} trials: of the "
            "variance that a forest predicts from the settings, the share of one setting alone."
        ]
        if self.space.seeds > 1:
            lines.append("What the seeds of a point differ in is averaged, and is no part of it.")
        if found.few:
            lines.append(
                f"**Warning**: {found.trials} trials are few for {len(found.table)} settings "
                f"(at least {FEW_PER_SETTING} a setting would be wanted, "
                f"{FEW_PER_SETTING * len(found.table)} in all). The intervals show how little "
                "is known; draw no conclusion from the order of the bars."
            )
        if found.left_out:
            lines.append(
                f"Not judged, since not every trial has them: {', '.join(found.left_out)}."
            )
        return "\n\n".join([*lines, "\n".join(rows), _shown("importances")])

    def _others(self) -> str:
        """The trials that did not finish, and why."""
        lines = []
        stopped = [one for one in self.trials.all if one.state == "stopped early"]
        if stopped:
            lines.append("Stopped early by ASHA:\n")
            lines += [
                f"- {one.name} after epoch {one.epochs}, at {short(one.value(self.objective))}: "
                f"{describe(one.drawn)}"
                for one in stopped
            ]
        failed = [one for one in self.trials.all if one.state == "failed"]
        if failed:
            lines.append("\nFailed; `--retry-failed` tries them again:\n")
            lines += [f"- {one.name}: {one.reason} ({describe(one.drawn)})" for one in failed]
        return "\n".join(["## Trials that did not finish", "", *lines]) if lines else ""

    def _space(self) -> str:
        rows = ["## What was searched", "", "| setting | drawn from | only when |", "|---|---|---|"]
        for name, distribution in self.space.search.items():
            when = "; ".join(condition(one) for one in distribution.when)
            rows.append(f"| {name} | {terms(distribution)} | {when} |")
        fixed = ", ".join(f"{name} {short(value)}" for name, value in self.space.fixed.items())
        return "\n".join(rows) + f"\n\nFixed: {fixed}."

    def _go_on(self) -> str:
        folder = self.search.folder
        python = "python pipelines"
        # With grids, every point of them is drawn for so often.
        more = 2 * math.ceil(len(self.trials.all) / len(self.space.points()))
        output = shlex.join(["--output", str(self.search.output)])
        where = " ".join([output, *spell_out(self.search.resources)])
        lines = [
            "## Going on",
            "```sh",
            "# train and test the best settings",
            f"{python}/train.py --config {shlex.quote(str(folder / BEST))} {where}",
            "# retrain them on five other seeds, and test those",
            f"{self.command} --confirm 5",
        ]
        if self.space.algorithm in ("random", "tpe"):
            lines += ["# draw more: the same sweep goes on", f"{self.command} --trials {more}"]
        lines.append("```")
        return "\n".join(lines)

    def _save(self, figure, name: str) -> None:  # type: ignore[no-untyped-def]
        save(figure, self.search.folder / FIGURES / f"{name}.png")


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def _shown(name: str) -> str:
    return f"![{name}]({FIGURES}/{name}.png)"
