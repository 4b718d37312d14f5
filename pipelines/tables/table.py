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
from .row_statistics import row_statistics

TABLE_MEASURES: dict[Task, tuple[str, ...]] = {
    "recognition": ("val/top1", "test/top1", "test/top5", "test/mean_class"),
    "retrieval": (
        "val/t2v_r1",
        "test/t2v_r1", "test/t2v_r5", "test/t2v_r10", "test/t2v_mean_rank",
        "test/v2t_r1", "test/v2t_r5", "test/v2t_r10", "test/v2t_mean_rank",
    ),
}  # fmt: skip
"""The measures of a table; rows are ranked and tested by the first one of the test split."""
RERANKED = ("t2v_r1", "t2v_r5", "t2v_r10")
"""The measures that are also shown re-ranked."""
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
    trained_on: str = ""
    """Name of the data that all rows were trained on, if it is not the data of the table."""
    rerank: str = "none"
    notes: Sequence[str] = ()
    """Further sentences about how all rows were evaluated."""
    results: dict[str, list[TrainingResult]] = field(default_factory=dict)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Intervals and tests of the rows that have results, by column."""

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
        name: str = "table",
        **options: Any,
    ) -> "ComparisonTable":
        """Returns the table before its rows are filled; its folder is named after their identity.

        Raises:
            ValueError: if published rows are of another dataset.
        """
        # The name of a training covers everything that its numbers depend on.
        rows = {title: [run.name for run in runs] for title, runs in trainings.items()}
        identity = hashlib.sha256(json.dumps([manifest.data_hash, rows]).encode()).hexdigest()[:8]
        dataset, fold = manifest.dataset, manifest.fold
        folder = results_folder(output / "tables", dataset, fold, f"{name}-{identity}")
        experiments = {title: [run.config for run in runs] for title, runs in trainings.items()}
        options |= {"task": manifest.task, "name": name}
        return cls(dataset, fold, manifest.data_hash, experiments, folder, **options)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures, validation first, those of re-ranking last."""
        name = self.rerank.replace("-", "_")
        reranked = [] if name == "none" else [f"test/{name}_{measure}" for measure in RERANKED]
        return (*TABLE_MEASURES[self.task], *reranked)

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
        theirs = [row.columns() for row in self.published]
        return pd.DataFrame([*ours, *theirs], columns=list(ours[0]))

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
        """Returns the columns of one of our rows; None where there are no results."""
        results = self.results[title]
        trainable = int(results[0].metrics["trainable_parameters"]) if results else None
        row: dict[str, Any] = {
            "kind": "ours",
            "method": title,
            "source": "",
            "trainable_parameters": trainable,
            "seeds": " ".join(str(result.seed) for result in results),
        }
        for measure in self.measures:
            values = [r.metrics[measure] for r in results if measure in r.metrics]
            name = measure.replace("/", "_")
            deviation = stdev(values) if len(values) > 1 else None
            row |= {f"{name}_mean": _mean(values), f"{name}_std": deviation}
        for cost in TABLE_COSTS:
            row[cost] = _mean([r.costs[cost] for r in results if cost in r.costs])
        bounds = [f"{m.replace('/', '_')}_{end}" for m in self.tested for end in ("low", "high")]
        compared = ("difference", "difference_low", "difference_high", "p", "p_holm")
        return {
            **row,
            **dict.fromkeys(("test_videos", *bounds)),
            "baseline": self.baseline,
            **dict.fromkeys(compared),
            "config_hash": self.experiments[title][0].hash,
            "data_hash": self.data_hash[:12],
            "git_commit": " ".join(sorted({result.git_commit[:12] for result in results})),
            **self.statistics.get(title, {}),
        }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
