"""Searches the settings of STOP with Ray Tune; every trial is a training of the same code."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.cache_lookup import find_cache
from pipelines.command_line import parse, run
from pipelines.output import default_output
from pipelines.progress import say
from pipelines.queued_run import deliver_waiting
from pipelines.ray_session import start_ray
from pipelines.sweep_search import Search, SearchResult
from pipelines.tracking import ui_command
from pipelines.training_run import Resources
from sweeps.reading import FOLDER, read_space


@dataclass(frozen=True)
class SweepConfig:
    """Search the settings of STOP (n_s, alpha, beta, eta, prompt sizes, ...) with Ray Tune.

    Without options: eight trials on the embedded demonstration set, a few minutes on two CPU
    cores. Trials are compared on validation data alone; none of them sees the test split. After a
    kill, the same command keeps the finished trials and goes on with the others.

    Examples:
      python pipelines/sweep.py --space sweeps/smoke.yaml
      python pipelines/train.py --config outputs/sweeps/NAME/best.yaml
      ray job submit --working-dir . -- python pipelines/sweep.py --output /shared/outputs
    """

    space: Path = FOLDER / "motion.yaml"
    """The search space, in YAML; sweeps/motion.yaml is an example."""
    cache: str | None = None
    """A cache made by preprocess.py, a folder or its s3:// or gs:// URI; empty: the embedded set,
    prepared if need be."""
    output: Path = field(default_factory=default_output)
    """Where trials, the best settings and the MLflow store go."""
    trials: int | None = None
    """How many settings to try; empty: as many as the space says."""
    seed: int = 0
    """Of the draws, and of every trial's training."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


def main(config: SweepConfig) -> SearchResult:
    """Runs the sweep, prints its trials from best to worst, and stores the best settings."""
    space = read_space(config.space)
    cache = find_cache(config.cache, config.output)
    deliver_waiting(config.output)
    search = Search(
        space=space,
        title=config.space.stem,
        trials=config.trials or space.trials,
        seed=config.seed,
        cache=cache.resolve(),
        output=config.output.resolve(),
        resources=config.resources,
    )
    start_ray()
    result = search.run()
    say(f"best settings, for `train.py --config`: {result.best_file}")
    say(f"all runs: {ui_command(config.output)}")
    return result


if __name__ == "__main__":
    options = parse(SweepConfig)
    run(lambda: main(options))
