"""Kills processes of a training at random, and compares the result with an uninterrupted one.

    python tests/pipelines/chaos_train.py --kills 30 --seed 1

Two Ray nodes (a head without CPUs, and one that works) and an MLflow server run on loopback. While
`pipelines/train.py` trains, one of these gets SIGKILL: the driver, the training worker, the raylet
of the working node, or the MLflow server; whoever does not come back by itself is started again. A
training that ends is compared with the unbroken one, bit for bit, and its MLflow run point for
point; then the next one begins, until all kills are done.
"""

import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro
from mlflow import MlflowClient
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipelines.cli.console import EXIT_USAGE
from pipelines.cluster.resources import Resources
from pipelines.training.run import TrainingRun
from stop_core.settings.experiment import ExperimentConfig
from stop_core.settings.stop import StopConfig
from stop_core.trained_model.files import MODEL, PROMPTS
from tests.pipelines.motion_cache import motion_cache
from tests.pipelines.ray_nodes import Stage, ray_nodes
from tests.tools import (
    Curves,
    curves,
    kill_tree,
    killed_at_the_end,
    options_of,
    signals_interrupt,
    steps_saved,
)

VICTIMS = ("driver", "worker", "raylet", "store")
_SHARE_WHILE_TRAINING = 0.7
"""Share of the kills; the others may also hit a start-up or a recovery."""
_SECONDS_AFTER_A_FAILURE = 5.0
_MOST_FAILURES = 3
"""Failures in a row of drivers without a kill: a first start without a store is one, by design."""
EXPERIMENT = ExperimentConfig(
    stop=StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4),
    epochs=6,
    batch_size=8,
    warmup_steps=2,
)


@dataclass(frozen=True)
class Chaos:
    """Kill processes of trainings at random, and compare the results."""

    kills: int = 30
    """Total number of kills."""
    seed: int | None = None
    """Seed of the victims and times (default: a random one, which is printed)."""
    longest_wait: float = 8.0
    """Maximum seconds to the next kill: mostly after the training has resumed."""


def main(options: Chaos) -> None:
    """Runs trainings until all kills are done; exit code 1 if the result of one differs."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    dice = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    cache = motion_cache(folder)
    unbroken = TrainingRun(EXPERIMENT, cache, folder / "unbroken").train(
        Resources(), in_process=True
    )
    expected = _ended(unbroken.folder, unbroken.run_id, f"sqlite:///{folder}/unbroken/mlflow.db")
    done: Counter[str] = Counter()
    faults: list[str] = []
    trainings = 0
    with ray_nodes(folder, server=True) as stage:
        while done.total() < options.kills:
            output = folder / f"broken-{trainings}"
            _train_under_fire(stage, cache, output, options, dice, done)
            trainings += 1
            uri = stage.environment["MLFLOW_TRACKING_URI"]
            found = _compare(output, expected, uri)
            if (runs := _count_runs(uri)) != trainings:
                found.append(f"{runs} MLflow runs after {trainings} trainings")
            print(
                f"  training {trainings} ended {'OTHERWISE' if found else 'the same'}", flush=True
            )
            faults += found
    _report(seed, done, trainings, faults)
    if faults:
        sys.exit(f"what is left lies in {folder}")
    shutil.rmtree(folder)


def _report(seed: int, done: Counter[str], trainings: int, faults: list[str]) -> None:
    """Prints the table at the end."""
    print(f"\n{'killed':<12}{'times':>6}")
    for victim in VICTIMS:
        print(f"{victim:<12}{done[victim]:>6}")
    print(f"{'in all':<12}{done.total():>6}  in {trainings} trainings, seed {seed}")
    for fault in faults:
        print(f"FAULT {fault}")
    if not faults:
        print("every training ended with the bits and the records of the unbroken one, in one run")


def _train_under_fire(
    stage: Stage, cache: Path, output: Path, options: Chaos, dice: random.Random, done: Counter[str]
) -> None:
    """One training from its start to its end, with kills."""
    failures = 0
    trigger = _Trigger(output, options, dice)
    while True:
        driver, kills_before = _drive(stage, cache, output), done.total()
        with killed_at_the_end(driver):
            while driver.poll() is None:
                stage.revive()
                if done.total() < options.kills and trigger.is_due():
                    victim = dice.choice(VICTIMS)
                    if _strike(victim, stage, driver):
                        done[victim] += 1
                        print(f"{done.total():4d} killed the {victim}", flush=True)
                    trigger = _Trigger(output, options, dice)
                time.sleep(0.1)
        if driver.returncode == 0:
            return
        untouched = done.total() == kills_before
        failures = failures + 1 if untouched else 0
        if driver.returncode == EXIT_USAGE or failures == _MOST_FAILURES:
            log = (stage.folder / "driver.log").read_text(errors="replace")
            sys.exit(
                f"the driver ended with {driver.returncode}, and not because of a kill; its "
                f"log in {stage.folder} ends with\n{log[-2000:]}"
            )
        print(f"  the driver ended with {driver.returncode}; the same command again", flush=True)
        if untouched:
            time.sleep(_SECONDS_AFTER_A_FAILURE)


class _Trigger:
    """Returns the time of the next kill: mostly after the training has resumed, else any time."""

    def __init__(self, output: Path, options: Chaos, dice: random.Random) -> None:
        self.output = output
        self._steps = steps_saved(output) if dice.random() < _SHARE_WHILE_TRAINING else None
        self._pause = dice.uniform(0, options.longest_wait)
        self._since = time.monotonic()

    def is_due(self) -> bool:
        if self._steps is not None and steps_saved(self.output) <= self._steps:
            self._since = time.monotonic()
        return time.monotonic() - self._since >= self._pause


def _strike(victim: str, stage: Stage, driver: subprocess.Popen[bytes]) -> bool:
    """Kills a victim; returns whether it existed."""
    if victim == "driver":
        kill_tree(driver)
        return True
    if victim == "store":
        stage.kill("store")
        time.sleep(2)
        stage.start("store")
        return True
    if victim == "raylet":
        stage.kill("node0")
        stage.start("node0")
        return True
    worker = stage.train_worker()
    with contextlib.suppress(psutil.Error):
        if worker:
            worker.kill()
            return True
    return False


def _drive(stage: Stage, cache: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "pipelines/train.py", "--cache", str(cache)]
    command += ["--output", str(output), "--checkpoint-every-steps", "2", *options_of(EXPERIMENT)]
    log = (stage.folder / "driver.log").open("ab")
    return subprocess.Popen(
        command, cwd=ROOT, env=stage.environment, stdout=log, stderr=log, start_new_session=True
    )


def _compare(output: Path, expected: "Ending", uri: str) -> list[str]:
    """Returns the differences to the uninterrupted training."""
    from pipelines.tracking.queued_run import QueuedRun

    (folder,) = (output / "runs").iterdir()
    run = QueuedRun(folder, uri)
    if problem := run.deliver(60):
        return [f"{folder}: records still wait: {problem}"]
    found = _ended(str(folder), run.run_id, uri)
    faults = []
    if any(not np.array_equal(found.weights[n], w) for n, w in expected.weights.items()):
        faults.append(f"{folder}: the weights differ")
    for name, points in expected.points.items():
        if found.points.get(name) != points:
            faults.append(f"{folder}: {name} is {found.points.get(name)}, not {points}")
    return faults


def _count_runs(uri: str) -> int:
    client = MlflowClient(uri)
    return len(client.search_runs([one.experiment_id for one in client.search_experiments()]))


@dataclass(frozen=True)
class Ending:
    """The results of a training."""

    weights: dict[str, np.ndarray]
    points: Curves


def _ended(folder: str, run_id: str, uri: str) -> Ending:
    return Ending(load_file(Path(folder) / MODEL / PROMPTS), curves(uri, run_id))


if __name__ == "__main__":
    with signals_interrupt():
        main(tyro.cli(Chaos))
