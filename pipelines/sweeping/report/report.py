"""report.md of a sweep: its space, its best settings, their reliability, and how to continue."""

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from stop_core.storage.atomic import appearing, write_whole
from stop_core.storage.escaping import in_markdown
from stop_core.storage.paths import StoragePath, matches
from stop_core.storage.templates import rendered

from ...cli.options import spell_out
from ...tracking.direct_run import TrackedRun
from ...tracking.environment import git_commit
from ..results import BEST, CONFIRMATION, PARETO, TRIALS, SweepResult
from ..search import Search
from ..space import describe_settings, short
from ..trials import ENDS, Trials, TriedSettings
from . import figures
from .analysis import FEW_PER_SETTING, Importances, importances, sensitivity

REPORT = "report.md"
REPORT_FIGURES = "figures"


@dataclass(frozen=True)
class Report:
    """The report of a sweep whose trials have ended, and its figures."""

    search: Search
    trials: Trials
    result: SweepResult
    command: str
    confirmed: pd.DataFrame | None = None
    """The last confirmation, a row per seed; None if there is none."""

    def write(self) -> StoragePath:
        """Writes the report and its figures; returns the path of the report."""
        search, space, trials = self.search, self.search.space, self.trials
        objective, best = space.objectives[0], self.result.best
        tables = sensitivity(search, trials) if space.around else {}
        found = None if space.around else importances(search, trials)
        folder = search.folder / REPORT_FIGURES
        folder.mkdir(exist_ok=True)
        for name, figure in self._figures(tables, found).items():
            with appearing(folder / f"{name}.png") as staging:
                figure.savefig(staging, format="png", dpi=200)
        ranked = trials.ranked(objective)
        compared = [trial for point in trials.points() for trial in point.trials]
        left_out = [one for one in trials.in_state("finished") if one not in compared]
        first = next((one for one in self._measured() if one.first.number == 0), None)
        options = ["--config", search.folder / BEST, "--output", search.output]
        # On GPUs, off is the choice of the user, and not the default.
        own = ("compile",) if search.resources.gpus_per_worker else ()
        words = spell_out(search.resources, always=own, never=("gpu_bytes",))
        train = [shlex.join(map(str, options)), *words]
        text = rendered(
            Path(__file__).with_name("report.md.jinja"),
            in_markdown,
            search=search,
            space=space,
            trials=trials,
            result=self.result,
            confirmed=self.confirmed,
            sensitivity=tables,
            importances=found,
            few=FEW_PER_SETTING,
            counts=[f"{len(some)} {state}" for state in ENDS if (some := trials.in_state(state))],
            commit=git_commit(),
            value=best.value(objective) or 0.0,
            spread=pd.Series([one.value(objective) for one in best.trials]).std(ddof=1),
            ranked=ranked,
            median=float(pd.Series([one.value(objective) for one in ranked]).median()),
            left_out=list(dict.fromkeys(describe_settings(one.drawn) for one in left_out)),
            # The best is compared with the first given point, or the centre.
            start=first if space.points_to_evaluate or space.around else None,
            stopped=trials.in_state("stopped early"),
            failed=trials.in_state("failed"),
            train=" ".join(["stop train", *train]),
            command=self.command,
            # With grids, a draw is one trial of every point.
            more=0 if space.is_listed else 2 * math.ceil(len(trials.all) / len(space.points())),
            settings=describe_settings,
            short=short,
        )
        # Paragraphs that a report does not have leave empty lines.
        write_whole(search.folder / REPORT, re.sub(r"\n{3,}", "\n\n", text).lstrip())
        return search.folder / REPORT

    def publish(self, tracked: TrackedRun) -> None:
        """Writes the report, and logs all results of the sweep to its MLflow run."""
        self.write()
        folder, result = self.search.folder, self.result
        for name in (BEST, TRIALS, REPORT):
            tracked.log_file(folder / name)
        if self.confirmed is not None:
            tracked.log_file(folder / CONFIRMATION)
        for inner, pattern in ((REPORT_FIGURES, "*.png"), (PARETO, "*.yaml")):
            for path in matches(folder / inner, pattern):
                tracked.log_file(path, inner)
        tracked.log_table(result.trials, "trials.json")
        values = {f"best/{o}": result.best.value(o) for o in self.search.space.objectives}
        tracked.log_metrics({name: value for name, value in values.items() if value is not None})
        tracked.set_tags({"best_trial": result.best.name, "trials": len(self.trials.all)})

    def _measured(self) -> list[TriedSettings]:
        """Returns the finished points; without seeds, also trials that were stopped early."""
        space = self.search.space
        if space.seeds > 1:
            return self.trials.points()
        return [TriedSettings((one,)) for one in self.trials.measured(space.objectives[0])]

    def _figures(
        self, tables: dict[str, pd.DataFrame], found: Importances | None
    ) -> dict[str, Figure]:
        space, trials, best = self.search.space, self.trials, self.result.best
        objective, drawn = space.objectives[0], {}
        if self.result.front:
            drawn["pareto"] = figures.draw_front(space, trials.points(), self.result.front)
        if space.around:
            return drawn | {"sensitivity": figures.draw_sensitivity(space, tables)}
        if found:
            drawn["importances"] = figures.draw_importances(found, objective)
        shown = trials.measured(objective)
        if space.scheduler:
            drawn["curves"] = figures.draw_curves(space, shown, best)
        return drawn | {
            "slices": figures.draw_slices(space, shown, best),
            "parallel": figures.draw_parallel(space, self._measured(), best),
            "history": figures.draw_history(space, shown, trials.ranked(objective)),
        }
