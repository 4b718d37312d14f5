"""The comparison table: rows over seeds, printed, kept as files, and shown by MLflow."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from pipelines.command_line import RunError
from pipelines.progress import say
from pipelines.queued_run import RUN_ID
from pipelines.tracking import TrackedRun, open_experiment
from pipelines.training_run import TrainingResult
from stop_core.cache.files import write_whole
from stop_core.cache.manifest import Manifest
from stop_core.datasets import Task
from stop_core.experiment import ExperimentConfig

MEASURES: dict[Task, dict[str, str]] = {
    "recognition": {
        "val/top1": "val top-1 %",
        "test/top1": "test top-1 %",
        "test/mean_class": "test mean-class %",
    },
    "retrieval": {
        "val/t2v_r1": "val t2v R@1 %",
        "test/t2v_r1": "test t2v R@1 %",
        "test/t2v_r5": "test t2v R@5 %",
        "test/t2v_r10": "test t2v R@10 %",
        "test/v2t_r1": "test v2t R@1 %",
    },
}
"""The columns of a table by the measure that they show; the second is what rows are ranked by."""


@dataclass
class ComparisonTable:
    """One row a method, over the seeds that it was trained with."""

    dataset: str
    fold: int
    data_hash: str
    experiments: dict[str, list[ExperimentConfig]]
    folder: Path
    task: Task = "recognition"
    results: dict[str, list[TrainingResult]] = field(default_factory=dict)

    @classmethod
    def planned(
        cls, manifest: Manifest, experiments: dict[str, list[ExperimentConfig]], output: Path
    ) -> "ComparisonTable":
        """The table before its rows are filled; its folder is named by what is to be in it."""
        rows = {title: [one.hash for one in seeds] for title, seeds in experiments.items()}
        identity = hashlib.sha256(json.dumps([manifest.data_hash, rows]).encode()).hexdigest()[:8]
        name = f"{manifest.dataset}{manifest.fold}-{identity}"
        return cls(
            dataset=manifest.dataset,
            fold=manifest.fold,
            data_hash=manifest.data_hash,
            experiments=experiments,
            folder=output / "tables" / name,
            task=manifest.task,
        )

    def track(self, output: Path) -> TrackedRun:
        """The MLflow run of this table: the same one each time the same table is made."""
        experiment = open_experiment(output, self.dataset)
        known = self.folder / RUN_ID
        self.folder.mkdir(parents=True, exist_ok=True)
        tracked = TrackedRun.start(
            output,
            experiment,
            f"comparison table, {self.dataset} fold {self.fold}",
            run_id=known.read_text() if known.is_file() else None,
            tags={"kind": "table", "dataset": self.dataset, "data_hash": self.data_hash},
        )
        write_whole(known, tracked.run_id)
        return tracked

    @property
    def measures(self) -> dict[str, str]:
        """Titles of the columns by the measure that they show."""
        return MEASURES[self.task]

    def fill(self, results: list[TrainingResult]) -> None:
        """Sorts results into their rows.

        Raises:
            ValueError: if a result comes from other data than the table's.
        """
        by_identity = {(result.config_hash, result.seed): result for result in results}
        for title, seeds in self.experiments.items():
            found = [by_identity.get((one.hash, one.seed)) for one in seeds]
            self.results[title] = [result for result in found if result is not None]
        for result in results:
            if result.data_hash != self.data_hash:
                raise ValueError(f"{result.name} was trained on other data than this table's")

    def frame(self) -> pd.DataFrame:
        """All numbers, a row a method; the spread is the sample standard deviation over seeds."""
        return pd.DataFrame([self._row(title) for title in self.experiments])

    def complain_about(self, reasons: list[str]) -> None:
        """Raises RunError if a cell of the table is missing, after all else is done."""
        if reasons:
            raise RunError(
                f"{len(reasons)} trainings failed, so the table is not complete; the first reason: "
                f"{reasons[0]}. The same command tries them again"
            )

    def _row(self, title: str) -> dict[str, Any]:
        results = self.results[title]
        row: dict[str, Any] = {
            "method": title,
            "trainable_parameters": None,
            "seeds": " ".join(str(result.seed) for result in results),
        }
        if results:
            row["trainable_parameters"] = int(results[0].metrics["trainable_parameters"])
        for measure in self.measures:
            values = [r.metrics[measure] for r in results if measure in r.metrics]
            name = measure.replace("/", "_")
            row[f"{name}_mean"] = fmean(values) if values else None
            row[f"{name}_std"] = stdev(values) if len(values) > 1 else None
        commits = sorted({result.git_commit[:12] for result in results})
        return {
            **row,
            "config_hash": self.experiments[title][0].hash,
            "data_hash": self.data_hash[:12],
            "git_commit": " ".join(commits),
        }


def publish(table: ComparisonTable, tracked: TrackedRun) -> None:
    """Prints the table, writes it as CSV and Markdown, and stores it in its MLflow run."""
    frame = table.frame()
    _print(table, frame)
    table.folder.mkdir(parents=True, exist_ok=True)
    files = {"table.csv": frame.to_csv(index=False), "table.md": _markdown(table, frame)}
    for name, text in files.items():
        write_whole(table.folder / name, text)
        tracked.log_file(table.folder / name)
    columns = {name: frame[name].tolist() for name in frame}
    tracked.log_table(columns, "table.json")
    tracked.log_metrics(_best_metrics(table, frame))
    tracked.log_params({"rows": len(frame), "dataset": table.dataset, "fold": table.fold})
    say(f"table as CSV and Markdown: {table.folder}")


def _best_metrics(table: ComparisonTable, frame: pd.DataFrame) -> dict[str, float]:
    """The mean of every row and measure, under names that the UI can chart."""
    return {
        f"{name}/{''.join(c if c.isalnum() else '_' for c in row['method'])}": row[f"{name}_mean"]
        for name in (measure.replace("/", "_") for measure in table.measures)
        for row in frame.to_dict("records")
        if pd.notna(row[f"{name}_mean"])
    }


def _cells(table: ComparisonTable, frame: pd.DataFrame) -> list[list[str]]:
    """What a person reads: percent, mean and spread."""
    cells = []
    for row in frame.to_dict("records"):
        parameters = row["trainable_parameters"]
        shown = [row["method"], "" if pd.isna(parameters) else f"{int(parameters):,}"]
        for name in (measure.replace("/", "_") for measure in table.measures):
            shown.append(_percent(row[f"{name}_mean"], row[f"{name}_std"]))
        cells.append([*shown, row["seeds"], row["config_hash"]])
    return cells


def _percent(mean: float | None, spread: float | None) -> str:
    if mean is None or pd.isna(mean):
        return "missing"
    return f"{100 * mean:.1f}" + (
        "" if spread is None or pd.isna(spread) else f" ± {100 * spread:.1f}"
    )


def _header(table: ComparisonTable) -> list[str]:
    return ["method", "trainable", *table.measures.values(), "seeds", "config"]


def _is_text(column: int, header: list[str]) -> bool:
    return column in (0, len(header) - 2, len(header) - 1)


def _print(table: ComparisonTable, frame: pd.DataFrame) -> None:
    ranked = frame[list(table.measures)[1].replace("/", "_") + "_mean"]
    best = ranked.astype(float).idxmax() if ranked.any() else None
    header = _header(table)
    shown = RichTable(title=_title(table), title_justify="left")
    for number, column in enumerate(header):
        shown.add_column(
            column, justify="left" if _is_text(number, header) else "right", no_wrap=True
        )
    for number, cells in enumerate(_cells(table, frame)):
        shown.add_row(*cells, style="bold" if number == best else None)
    Console(width=None if Console().is_terminal else 120).print(shown)
    say(_footnote(table))


def _title(table: ComparisonTable) -> str:
    return f"{table.dataset}, fold {table.fold}: {table.task}, mean ± standard deviation over seeds"


def _footnote(table: ComparisonTable) -> str:
    commits = sorted({r.git_commit[:12] for results in table.results.values() for r in results})
    results = [result for row in table.results.values() for result in row]
    validated = all(next(iter(table.measures)) in result.metrics for result in results)
    rule = "epochs chosen on validation" if validated else "no validation split: the last epoch"
    return f"data {table.data_hash[:12]}, commit {', '.join(commits)}; {rule}"


def _markdown(table: ComparisonTable, frame: pd.DataFrame) -> str:
    header = _header(table)
    lines = [_title(table), "", "| " + " | ".join(header) + " |"]
    rules = ("---" if _is_text(n, header) else "---:" for n in range(len(header)))
    lines.append("|" + "|".join(rules) + "|")
    lines += ["| " + " | ".join(cells) + " |" for cells in _cells(table, frame)]
    return "\n".join([*lines, "", _footnote(table), ""])
