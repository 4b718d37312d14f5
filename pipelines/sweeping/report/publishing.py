"""Takes what a sweep has found to its folder and to its MLflow run."""

from ...tracking.direct_run import TrackedRun
from ..confirm import CONFIRMATION
from ..results import BEST, PARETO, TRIALS
from .figure_style import REPORT_FIGURES
from .report import REPORT, Report


def publish_report(report: Report, tracked: TrackedRun) -> None:
    """Writes the report, and stores all that a sweep leaves with its MLflow run."""
    search, result = report.search, report.result
    report.write()
    for name in (BEST, TRIALS, REPORT):
        tracked.log_file(search.folder / name)
    if report.confirmed is not None:
        tracked.log_file(search.folder / CONFIRMATION)
    for folder, pattern in ((REPORT_FIGURES, "*.png"), (PARETO, "*.yaml")):
        for path in sorted((search.folder / folder).glob(pattern)):
            tracked.log_file(path, folder)
    frame = result.trials.astype(object).where(result.trials.notna(), None)
    tracked.log_table({name: frame[name].tolist() for name in frame}, "trials.json")
    values = {f"best/{o}": result.best.value(o) for o in search.space.objectives}
    tracked.log_metrics({name: value for name, value in values.items() if value is not None})
    tracked.set_tags({"best_trial": result.best.name, "trials": len(report.trials.all)})
