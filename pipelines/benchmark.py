"""Prints the comparison table: all methods with the same code, data and selection rule."""

if __name__ == "__main__":  # python pipelines/benchmark.py
    __import__("stop").run_file(__file__)

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stop_core.cache.manifest import Manifest
from stop_core.cache.views import parse_views, several_views
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.methods import METHODS
from stop_core.settings.protocol import ProtocolConfig
from stop_core.storage.paths import StoragePath

from .cli.console import add_result, print_result, say
from .cli.experiment_fields import build_experiment
from .cli.folders import SWEEPS, default_output, named_file
from .cli.options import OutputFolder
from .cluster.devices import Machine, choose_devices
from .cluster.resources import ResourceOptions, Resources
from .cluster.session import start_ray
from .inference.evaluation import EvaluationOptions, evaluate_trained
from .preprocessing.find_cache import find_folds, find_targets
from .tables.published import read_published
from .tables.read_table import Table, read_table
from .training.result import TrainingResult

if TYPE_CHECKING:  # Ray and MLflow take seconds to import, and --help needs neither
    from .tables.table import ComparisonTable
    from .tracking.direct_run import TrackedRun
    from .training.pool import Job
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
      stop benchmark --cache outputs/cache/hmdb51 --table my_rows.yaml --seeds 5
      stop benchmark --cache outputs/cache/hmdb51 --methods stop,vpt-deep --seeds 5
      stop benchmark --ablation
      stop benchmark --cache outputs/cache/hmdb51 --shots 16 --full-training
      stop benchmark --cache outputs/cache/hmdb51-fold1,outputs/cache/hmdb51-fold2
      stop benchmark --cache outputs/cache/msrvtt \\
          --published sweeps/published/msrvtt_vit_b32.csv
    """

    cache: str | None = None
    """A cache made by preprocess: a folder, or an s3:// or gs:// URI (default: the embedded set,
    preprocessed if needed); or the caches of several folds, separated by commas, for rows that are
    means over the folds."""
    methods: tuple[str, ...] = ()
    """Only these methods, for example stop,vpt-deep,zero-shot, each with the settings of its first
    row in the table, or else with the common settings (default: all rows)."""
    rows: tuple[str, ...] = ()
    """Only the rows with these titles (default: all rows)."""
    table: Path | None = None
    """YAML file with the rows, like sweeps/tables/motion.yaml (default: the file there that has the
    name of the dataset, or else recognition.yaml or retrieval.yaml)."""
    ablation: bool = False
    """Print the ablation table instead: the row of STOP, with one component removed at a time."""
    seeds: int = 3
    """Number of trainings per row, with the seeds 0, 1, ...; untrained rows are run once."""
    baseline: str | None = None
    """Title of the row that the others are compared with (default: the baseline of the table)."""
    published: Path | None = None
    """CSV file with published results to show; docs/tables.md describes its columns."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder, or s3:// or gs:// URI, of runs, tables and the MLflow store."""
    transfer: tuple[str, ...] = ()
    """Zero-shot transfer: other caches, on which the rows are tested as they are, in one more table
    for each; the folds of a dataset share one. Rows with learned weights for their classes are left
    out."""
    views: str = "1x1"
    """Views of every test video, temporal clips x spatial crops, such as 4x3; epochs are chosen
    with one view."""
    rerank: Literal["none", "dsl", "qb-norm"] = "none"
    """For retrieval, columns with re-ranked figures: dsl uses the other queries of the test set,
    qb-norm the captions of the training split. Nothing is chosen by them."""
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    resources: ResourceOptions = field(default_factory=ResourceOptions)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if sum(map(bool, (self.methods, self.rows, self.ablation))) > 1:
            raise ValueError("methods, rows and ablation each choose the rows; give one of them")
        parse_views(self.views)
        for method in self.chosen_methods:
            if method not in METHODS:
                raise ValueError(f"methods has {method!r}; choose from {', '.join(METHODS)}")

    @property
    def chosen_methods(self) -> list[str]:
        """The methods, separated by spaces or commas."""
        return [name for text in self.methods for name in text.split(",") if name]

    @property
    def evaluation(self) -> EvaluationOptions:
        """The options of every evaluation."""
        return EvaluationOptions(views=self.views, rerank=self.rerank)

    @property
    def test_name(self) -> str:
        """Suffix of the names of tables: how the rows are tested, if not as by their trainings."""
        views = "" if self.views == "1x1" else f"-{self.views}"
        return views if self.rerank == "none" else f"{views}-{self.rerank}"


def main(config: BenchmarkConfig) -> "ComparisonTable":
    """Runs the missing trainings of the table, prints it, and stores it."""
    # These take seconds to import, and --help does not need them.
    from .tracking.queued_run import deliver_waiting
    from .training.pool import Job

    published = read_published(config.published) if config.published else []
    # Read first, so that a mistake is found before a cache is made.
    given = read_table(named_file(config.table, "tables")) if config.table else None
    caches = find_folds(config.cache, config.output)
    manifest = next(iter(caches.values()))
    targets = find_targets(config.transfer, config.output)
    if targets and len(caches) > 1:
        raise ValueError("--transfer tests models of one training set; name one cache in --cache")
    file, chosen = choose_rows(config, manifest, given)
    deliver_waiting(config.output)
    machine = choose_devices(config.resources)
    rows = {title: _trainings(title, values, file, list(caches), config, machine)
            for title, values in chosen.rows.items()}  # fmt: skip
    for tested in (m for some in (caches, *targets) for m in some.values()):
        _check_test(tested, _readers(rows, tested), config)
    name = file.stem + config.test_name
    table = _planned(config, caches, rows, name, chosen.baseline, published=published)
    jobs = {}
    for title, runs in rows.items():
        for run in runs:
            fold = f", fold {run.manifest.fold}" if table.further else ""
            # Two rows can have the same configuration, which is trained once.
            jobs[run.name] = Job(run, f"{title}{fold}, seed {run.config.seed}")
    _run(table, list(jobs.values()), config, machine.resources)
    for target in targets:
        _transfer(target, rows, table, config, machine.resources)
    return table


def _planned(
    config: BenchmarkConfig,
    caches: Mapping[StoragePath, Manifest],
    rows: "dict[str, list[TrainingRun]]",
    name: str,
    baseline: str,
    notes: Sequence[str] = (),
    **more: Any,
) -> "ComparisonTable":
    """Returns the table of rows that are tested on these caches, the folds of one dataset."""
    from .tables.table import ComparisonTable

    first, *others = caches.values()
    clips, crops = parse_views(config.views)
    views = f"Test: {config.views} views ({clips} temporal clips, {crops} crops), averaged."
    return ComparisonTable.planned(
        first,
        rows,
        config.output,
        name,
        baseline=baseline,
        further={one.fold: one.data_hash for one in others},
        caches={one.data_hash: path.resolve() for path, one in caches.items()},
        rerank=config.rerank,
        notes=[*([views] if clips * crops > 1 else []), *notes],
        **more,
    )


def _check_test(
    tested: Manifest, rows: "dict[str, list[TrainingRun]]", config: BenchmarkConfig
) -> None:
    from stop_core.clip.loading import tower_shape

    config.evaluation.check(tested)
    for run, *_ in rows.values():
        if shape := tower_shape(run.config.tower):
            frames = run.config.frames or run.manifest.config.frames
            several_views(config.views, frames, shape.image_size, tested.config)


def _readers(
    rows: "dict[str, list[TrainingRun]]", tested: Manifest
) -> "dict[str, list[TrainingRun]]":
    """Returns the rows that can be tested on a cache: with the same classes, or by reading text."""
    found = {
        title: runs
        for title, runs in rows.items()
        if METHODS[runs[0].config.method].reads_text
        or runs[0].manifest.class_names == tested.class_names
    }
    if not found:
        raise ValueError(f"--transfer: no row reads the classes of {tested.dataset} as text")
    return found


def _run(
    table: "ComparisonTable", jobs: "list[Job]", config: BenchmarkConfig, resources: Resources
) -> None:
    """Runs the missing trainings, and publishes the table even if some of them fail."""
    from .tables.mlflow_table import track
    from .training.pool import run_all

    parent = track(table, config.output)
    missing = [job for job in jobs if job.training.remembered() is None]
    say(f"{len(jobs)} trainings in the table, {len(missing)} of them to run")
    if missing:
        start_ray(config.output, *{job.training.cache for job in missing}, records=True)
    with parent.ended():
        outcomes = run_all(jobs, resources, parent.run_id)
        if config.test_name:
            caches = {job.training.name: [job.training.cache] for job in jobs}
            outcomes = evaluate_trained(
                outcomes, caches, config.output, config.evaluation, resources
            )
        _publish(table, parent, outcomes, config)


def _transfer(
    target: dict[StoragePath, Manifest],
    rows: "dict[str, list[TrainingRun]]",
    source: "ComparisonTable",
    config: BenchmarkConfig,
    resources: Resources,
) -> None:
    from .tables.mlflow_table import track

    kept = _readers(rows, next(iter(target.values())))
    left_out = [
        f"{title} is not in this table: it knows only the classes of its training."
        for title in rows
        if title not in kept
    ]
    baseline, name = source.baseline if source.baseline in kept else "", f"{source.name}-transfer"
    trained_on = source.division
    table = _planned(config, target, kept, name, baseline, left_out, trained_on=trained_on)
    parent = track(table, config.output)
    with parent.ended():
        trained = {run.name: run.remembered() for runs in kept.values() for run in runs}
        results = [result for result in trained.values() if result is not None]
        caches = {name: list(target) for name in trained}
        outcomes = evaluate_trained(results, caches, config.output, config.evaluation, resources)
        _publish(table, parent, outcomes, config)


def _publish(
    table: "ComparisonTable",
    parent: "TrackedRun",
    outcomes: Sequence[TrainingResult | str],
    config: BenchmarkConfig,
) -> None:
    from .tables.mlflow_table import publish_table
    from .tracking.store import ui_command

    table.fill([result for result in outcomes if not isinstance(result, str)])
    publish_table(table, parent)
    shown = {
        "name": table.name,
        "dataset": table.division,
        "baseline": table.baseline,
        "rows": table.frame().to_dict("records"),
        "run_id": parent.run_id,
        "folder": table.folder,
    }
    add_result(tables=[shown], next=ui_command(config.output))
    print_result(f"all runs: {ui_command(config.output)}")
    table.complain_about([reason for reason in outcomes if isinstance(reason, str)])


def choose_rows(
    config: BenchmarkConfig, manifest: Manifest, given: Table | None = None
) -> tuple[Path, Table]:
    """Returns the file of the table, and the chosen rows; `given` is its content if it was read."""
    own = TABLES / f"{manifest.dataset}.yaml"
    default = own if own.is_file() else TABLES / f"{manifest.task}.yaml"
    file = named_file(config.table, "tables") if config.table else default
    table = given or read_table(file)
    if config.ablation:
        stop = _first_row_of("stop", table)
        if stop is None:
            raise ValueError(f"{file} has no row of the method stop, which --ablation starts from")
        file, table = ABLATION, read_table(ABLATION, base=table.rows[stop])
    if unknown := sorted(set(config.rows) - table.rows.keys()):
        raise ValueError(f"{file} has no row {unknown[0]!r}; it has {', '.join(table.rows)}")
    rows = {title: table.rows[title] for title in config.rows or table.rows}
    if config.methods:
        rows = {}
        for method in config.chosen_methods:
            if (title := _first_row_of(method, table)) is None:
                say(f"{file} has no row of {method}: it gets the common settings, untuned")
            own_row = table.rows[title] if title else table.common | {"method": method}
            rows[title or method] = own_row
    baseline = config.baseline or (table.baseline if table.baseline in rows else next(iter(rows)))
    if baseline not in rows:
        raise ValueError(f"baseline is {baseline!r}, but the rows are {', '.join(rows)}")
    return file, Table(rows, table.common, baseline)


def _first_row_of(method: str, table: Table) -> str | None:
    default = ExperimentConfig().method
    return next((t for t, row in table.rows.items() if row.get("method", default) == method), None)


def _trainings(
    title: str,
    values: dict[str, Any],
    file: Path,
    caches: list[StoragePath],
    config: BenchmarkConfig,
    machine: Machine,
) -> "list[TrainingRun]":
    """Returns the trainings of a row; raises ValueError if it does not fit the cache."""
    from .training.run import TrainingRun

    where = f"{file}: row {title!r}"
    if "seed" in values:
        raise ValueError(f"{where} sets seed; give --seeds instead")
    typed, usual = asdict(config.protocol), asdict(ProtocolConfig())
    given = {name: value for name, value in typed.items() if value != usual[name]}
    lists = {name: list(value) for name, value in given.items() if isinstance(value, tuple)}
    one = machine.settle(build_experiment(values | given | lists, where))
    seeds = config.seeds if one.is_trained else 1
    configs = [replace(one, seed=seed) for seed in range(seeds)]
    try:
        return [TrainingRun(one, cache, config.output) for cache in caches for one in configs]
    except ValueError as problem:
        raise ValueError(f"{where}: {problem}") from problem
