"""The comparison table: its rows, their measures, and the statistics of both."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from stop_core.cache.manifest import Manifest
from stop_core.datasets import Task
from stop_core.settings.experiment import ExperimentConfig

from ..cli.errors import RunError
from ..cli.output import results_folder
from ..training.result import TrainingResult
from ..training.run import TrainingRun
from .published import PublishedRow
from .row_statistics import RowStatistics, row_statistics

TABLE_MEASURES: dict[Task, tuple[str, ...]] = {
    "recognition": ("val/top1", "test/top1", "test/top5", "test/mean_class"),
    "retrieval": (
        "val/t2v_r1",
        "test/t2v_r1", "test/t2v_r5", "test/t2v_r10", "test/t2v_mean_rank",
        "test/v2t_r1", "test/v2t_r5", "test/v2t_r10", "test/v2t_mean_rank",
    ),
}  # fmt: skip
"""The measures of a table; rows are ranked and tested by the first one of the test split."""
TABLE_COSTS = ("step_seconds", "memory_megabytes")


@dataclass
class ComparisonTable:
    """One row per method, over its seeds."""

    dataset: str
    fold: int
    data_hash: str
    experiments: dict[str, list[ExperimentConfig]]
    folder: Path
    task: Task = "recognition"
    name: str = "table"
    """Name of the file with the rows."""
    baseline: str = ""
    """Title of the row that the others are compared with; default: the first."""
    published: Sequence[PublishedRow] = ()
    results: dict[str, list[TrainingResult]] = field(default_factory=dict)
    statistics: dict[str, RowStatistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.baseline = self.baseline or next(iter(self.experiments))
        for row in self.published:
            if row.dataset != self.dataset:
                raise ValueError(
                    f"the published row {row.method!r} is of {row.dataset}, and this table of "
                    f"{self.dataset}; leave --published out, or give a file for {self.dataset}"
                )

    @classmethod
    def planned(
        cls,
        manifest: Manifest,
        trainings: Mapping[str, Sequence[TrainingRun]],
        output: Path,
        *,
        name: str = "table",
        baseline: str = "",
        published: Sequence[PublishedRow] = (),
    ) -> "ComparisonTable":
        """Returns the table before its rows are filled; its folder is named after their identity.

        Raises:
            ValueError: if published rows are of another dataset.
        """
        # The name of a training covers everything that its numbers depend on.
        rows = {title: [run.name for run in runs] for title, runs in trainings.items()}
        identity = hashlib.sha256(json.dumps([manifest.data_hash, rows]).encode()).hexdigest()[:8]
        return cls(
            dataset=manifest.dataset,
            fold=manifest.fold,
            data_hash=manifest.data_hash,
            experiments={title: [run.config for run in runs] for title, runs in trainings.items()},
            folder=results_folder(
                output / "tables", manifest.dataset, manifest.fold, f"{name}-{identity}"
            ),
            task=manifest.task,
            name=name,
            baseline=baseline,
            published=published,
        )

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures, validation first."""
        return TABLE_MEASURES[self.task]

    @property
    def tested(self) -> tuple[str, ...]:
        """The measures of the test split, the primary one first."""
        return self.measures[1:]

    def fill(self, results: Sequence[TrainingResult]) -> None:
        """Sorts results into their rows, and computes the statistics of their predictions.

        Raises:
            ValueError: if a result is of other data than the table, belongs to none of its rows, or
                contradicts its predictions.
            OSError: if the predictions of a result are missing.
        """
        wanted = {(one.hash, one.seed) for seeds in self.experiments.values() for one in seeds}
        for result in results:
            if result.data_hash != self.data_hash:
                raise ValueError(
                    f"{result.name} was trained on other data ({result.data_hash[:12]}) than this "
                    f"table's ({self.data_hash[:12]}), so it is no row of it; rows of one table "
                    "share one cache: run all of them with the same --cache"
                )
            if (result.config_hash, result.seed) not in wanted:
                raise ValueError(
                    f"{result.folder} holds a training with other settings than its name says; "
                    "delete that folder, and run the same command to train it again"
                )
        by_identity = {(result.config_hash, result.seed): result for result in results}
        for title, seeds in self.experiments.items():
            identities = [(one.hash, one.seed) for one in seeds]
            self.results[title] = [by_identity[key] for key in identities if key in by_identity]
        self.statistics = row_statistics(self.results, self.tested, self.task, self.baseline)

    def frame(self) -> pd.DataFrame:
        """Returns all numbers, one row per method, with the sample standard deviation over seeds.

        Shares are from 0 to 1. Published rows come last; their `kind` is "published".
        """
        ours = [self._row(title) for title in self.experiments]
        columns = list(ours[0])
        return pd.DataFrame([*ours, *map(self._published, self.published)], columns=columns)

    def complain_about(self, reasons: list[str]) -> None:
        """Raises RunError if trainings failed; call it when everything else is done."""
        if reasons:
            raise RunError(
                f"{len(reasons)} trainings failed, so the table is not complete; the first reason: "
                f"{reasons[0]}. Run the same command to try them again"
            )

    def all_results(self) -> list[tuple[str, TrainingResult]]:
        """Returns every result with the title of its row."""
        return [(title, result) for title, row in self.results.items() for result in row]

    def _row(self, title: str) -> dict[str, Any]:
        results = self.results[title]
        row: dict[str, Any] = {
            "kind": "ours",
            "method": title,
            "source": "",
            "trainable_parameters": None,
            "seeds": " ".join(str(result.seed) for result in results),
        }
        if results:
            row["trainable_parameters"] = int(results[0].metrics["trainable_parameters"])
        for measure in self.measures:
            values = [r.metrics[measure] for r in results if measure in r.metrics]
            name = measure.replace("/", "_")
            deviation = stdev(values) if len(values) > 1 else None
            row |= {f"{name}_mean": _mean(values), f"{name}_std": deviation}
        for cost in TABLE_COSTS:
            row[cost] = _mean([r.costs[cost] for r in results if cost in r.costs])
        commits = sorted({result.git_commit[:12] for result in results})
        return {
            **row,
            **self._statistics(title),
            "config_hash": self.experiments[title][0].hash,
            "data_hash": self.data_hash[:12],
            "git_commit": " ".join(commits),
        }

    def _statistics(self, title: str) -> dict[str, Any]:
        """Returns intervals and tests; None for a row without results."""
        row = self.statistics.get(title, RowStatistics(0))
        columns: dict[str, Any] = {"test_videos": row.videos or None}
        for measure in self.tested:
            low, high = row.intervals.get(measure, (None, None))
            name = measure.replace("/", "_")
            columns |= {f"{name}_low": low, f"{name}_high": high}
        low, high = row.difference_interval or (None, None)
        return {
            **columns,
            "baseline": self.baseline,
            "difference": row.difference,
            "difference_low": low,
            "difference_high": high,
            "p": row.p,
            "p_holm": row.p_holm,
        }

    @staticmethod
    def _published(row: PublishedRow) -> dict[str, Any]:
        measures = {f"{m.replace('/', '_')}_mean": value for m, value in row.measures.items()}
        return {
            "kind": "published",
            "method": row.title,
            "source": row.source,
            "trainable_parameters": row.parameters,
            **measures,
        }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
