"""Kills a sweep at random moments, and compares the result with an uninterrupted one.

    python tests/pipelines/chaos_sweep.py --kills 8 --seed 1

While `pipelines/sweep.py` searches by TPE and ASHA, one trial at a time, SIGKILL hits its driver
(with the Ray that it has started) or the process of a trial. A driver that does not come back by
itself is started again by the same command. A sweep that ends must have the trials of the unbroken
one: numbers, settings, states, measures, best settings; one MLflow run a trial, the same before a
kill and after it, with the parameters that the space asks for. Then the next sweep begins, until
all kills are done.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
import yaml
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipelines.cli.console import EXIT_USAGE
from pipelines.sweeping.read_space import read_space
from pipelines.sweeping.trials import Trial, Trials
from tests.pipelines.motion_cache import motion_cache
from tests.tools import kill_tree, killed_at_the_end, signals_interrupt

VICTIMS = ("driver", "trial")
_MOST_FAILURES = 3
"""Failures in a row of drivers without a kill."""
SPACE = """
algorithm: tpe
trials: 7
startup_trials: 3
scheduler: {asha: {grace_period: 1, reduction_factor: 2}}
fixed: {method: stop, tower: tiny, epochs: 3, batch_size: 16, max_prompts: 2, spatial_width: 4}
search:
  n_s: {choice: [1, 2, 4]}
  alpha: {uniform: [0.0, 1.0]}
  eta: {quniform: [0.0, 2.0, 0.5]}
  temporal_width: {choice: [4, 8], when: {eta: {above: 0}}}
  learning_rate: {loguniform: [1e-3, 1e-2]}
"""


@dataclass(frozen=True)
class Chaos:
    """Kill processes of sweeps at random, and compare the results."""

    kills: int = 8
    """Total number of kills."""
    seed: int | None = None
    """Seed of the victims and times (default: a random one, which is printed)."""
    longest_wait: float = 20.0
    """Maximum seconds from the start of a trial to the kill."""
    cache: Path | None = None
    """Cache of the embedded dataset (default: a small new one)."""


def main(options: Chaos) -> None:
    """Runs sweeps until all kills are done; exit code 1 if the result of one differs."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    dice, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix="chaos-"))
    (folder / "space.yaml").write_text(SPACE)
    cache = options.cache or motion_cache(folder)
    unbroken = _drive(folder, cache, folder / "unbroken")
    with killed_at_the_end(unbroken):
        unbroken.wait()
    if unbroken.returncode != 0:
        sys.exit(f"the unbroken sweep failed; its log is {folder / 'driver.log'}")
    print(f"the unbroken sweep: {_states(folder / 'unbroken')}", flush=True)
    done: Counter[str] = Counter()
    faults: list[str] = []
    sweeps = 0
    while done.total() < options.kills:
        output = folder / f"broken-{sweeps}"
        runs = _sweep_under_fire(folder, cache, output, options, dice, done)
        sweeps += 1
        faults += compare(folder / "space.yaml", folder / "unbroken", output, runs)
    print(f"{done.total()} kills in {sweeps} sweeps: {dict(done)}; seed {seed}")
    for fault in faults:
        print(f"FAULT {fault}")
    if faults:
        sys.exit(f"the results are in {folder}")
    print("every sweep ended with the trials, the best settings and the runs of the unbroken one")
    shutil.rmtree(folder)


def _sweep_under_fire(
    folder: Path, cache: Path, output: Path, options: Chaos, dice: random.Random, done: Counter[str]
) -> dict[str, str]:
    """Runs a sweep to its end; returns the first MLflow run of each trial."""
    runs: dict[str, str] = {}
    failures = 0
    while True:
        driver = _drive(folder, cache, output)
        with killed_at_the_end(driver):
            hit = _strike_later(driver, output, options, dice, done, runs)
            code = driver.wait()
        if code == 0:
            return runs
        failures = 0 if hit else failures + 1
        if code == EXIT_USAGE or failures == _MOST_FAILURES:
            log = (folder / "driver.log").read_text(errors="replace")
            sys.exit(f"the driver ended with {code}, and not because of a kill:\n{log[-3000:]}")


def _strike_later(
    driver: subprocess.Popen[bytes],
    output: Path,
    options: Chaos,
    dice: random.Random,
    done: Counter[str],
    runs: dict[str, str],
) -> bool:
    """Kills processes while trials train; returns whether the driver was killed."""
    strike: float | None = None
    in_a_row = 0
    while driver.poll() is None:
        time.sleep(0.05)
        _see_runs(output, runs)
        trials = _trial_processes(driver)
        if done.total() >= options.kills or not trials:
            continue
        strike = strike or time.monotonic() + dice.uniform(0, options.longest_wait)
        if time.monotonic() < strike:
            continue
        # Tune gives up a trial whose process fails three times under one driver.
        victim = "driver" if in_a_row == 2 else dice.choice(VICTIMS)
        strike, in_a_row = None, in_a_row + 1
        done[victim] += 1
        print(f"{done.total():4d} killing the {victim}; {_states(output)}", flush=True)
        if victim == "driver":
            kill_tree(driver)
            return True
        with contextlib.suppress(psutil.Error):
            trials[0].kill()
    return False


def _trial_processes(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ImplicitFunc" in " ".join(
                    process.cmdline()
                ):  # the actor that Tune makes of a function
                    found.append(process)
    return found


def _drive(folder: Path, cache: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "pipelines/sweep.py", "--space", str(folder / "space.yaml")]
    command += ["--cache", str(cache), "--output", str(output), "--max-concurrent", "1"]
    command += ["--checkpoint-every-steps", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    log = (folder / "driver.log").open("ab")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def compare(space_file: Path, unbroken: Path, broken: Path, runs: dict[str, str]) -> list[str]:
    """Returns the differences to the uninterrupted sweep, and to the search space."""
    (first,), (second,) = ((one / "sweeps").iterdir() for one in (unbroken, broken))
    faults = []
    expected, found = Trials(first).all, Trials(second).all
    if len(found) != len(expected):
        faults.append(f"{second}: {len(found)} trials, not {len(expected)}")
    for one, other in zip(expected, found, strict=False):
        if differing := _differences(one, other):
            faults.append(f"{second}: {one.name}: {', '.join(differing)} differ")
    if _best(first) != _best(second):
        faults.append(f"{second}: best.yaml differs")
    return faults + _compare_runs(space_file, broken, found, runs)


def _differences(one: Trial, other: Trial) -> list[str]:
    fields = ("number", "drawn", "seed", "state", "measures", "reason", "run")
    differing = [name for name in fields if getattr(one, name) != getattr(other, name)]
    return differing + (["curve"] if _untimed(one) != _untimed(other) else [])


def _untimed(trial: Trial) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "step_seconds"} for row in trial.curve]


def _best(sweep: Path) -> dict[str, object]:
    settings: dict[str, object] = yaml.safe_load((sweep / "best.yaml").read_text())
    return settings


def _compare_runs(
    space_file: Path, output: Path, trials: list[Trial], runs: dict[str, str]
) -> list[str]:
    """Checks that each trial has one MLflow run, its first one, with the right parameters."""
    space, faults = read_space(space_file), []
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    every = client.search_runs(experiments)
    children = {r.data.tags["trial"]: r for r in every if r.data.tags.get("kind") == "training"}
    if len(every) != len(trials) + 1 or len(children) != len(trials):
        faults.append(f"{output}: {len(every)} MLflow runs for {len(trials)} trials and a sweep")
    for trial in trials:
        run = children.get(trial.name)
        if run is None:
            continue
        if runs.get(trial.run, run.info.run_id) != run.info.run_id:
            faults.append(f"{output}: {trial.name} has changed its MLflow run")
        for name, value in space.complete(trial.drawn).items():
            if run.data.params[name] != str(value):
                faults.append(f"{output}: {trial.name}: {name} is {run.data.params[name]}")
        if run.data.tags["state"] != trial.state:
            faults.append(f"{output}: {trial.name} is marked {run.data.tags['state']}")
        for name, value in trial.drawn.items():
            if not space.search[name].contains(value):
                faults.append(f"{output}: {trial.name}: {name} {value} is not in the space")
    return faults


def _see_runs(output: Path, runs: dict[str, str]) -> None:
    for known in (output / "runs").glob("*/mlflow_run_id"):
        with contextlib.suppress(OSError):
            runs.setdefault(known.parent.name, known.read_text())


def _states(output: Path) -> str:
    found = list((output / "sweeps").glob("*"))
    trials = Trials(found[0]).all if found else []
    states = [f"{one.number}:{one.state}({one.epochs})" for one in trials]
    return ", ".join(states) or "no trial yet"


if __name__ == "__main__":
    with signals_interrupt():
        main(tyro.cli(Chaos))
