"""report.md of a sweep: what was searched, what was found, how far to trust it, how to go on."""

import math
import shlex
from pathlib import Path

import pandas as pd

from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import in_markdown

from ...cli.options import spell_out
from ...tracking.environment import git_commit
from ..results import BEST, SweepResult
from ..search import Search
from ..trials import Trials, TriedSettings
from ..wording import condition, describe_settings, short, terms
from .effects import effects, measured_points
from .figure_style import show_figure
from .figures import draw_front

REPORT = "report.md"


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
        parts += effects(self.search, self.trials, self.result)
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
            f"- **Data**: {in_markdown(f'{self.search.dataset}, {self.search.cache}')}\n"
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
            f"**{self.objective} {value:.4f}** ({which}): "
            f"{in_markdown(describe_settings(best.drawn))}",
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

    def _start(self) -> TriedSettings | None:
        """The point that the report compares with: one that was given, or the centre."""
        if not (self.space.points_to_evaluate or self.space.around):
            return None
        return next(
            (one for one in measured_points(self.search, self.trials) if one.first.number == 0),
            None,
        )

    def _incomplete(self) -> list[str]:
        """The settings that some seeds have finished, but not all."""
        compared = [trial for point in self.trials.points() for trial in point.trials]
        left = [one for one in self.trials.all if one.state == "finished" and one not in compared]
        return list(dict.fromkeys(in_markdown(describe_settings(one.drawn)) for one in left))

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
        line = show_figure(figure, self.search.folder, "pareto")
        names = self.space.objectives
        rows = [
            f"| trial | {' | '.join(names)} | settings |",
            f"|---|{'---:|' * len(names)}---|",
        ]
        for one in self.result.front:
            values = " | ".join(short(one.value(name)) for name in names)
            rows.append(f"| {one.name} | {values} | {in_markdown(describe_settings(one.drawn))} |")
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
        return "\n\n".join(["## Pareto front", note, "\n".join(rows), line])

    def _others(self) -> str:
        """The trials that did not finish, and why."""
        lines = []
        stopped = [one for one in self.trials.all if one.state == "stopped early"]
        if stopped:
            lines.append("Stopped early by ASHA:\n")
            lines += [
                f"- {one.name} after epoch {one.epochs}, at {short(one.value(self.objective))}: "
                f"{in_markdown(describe_settings(one.drawn))}"
                for one in stopped
            ]
        failed = [one for one in self.trials.all if one.state == "failed"]
        if failed:
            lines.append("\nFailed; `--retry-failed` tries them again:\n")
            lines += [
                f"- {one.name}: {in_markdown(one.reason)} "
                f"({in_markdown(describe_settings(one.drawn))})"
                for one in failed
            ]
        return "\n".join(["## Trials that did not finish", "", *lines]) if lines else ""

    def _space(self) -> str:
        rows = ["## What was searched", "", "| setting | drawn from | only when |", "|---|---|---|"]
        for name, distribution in self.space.search.items():
            when = "; ".join(condition(one) for one in distribution.when)
            rows.append(f"| {name} | {in_markdown(terms(distribution))} | {in_markdown(when)} |")
        fixed = ", ".join(f"{name} {short(value)}" for name, value in self.space.fixed.items())
        return "\n".join(rows) + f"\n\nFixed: {in_markdown(fixed)}."

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
