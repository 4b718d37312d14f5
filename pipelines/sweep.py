"""Searches the settings of STOP with Ray Tune; a trial is a training like that of `stop train`."""

if __name__ == "__main__":  # python pipelines/sweep.py
    __import__("stop").run_file(__file__)

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .cli.console import add_result, print_result
from .cli.folders import SWEEPS, default_output, named_file
from .cli.options import OutputFolder, spell_out
from .cluster.devices import choose_devices
from .cluster.resources import ResourceOptions
from .preprocessing.find_cache import find_cache

if TYPE_CHECKING:  # Ray, torch and MLflow take seconds to import, and --help needs none of them
    from .sweeping.results import SweepResult
    from .sweeping.search import Search
    from .sweeping.space import SearchSpace


@dataclass(frozen=True)
class SweepConfig:
    """Search the settings of STOP (n_s, alpha, beta, eta, prompt sizes, ...) with Ray Tune.

    Without options, it searches the space sweeps/motion.yaml on the embedded demonstration set,
    which takes some minutes on two CPU cores. Trials are compared on validation data and never
    read the test split. After an interruption, the same command keeps the finished trials and
    resumes the others. See docs/sweeps.md.

    Examples:
      stop sweep --space sweeps/smoke.yaml
      stop sweep --dry-run
      stop sweep --confirm 5
      stop train --config outputs/sweeps/NAME/best.yaml
      ray job submit --working-dir . -- python pipelines/sweep.py --output /shared
    """

    space: Path = SWEEPS / "motion.yaml"
    """The search space: a YAML file, or the name of one in sweeps/, for example hmdb51."""
    cache: str | None = None
    """A cache made by preprocess: a folder, or an s3:// or gs:// URI (default: the embedded set,
    preprocessed if needed)."""
    output: OutputFolder = field(default_factory=default_output)
    """Folder, or s3:// or gs:// URI, for the trials, the best settings and the MLflow store."""
    trials: int | None = None
    """Number of settings to draw (default: the number in the space). A larger number extends the
    same sweep. Not for a space whose points are all tried."""
    seed: int = 0
    """Seed of the draws, and of the training of every trial."""
    max_concurrent: int | None = None
    """Number of concurrent trials (default: as many as the cluster has room for)."""
    trials_per_gpu: int | None = None
    """Number of trials that share a GPU; N is the same as --gpus-per-worker 1/N."""
    dry_run: bool = False
    """Print the trials and their approximate cost, and start none."""
    confirm: int = 0
    """Number of other seeds on which to retrain the best settings and test them once; 0: none."""
    retry_failed: bool = False
    """Retry the trials that failed before."""
    resources: ResourceOptions = field(default_factory=ResourceOptions)

    def __post_init__(self) -> None:
        for name in ("trials", "max_concurrent", "trials_per_gpu"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("seed", "confirm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.trials_per_gpu and self.resources.gpus_per_worker:
            raise ValueError("give trials_per_gpu or gpus_per_worker, not both")

    def command(self) -> str:
        """Returns the command line that resumes this sweep."""
        once = ("trials", "dry_run", "confirm", "retry_failed")  # only for one run of it
        words = spell_out(self, always=("space", "output", "seed"), never=once)
        return " ".join(["stop sweep", *words])

    def shared_resources(self) -> ResourceOptions:
        """Returns the resources of a trial, with its share of a GPU."""
        if not self.trials_per_gpu:
            return self.resources
        return replace(self.resources, gpus_per_worker=1 / self.trials_per_gpu)

    def checked_space(self) -> "SearchSpace":
        """Reads the space; raises a ValueError if it does not fit the other options."""
        from .sweeping.read_space import read_space

        space = read_space(named_file(self.space))
        if self.trials and space.is_listed:
            raise ValueError(
                f"trials is {self.trials}, but {self.space} is searched by {space.algorithm}, "
                "which tries every point; leave --trials out, or remove values from the space"
            )
        return space

    def search(self) -> "Search":
        """Returns the search of these options, on the GPUs that there are."""
        from .sweeping.search import Search

        space = self.checked_space()  # before the cache is prepared, which can take minutes
        machine = choose_devices(self.shared_resources())
        if machine.bf16 and "precision" not in space.search:
            space = replace(space, fixed={"precision": "bf16", **space.fixed})
        return Search(
            space=space,
            title=self.space.stem,
            trials=self.trials,
            seed=self.seed,
            cache=find_cache(self.cache, self.output).resolve(),
            output=self.output.resolve(),
            resources=machine.resources,
            max_concurrent=self.max_concurrent,
            retry_failed=self.retry_failed,
        )


def main(config: SweepConfig) -> "SweepResult | None":
    """Runs the sweep, prints its trials, best first, and writes the report; None for a dry run."""
    from .sweeping.dry_run import print_plan
    from .sweeping.report.report import REPORT, Report
    from .sweeping.results import confirm, print_trials, write_results
    from .tracking.queued_run import deliver_waiting
    from .tracking.store import ui_command

    search = config.search()
    if config.dry_run:
        search.check()
        print_plan(search)
        return None
    deliver_waiting(config.output)
    with search.opened() as (trials, tracked):
        search.run(trials, tracked)
        result = write_results(search, trials)
        print_trials(search, result)
        confirmed = confirm(search, result, config.confirm, tracked.run_id)
        Report(search, trials, result, config.command(), confirmed).publish(tracked)
    following = f"stop train --config {shlex.quote(str(result.best_file))}"
    print_result(f"report: {search.folder / REPORT}")
    print_result(f"best settings: {following}")
    print_result(f"all runs: {ui_command(config.output)}")
    add_result(
        name=search.name,
        trials=result.trials.to_dict("records"),
        best={"trial": result.best.name, "settings": result.best.drawn, "file": result.best_file},
        front=[point.name for point in result.front],
        confirmed=[] if confirmed is None else confirmed.to_dict("records"),
        run_id=tracked.run_id,
        folder=search.folder,
        report=search.folder / REPORT,
        next=following,
    )
    return result
