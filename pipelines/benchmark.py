"""Prints the comparison table: every method through the same code, data and selection rule."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cache_lookup import find_cache
from pipelines.command_line import parse, run
from pipelines.many_runs import Job, run_all
from pipelines.output import default_output
from pipelines.progress import say
from pipelines.queued_run import deliver_waiting
from pipelines.ray_session import start_ray
from pipelines.table import ComparisonTable, publish
from pipelines.tracking import ui_command
from pipelines.training_run import Resources, TrainingRun
from stop_core.experiment import ExperimentConfig
from stop_core.storage import StoragePath
from sweeps.reading import FOLDER, build_experiment, read_table


@dataclass(frozen=True)
class BenchmarkConfig:
    """Compare STOP with its baselines, over several seeds, and print the table.

    Without options: the embedded demonstration set, a few minutes on two CPU cores. Trainings
    that were done before, with the same settings on the same data, are not run again; after a
    kill, the same command does what is missing.

    Example:
      python pipelines/benchmark.py --table my_rows.yaml --cache outputs/cache/hmdb51 --seeds 5
    """

    table: Path = FOLDER / "tables" / "motion.yaml"
    """The rows, in YAML; sweeps/tables/motion.yaml is an example."""
    cache: str | None = None
    """A cache made by preprocess.py, a folder or its s3:// or gs:// URI; empty: the embedded set,
    prepared if need be."""
    output: Path = field(default_factory=default_output)
    """Where runs, tables and the MLflow store go."""
    seeds: int = 3
    """Trainings of every row, with the seeds 0, 1, ...; a row without training is run once."""
    rows: tuple[str, ...] = ()
    """Titles of the rows to run; empty: all."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")


def main(config: BenchmarkConfig) -> ComparisonTable:
    """Runs what is missing of the table, prints it, and stores it."""
    experiments = _experiments(config)
    cache = find_cache(config.cache, config.output)
    deliver_waiting(config.output)
    rows = {title: _trainings(title, seeds, cache, config) for title, seeds in experiments.items()}
    jobs = [Job(run, f"{title}, seed {run.config.seed}") for title in rows for run in rows[title]]
    planned = {title: [run.config for run in runs] for title, runs in rows.items()}
    table = ComparisonTable.planned(jobs[0].training.manifest, planned, config.output)
    parent = table.track(config.output)
    missing = [job for job in jobs if job.training.remembered() is None]
    say(f"{len(jobs)} trainings in the table, {len(missing)} of them to run")
    if missing:
        start_ray()
    with parent.ended():
        outcomes = run_all(jobs, config.resources, parent.run_id)
        table.fill([result for result in outcomes if not isinstance(result, str)])
        publish(table, parent)
        say(f"all runs: {ui_command(config.output)}")
        table.complain_about([reason for reason in outcomes if isinstance(reason, str)])
    return table


def _trainings(
    title: str, seeds: list[ExperimentConfig], cache: StoragePath, config: BenchmarkConfig
) -> list[TrainingRun]:
    """The trainings of a row; ValueError if it does not fit the cache."""
    try:
        return [TrainingRun(experiment, cache, config.output) for experiment in seeds]
    except ValueError as problem:
        raise ValueError(f"{config.table}: row {title!r}: {problem}") from problem


def _experiments(config: BenchmarkConfig) -> dict[str, list[ExperimentConfig]]:
    """The trainings of every row."""
    rows = read_table(config.table).rows
    if unknown := sorted(set(config.rows) - rows.keys()):
        raise ValueError(f"{config.table} has no row {unknown[0]!r}; it has {', '.join(rows)}")
    experiments = {}
    for title in config.rows or rows:
        if "seed" in rows[title]:
            raise ValueError(f"{config.table}: row {title!r} sets seed; give --seeds instead")
        one = build_experiment(rows[title], f"{config.table}: row {title!r}")
        seeds = config.seeds if one.is_trained else 1
        experiments[title] = [replace(one, seed=seed) for seed in range(seeds)]
    return experiments


if __name__ == "__main__":
    options = parse(BenchmarkConfig)
    run(lambda: main(options))
