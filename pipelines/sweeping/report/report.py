"""report.md of a sweep: its space, its best settings, their reliability, and how to continue."""

import math
import shlex
from pathlib import Path

import pandas as pd

from stop_core.storage.atomic import write_whole
from stop_core.storage.escaping import in_markdown

from ...cli.folders import command
from ...cli.options import spell_out
from ...tracking.direct_run import TrackedRun
from ...tracking.environment import git_commit
from ..confirm import CONFIRMATION
from ..results import BEST, PARETO, TRIALS, SweepResult
from ..search import Search
from ..space import Condition, Distribution
from ..trials import State, Trial, Trials, TriedSettings
from ..wording import describe_settings, short
from .effects import effects, measured_points
from .figure_style import REPORT_FIGURES, show_figure
from .figures import draw_front

REPORT = "report.md"


class Report:
    """Writes the figures and the report of a sweep whose trials have ended.

    Args:
        search: the sweep.
        trials: its trials.
        result: its result.
        command: the command line of the sweep.
        confirmed: the last confirmation, a row per seed; None if there is none.
    """

    def __init__(
        self,
        search: Search,
        trials: Trials,
        result: SweepResult,
        command: str,
        confirmed: pd.DataFrame | None = None,
    ) -> None:
        self.search = search
        self.space = search.space
        self.objective = search.space.objectives[0]
        self.trials = trials
        self.result = result
        self.command = command
        self.confirmed = confirmed

    def write(self) -> Path:
        """Writes the report and its figures; returns the path of the report."""
        parts = [self._head(), self._best()]
        if self.confirmed is not None:
            parts.append(self._confirmation(self.confirmed))
        if self.result.front:
            parts.append(self._front())
        parts += effects(self.search, self.trials, self.result)
        parts += [self._unfinished(), self._space(), self._next_steps()]
        path = self.search.folder / REPORT
        write_whole(path, "\n\n".join(part for part in parts if part) + "\n")
        return path

    def publish(self, tracked: TrackedRun) -> None:
        """Writes the report, and logs all results of the sweep to its MLflow run."""
        self.write()
        folder, result = self.search.folder, self.result
        for name in (BEST, TRIALS, REPORT):
            tracked.log_file(folder / name)
        if self.confirmed is not None:
            tracked.log_file(folder / CONFIRMATION)
        for inner, pattern in ((REPORT_FIGURES, "*.png"), (PARETO, "*.yaml")):
            for path in sorted((folder / inner).glob(pattern)):
                tracked.log_file(path, inner)
        tracked.log_table(result.trials, "trials.json")
        values = {f"best/{o}": result.best.value(o) for o in self.space.objectives}
        tracked.log_metrics({name: value for name, value in values.items() if value is not None})
        tracked.set_tags({"best_trial": result.best.name, "trials": len(self.trials.all)})

    def _head(self) -> str:
        seeds, asha = self.space.seeds, self.space.scheduler
        states: tuple[State, ...] = ("finished", "stopped early", "failed")
        counts = [
            f"{len(some)} {state}" for state in states if (some := self.trials.in_state(state))
        ]
        algorithm = {
            "grid": "every point of the grid" + (f", {seeds} seeds per point" if seeds > 1 else ""),
            "random": "random draws",
            "tpe": f"Optuna's TPE, the first {self.space.startup_trials} draws at random",
            "one-at-a-time": f"one setting at a time, {seeds} seeds per point",
        }[self.space.algorithm]
        stopping = "none; every trial trains all its epochs"
        if asha:
            stopping = (
                f"ASHA (grace period {asha.grace_period}, one in {asha.reduction_factor} continues)"
            )
        return (
            f"# Sweep {self.search.name}\n\n"
            f"- **Data**: {in_markdown(f'{self.search.dataset}, {self.search.cache}')}\n"
            f"- **Search**: {algorithm}; seed {self.search.seed}\n"
            f"- **Early stopping**: {stopping}\n"
            f"- **Objective**: {', '.join(f'`{o}`' for o in self.space.objectives)}, on the "
            "validation split; the search did not read the test split\n"
            f"- **Trials**: {len(self.trials.all)} ({', '.join(counts)})\n"
            f"- **Code**: git {git_commit()}"
        )

    def _best(self) -> str:
        best, seeds = self.result.best, self.space.seeds
        value = best.value(self.objective) or 0.0
        source = ", ".join(one.name for one in best.trials)
        if seeds > 1:
            spread = pd.Series([one.value(self.objective) for one in best.trials]).std(ddof=1)
            source = f"mean of {seeds} seeds, standard deviation {spread:.4f}; {source}"
        ranked = self.trials.ranked(self.objective)
        median = float(pd.Series([one.value(self.objective) for one in ranked]).median())
        parts = [
            "## Best settings",
            f"**{self.objective} {value:.4f}** ({source}): {_settings(best)}",
            f"That is {abs(value - median):.4f} better than the median of the {len(ranked)} "
            f"finished {'points' if seeds > 1 else 'trials'} ({median:.4f}).",
        ]
        compared = [trial for point in self.trials.points() for trial in point.trials]
        left = [one for one in self.trials.in_state("finished") if one not in compared]
        if left:
            settings = "; ".join(dict.fromkeys(map(_settings, left)))
            parts.append(f"Not compared, as not all of their {seeds} seeds finished: {settings}.")
        if start := self._start():
            reached = start.value(self.objective)
            if start.name == best.name:
                parts.append("It is the point that was tried first: the search found none better.")
            elif reached is not None:
                state = "" if start.first.state == "finished" else f" ({start.first.state})"
                parts.append(
                    f"The point that was tried first ({start.name}{state}) reached {reached:.4f}: "
                    f"the search gained {abs(value - reached):.4f} over it."
                )
        parts.append(
            "The best of many trials is overestimated on validation: the number above is from the "
            f"{'seeds' if seeds > 1 else 'seed'} and the videos by which it was chosen. "
            "`--confirm` retrains it on other seeds."
        )
        return "\n\n".join(parts)

    def _start(self) -> TriedSettings | None:
        """Returns the point to compare the best with: the first given one, or the centre."""
        if not (self.space.points_to_evaluate or self.space.around):
            return None
        points = measured_points(self.search, self.trials)
        return next((one for one in points if one.first.number == 0), None)

    def _confirmation(self, frame: pd.DataFrame) -> str:
        trial, best = frame["trial"].iloc[0], self.result.best.name
        parts = ["## Confirmation"]
        if trial != best:
            parts.append(
                f"**These are the settings of {trial}, which was the best before; those of {best} "
                "are not confirmed yet.** `--confirm` does it."
            )
        parts.append(
            f"The settings of {trial}, retrained on {len(frame)} seeds that the search did not "
            "use; the test split is read here for the first time:"
        )
        rows = ["| measure | mean | standard deviation | seeds |", "|---|---:|---:|---|"]
        for name in map(str, frame):
            if "/" in name:
                values = frame[name].astype(float)
                spread = f"{values.std(ddof=1):.4f}" if len(values) > 1 else "-"
                each = ", ".join(f"{value:.4f}" for value in values)
                rows.append(f"| {name} | {values.mean():.4f} | {spread} | {each} |")
        return "\n\n".join([*parts, "\n".join(rows)])

    def _front(self) -> str:
        figure = draw_front(self.space, self.trials.points(), self.result.front)
        names = self.space.objectives
        rows = [f"| trial | {' | '.join(names)} | settings |", f"|---|{'---:|' * len(names)}---|"]
        for one in self.result.front:
            values = " | ".join(short(one.value(name)) for name in names)
            rows.append(f"| {one.name} | {values} | {_settings(one)} |")
        note = (
            "No finished settings are better than one of these in every objective. `pareto/` has a "
            "file for `train.py --config` for each."
        )
        if self.space.seeds > 1:
            note += f" A row is the mean of {self.space.seeds} seeds, under the name of the first."
        if "step_seconds" in names:
            note += (
                " Step times were measured while other trials ran on the same machine: compare "
                "them only within this sweep, and use `--max-concurrent 1` for cleaner ones."
            )
        shown = show_figure(figure, self.search.folder, "pareto")
        return "\n\n".join(["## Pareto front", note, "\n".join(rows), shown])

    def _unfinished(self) -> str:
        lines = []
        if stopped := self.trials.in_state("stopped early"):
            lines.append("Stopped early by ASHA:\n")
            lines += [
                f"- {one.name} after epoch {one.epochs}, at {short(one.value(self.objective))}: "
                f"{_settings(one)}"
                for one in stopped
            ]
        if failed := self.trials.in_state("failed"):
            lines.append("\nFailed; `--retry-failed` tries them again:\n")
            lines += [
                f"- {one.name}: {in_markdown(one.reason)} ({_settings(one)})" for one in failed
            ]
        return "\n".join(["## Trials that did not finish", "", *lines]) if lines else ""

    def _space(self) -> str:
        rows = ["## Search space", "", "| setting | drawn from | only when |", "|---|---|---|"]
        for name, distribution in self.space.search.items():
            when = "; ".join(map(_describe_condition, distribution.when))
            drawn = in_markdown(_describe_distribution(distribution))
            rows.append(f"| {name} | {drawn} | {in_markdown(when)} |")
        return "\n".join(rows) + f"\n\nFixed: {in_markdown(describe_settings(self.space.fixed))}."

    def _next_steps(self) -> str:
        best = shlex.quote(str(self.search.folder / BEST))
        output = shlex.join(["--output", str(self.search.output)])
        options = " ".join([output, *spell_out(self.search.resources)])
        lines = [
            "## Next steps",
            "```sh",
            "# train and test the best settings",
            f"{command('train')} --config {best} {options}",
            "# retrain them on five other seeds, and test them",
            f"{self.command} --confirm 5",
        ]
        if self.space.algorithm in ("random", "tpe"):
            # With grids, a draw is one trial of every point.
            more = 2 * math.ceil(len(self.trials.all) / len(self.space.points()))
            lines += ["# extend the same sweep by more draws", f"{self.command} --trials {more}"]
        return "\n".join([*lines, "```"])


def _settings(one: Trial | TriedSettings) -> str:
    return in_markdown(describe_settings(one.drawn))


def _describe_distribution(distribution: Distribution) -> str:
    if distribution.values:
        kind = "grid" if distribution.is_grid else "choice"
        return f"{kind} {', '.join(short(value) for value in distribution.values)}"
    scale = " on a logarithmic scale" if distribution.log else ""
    step = f" in steps of {distribution.step:g}" if distribution.step else ""
    whole = "a whole number " if distribution.is_whole else ""
    return f"{whole}from {distribution.low:g} to {distribution.high:g}{step}{scale}"


def _describe_condition(condition: Condition) -> str:
    if condition.values:
        return f"{condition.setting} in {list(condition.values)}"
    bounds = (("above", condition.above), ("below", condition.below))
    words = (f"{word} {bound:g}" for word, bound in bounds if bound is not None)
    return f"{condition.setting} {' and '.join(words)}"
