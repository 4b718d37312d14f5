"""Prints the comparison table: all methods with the same code, data and selection rule."""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: PEP 366
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "pipelines"

from stop_core.cache.manifest import Manifest
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.protocol import ProtocolConfig
from stop_core.storage.paths import StoragePath

from .cli.console import print_result, say
from .cli.experiment_fields import build_experiment
from .cli.folders import SWEEPS, named_file
from .cli.options import run_command
from .cli.output import default_output
from .cluster.devices import Machine, choose_devices
from .cluster.resources import ResourceOptions
from .cluster.session import start_ray
from .preprocessing.find_cache import find_cache
from .tables.mlflow_table import publish_table, track
from .tables.published import read_published
from .tables.read_table import Table, read_table
from .tables.table import ComparisonTable
from .tracking.queued_run import deliver_waiting
from .tracking.store import ui_command
from .training.pool import Job, run_all
from .training.run import TrainingRun

TABLES = SWEEPS / "tables"
ABLATION = TABLES / "ablation.yaml"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Compare STOP with its baselines, over several seeds, and print the table.

    Without options: the embedded demonstration set, in a few minutes on two CPU cores. Finished
    trainings with the same settings and data are not run again; after an interruption, run the
    same command to train the rest. docs/tables.md explains every number.

    Examples:
      python pipelines/benchmark.py --cache outputs/cache/hmdb51 --table my_rows.yaml --seeds 5
      python pipelines/benchmark.py --cache outputs/cache/hmdb51 --methods stop,vpt-deep --seeds 5
      python pipelines/benchmark.py --ablation
      python pipelines/benchmark.py --cache outputs/cache/hmdb51 --shots 16 --full-training
      python pipelines/benchmark.py --cache outputs/cache/hmdb51-fold1,outputs/cache/hmdb51-fold2
      python pipelines/benchmark.py --cache outputs/cache/msrvtt \\
          --published sweeps/published/msrvtt_vit_b32.csv
    """

    table: Path | None = None
    """YAML file with the rows, like sweeps/tables/motion.yaml (default: the file there that has the
    name of the dataset, or else recognition.yaml or retrieval.yaml)."""
    methods: tuple[str, ...] = ()
    """Only these methods, for example stop,vpt-deep,zero-shot, each with the settings of its first
    row in the table, or else with the common settings (default: all rows)."""
    rows: tuple[str, ...] = ()
    """Only the rows with these titles (default: all rows)."""
    ablation: bool = False
    """Print the ablation table instead: the row of STOP, with one component removed at a time."""
    baseline: str | None = None
    """Title of the row that the others are compared with (default: the baseline of the table)."""
    published: Path | None = None
    """CSV file with published results to show; docs/tables.md describes its columns."""
    cache: str | None = None
    """A cache made by preprocess: a folder, or an s3:// or gs:// URI (default: the embedded set,
    preprocessed if needed); or the caches of several folds, separated by commas, for rows that are
    means over the folds."""
    output: Path = field(default_factory=default_output)
    """Folder of runs, tables and the MLflow store."""
    seeds: int = 3
    """Number of trainings per row, with the seeds 0, 1, ...; untrained rows are run once."""
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    resources: ResourceOptions = field(default_factory=ResourceOptions)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if sum(map(bool, (self.methods, self.rows, self.ablation))) > 1:
            raise ValueError("methods, rows and ablation each choose the rows; give one of them")
        for method in self.chosen_methods:
            if method not in METHODS:
                raise ValueError(f"methods has {method!r}; choose from {', '.join(METHODS)}")

    @property
    def chosen_methods(self) -> list[str]:
        """The methods, separated by spaces or commas."""
        return [name for text in self.methods for name in text.split(",") if name]


def main(config: BenchmarkConfig) -> ComparisonTable:
    """Runs the missing trainings of the table, prints it, and stores it."""
    published = read_published(config.published) if config.published else []
    caches = find_folds(config.cache, config.output)
    manifest = next(iter(caches.values()))
    file, chosen = choose_rows(config, manifest)
    deliver_waiting(config.output)
    machine = choose_devices(config.resources)
    rows = {title: _trainings(title, values, file, list(caches), config, machine)
            for title, values in chosen.rows.items()}  # fmt: skip
    table = ComparisonTable.planned(
        manifest,
        rows,
        config.output,
        name=file.stem,
        baseline=chosen.baseline,
        published=published,
        further={one.fold: one.data_hash for one in list(caches.values())[1:]},
    )
    # Two rows can have the same configuration, which is trained once.
    jobs = {run.name: Job(run, _label(title, run, several=bool(table.further)))
            for title, runs in rows.items() for run in runs}  # fmt: skip
    _run(table, list(jobs.values()), config, machine)
    return table


def find_folds(caches: str | None, output: Path) -> dict[StoragePath, Manifest]:
    """Returns the caches that are separated by commas, with their manifests; by default, the one.

    Raises:
        OSError: if there is no cache.
        ValueError: if one is unfinished, or they are not of different folds of one dataset.
    """
    paths = [find_cache(one, output) for one in (caches.split(",") if caches else [None])]
    first, *others = manifests = [Manifest.load(path) for path in paths]
    for other in others:
        same = replace(other.config, fold=first.fold, clips_hash=first.config.clips_hash)
        if same != first.config:
            raise ValueError(
                f"the caches {paths[0]} and the one of {other.dataset}, fold {other.fold} differ "
                "in more than the fold; preprocess the folds of one dataset with the same options"
            )
    folds = [one.fold for one in manifests]
    if len(set(folds)) < len(folds):
        raise ValueError(
            f"--cache names caches of the folds {', '.join(map(str, folds))}; name one of each fold"
        )
    return dict(zip(paths, manifests, strict=True))


def _label(title: str, run: TrainingRun, *, several: bool) -> str:
    fold = f", fold {run.manifest.fold}" if several else ""
    return f"{title}{fold}, seed {run.config.seed}"


def _run(
    table: ComparisonTable, jobs: list[Job], config: BenchmarkConfig, machine: Machine
) -> None:
    """Runs the missing trainings, and publishes the table even if some of them fail."""
    parent = track(table, config.output)
    missing = [job for job in jobs if job.training.remembered() is None]
    say(f"{len(jobs)} trainings in the table, {len(missing)} of them to run")
    if missing:
        start_ray()
    with parent.ended():
        outcomes = run_all(jobs, machine.resources, parent.run_id)
        table.fill([result for result in outcomes if not isinstance(result, str)])
        publish_table(table, parent)
        print_result(f"all runs: {ui_command(config.output)}")
        table.complain_about([reason for reason in outcomes if isinstance(reason, str)])


def choose_rows(config: BenchmarkConfig, manifest: Manifest) -> tuple[Path, Table]:
    """Returns the file of the table, and the chosen rows."""
    own = TABLES / f"{manifest.dataset}.yaml"
    default = own if own.is_file() else TABLES / f"{manifest.task}.yaml"
    file = named_file(config.table, "tables") if config.table else default
    table = read_table(file)
    if config.ablation:
        stop = _first_row_of("stop", table)
        if stop is None:
            raise ValueError(f"{file} has no row of the method stop, which --ablation starts from")
        file, table = ABLATION, read_table(ABLATION, base=table.rows[stop])
    if unknown := sorted(set(config.rows) - table.rows.keys()):
        raise ValueError(f"{file} has no row {unknown[0]!r}; it has {', '.join(table.rows)}")
    rows = {title: table.rows[title] for title in config.rows or table.rows}
    if config.methods:
        rows = _rows_of_methods(config.chosen_methods, table, file)
    baseline = config.baseline or (table.baseline if table.baseline in rows else next(iter(rows)))
    if baseline not in rows:
        raise ValueError(f"baseline is {baseline!r}, but the rows are {', '.join(rows)}")
    return file, Table(rows, table.common, baseline)


def _first_row_of(method: str, table: Table) -> str | None:
    default = ExperimentConfig().method
    return next((t for t, row in table.rows.items() if row.get("method", default) == method), None)


def _rows_of_methods(methods: list[str], table: Table, file: Path) -> dict[str, dict[str, Any]]:
    """Returns one row per method."""
    rows = {}
    for method in methods:
        title = _first_row_of(method, table)
        if title is None:
            say(f"{file} has no row of {method}: it gets the common settings, untuned")
        rows[title or method] = table.rows[title] if title else {**table.common, "method": method}
    return rows


def _trainings(
    title: str,
    values: dict[str, Any],
    file: Path,
    caches: list[StoragePath],
    config: BenchmarkConfig,
    machine: Machine,
) -> list[TrainingRun]:
    """Returns the trainings of a row; raises ValueError if it does not fit the cache."""
    where = f"{file}: row {title!r}"
    if "seed" in values:
        raise ValueError(f"{where} sets seed; give --seeds instead")
    typed, usual = asdict(config.protocol), asdict(ProtocolConfig())
    given = {name: value for name, value in typed.items() if value != usual[name]}
    lists = {name: list(value) for name, value in given.items() if isinstance(value, tuple)}
    one = machine.settle(build_experiment(values | given | lists, where))
    seeds = config.seeds if one.is_trained else 1
    try:
        return [
            TrainingRun(replace(one, seed=seed), cache, config.output)
            for cache in caches
            for seed in range(seeds)
        ]
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from problem


if __name__ == "__main__":
    run_command(BenchmarkConfig, main)
