"""The comparison table: its rows, their measures, and the statistics of both."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from stop_core.cache.manifest import Manifest
from stop_core.datasets import Task
from stop_core.datasets.registry import division
from stop_core.evaluation.stored_predictions import reranked_name
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.protocol import ProtocolConfig
from stop_core.storage.paths import StoragePath

from ..cli.console import RunError
from ..cli.folders import results_folder
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
BASE_TO_NOVEL = ("val/base_top1", "test/harmonic_mean", "test/base_top1", "test/novel_top1")
"""The measures of a table whose rows are trained on the base classes."""
RERANKED = ("t2v_r1", "t2v_r5", "t2v_r10")
"""The measures that are also shown re-ranked."""
TABLE_COSTS = ("step_seconds", "memory_megabytes")


@dataclass
class ComparisonTable:
    """One row per method, over its seeds and folds."""

    dataset: str
    fold: int
    """The fold, or the first one."""
    data_hash: str
    experiments: dict[str, list[ExperimentConfig]]
    folder: StoragePath
    task: Task = "recognition"
    name: str = "table"
    """Name of the file with the rows."""
    baseline: str = ""
    """Title of the row that the others are compared with; default: the first."""
    published: Sequence[PublishedRow] = ()
    further: Mapping[int, str] = field(default_factory=dict)
    """Data hashes of the other folds, by number. Then a row is the mean over all folds."""
    trained_on: str = ""
    """Name of the data that all rows were trained on, if it is not the data of the table."""
    caches: Mapping[str, StoragePath] = field(default_factory=dict)
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
        first, *others = self._classes().items()
        for title, classes in others:
            if classes != first[1]:
                raise ValueError(
                    f"the rows {first[0]!r} and {title!r} are of different base classes, so their "
                    "tests are different; give all rows the same classes, or make two tables"
                )

    @classmethod
    def planned(
        cls,
        manifest: Manifest,
        trainings: Mapping[str, Sequence[TrainingRun]],
        output: StoragePath,
        name: str = "table",
        **options: Any,
    ) -> "ComparisonTable":
        """Returns the table before its rows are filled; its folder is named by their identity."""
        # The name of a training covers everything that its numbers depend on.
        rows = {title: [run.name for run in runs] for title, runs in trainings.items()}
        further = options.get("further", {})
        content = [manifest.data_hash, rows, *further.values()]
        identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
        dataset, fold = manifest.dataset, manifest.fold
        folder = results_folder(output / "tables", dataset, fold, f"{name}-{identity}")
        if further:
            folds = "-".join(map(str, (fold, *further)))
            folder = output / "tables" / f"{dataset}-folds{folds}-{name}-{identity}"
        # The folds of a seed have one configuration.
        experiments = {title: list(dict.fromkeys(run.config for run in runs))
                       for title, runs in trainings.items()}  # fmt: skip
        options |= {"task": manifest.task, "name": name}
        return cls(dataset, fold, manifest.data_hash, experiments, folder, **options)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures, validation first, those of re-ranking last."""
        if not self.trained_on and next(iter(self._classes().values()))[0] == "base":
            return BASE_TO_NOVEL
        reranked = RERANKED if self.rerank != "none" else ()
        name = reranked_name(self.rerank)
        return (*TABLE_MEASURES[self.task], *(f"test/{name}_{one}" for one in reranked))

    @property
    def data_hashes(self) -> dict[int, str]:
        """The hash of the data of each fold, by number."""
        return {self.fold: self.data_hash, **self.further}

    @property
    def division(self) -> str:
        """The dataset and its folds, for titles."""
        if not self.further:
            return division(self.dataset, self.fold)
        return f"{self.dataset}, folds {', '.join(map(str, self.data_hashes))}"

    @property
    def protocols(self) -> dict[str, ProtocolConfig]:
        """The protocol of each row."""
        return {title: seeds[0].protocol for title, seeds in self.experiments.items()}

    def _classes(self) -> dict[str, tuple[object, ...]]:
        return {title: (one.classes, one.base_seed, one.base_classes)
                for title, one in self.protocols.items()}  # fmt: skip

    @property
    def tested(self) -> tuple[str, ...]:
        """The measures of the test split, the primary one first."""
        return self.measures[1:]

    def fill(self, results: Sequence[TrainingResult]) -> None:
        """Sorts results into their rows, and computes the statistics of their predictions.

        Raises ValueError if a result is of other data, of no row, or contradicts its predictions;
        OSError if those are missing.
        """
        wanted = {(one.hash, one.seed) for seeds in self.experiments.values() for one in seeds}
        for result in results:
            if result.data_hash not in self.data_hashes.values():
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
        found = {(one.data_hash, one.config_hash, one.seed): one for one in results}
        for title, seeds in self.experiments.items():
            cells = [(data, one.hash, one.seed)
                     for one in seeds for data in self.data_hashes.values()]  # fmt: skip
            self.results[title] = [found[key] for key in cells if key in found]
        whole = {title: [one for seed in self.by_seed(title).values() for one in seed]
                 for title in self.results}  # fmt: skip
        self.statistics = row_statistics(whole, self.tested, self.task, self.baseline)

    def by_seed(self, title: str) -> dict[int, list[TrainingResult]]:
        """Returns the results of a row for each seed that has all folds, in their order."""
        seeds: dict[int, list[TrainingResult]] = {}
        for result in self.results[title]:
            seeds.setdefault(result.seed, []).append(result)
        return {seed: some for seed, some in seeds.items() if len(some) == len(self.data_hashes)}

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
        results, seeds = self.results[title], self.by_seed(title)
        trainable = int(results[0].metrics["trainable_parameters"]) if results else None
        row: dict[str, Any] = {
            "kind": "ours",
            "method": title,
            "source": "",
            "trainable_parameters": trainable,
            "seeds": " ".join(map(str, seeds)),
            "folds": " ".join(map(str, self.data_hashes)),
            "protocol": str(self.protocols[title]),
        }
        for measure in self.measures:
            values = [fmean(r.metrics[measure] for r in some) for some in seeds.values()
                      if all(measure in r.metrics for r in some)]  # fmt: skip
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
            "data_hash": " ".join(data[:12] for data in self.data_hashes.values()),
            "git_commit": " ".join(sorted({result.git_commit[:12] for result in results})),
            **self.statistics.get(title, {}),
        }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
