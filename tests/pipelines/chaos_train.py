"""Kills parts of a training at random moments, and holds what is left against an unbroken one.

    python tests/pipelines/chaos_train.py --kills 30 --seed 1

Two Ray nodes (a head without CPUs, and one that works) and an MLflow server run on loopback. While
`pipelines/train.py` trains, one of these gets SIGKILL: the driver, the training worker, the raylet
of the working node, or the MLflow server; whoever does not come back by itself is started again. A
training that ends is compared with the unbroken one, bit for bit, and its MLflow run point for
point; then the next one begins, until all kills are done.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipelines.command_line import USAGE_ERROR  # noqa: E402
from pipelines.preprocess import PreprocessConfig, preprocess  # noqa: E402
from pipelines.training_run import PROMPTS, Resources, TrainingRun  # noqa: E402
from stop_core.config import StopConfig  # noqa: E402
from stop_core.experiment import ExperimentConfig  # noqa: E402
from stop_core.tiny.motion import write_motion_dataset  # noqa: E402
from tests.tools import Curves, curves, free_ports, kill_tree, options_of  # noqa: E402

PORTS = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
VICTIMS = ("driver", "worker", "raylet", "store")
_MOST_FAILURES = 3
"""Of drivers in a row that nothing was done to: a first start without a store is one, by design."""
BIN = Path(sys.executable).parent
EXPERIMENT = ExperimentConfig(
    stop=StopConfig(n_s=2, max_prompts=2, spatial_width=4, temporal_width=4),
    epochs=6,
    batch_size=8,
    warmup_steps=2,
)


@dataclass(frozen=True)
class Chaos:
    """Kill parts of trainings at random, and compare what they end with."""

    kills: int = 30
    """How many kills in all."""
    seed: int | None = None
    """Of what is killed and when; empty draws one, and it is printed."""
    longest_wait: float = 8.0
    """Seconds, at most, from one kill, once the training goes on, to the next."""


@dataclass
class Stage:
    """The processes that a training needs, and the commands that start them again."""

    folder: Path
    environment: dict[str, str]
    head: list[str]
    node: list[str]
    store: list[str]
    running: dict[str, subprocess.Popen[bytes]]

    def start(self, name: str) -> None:
        """Starts head, node or store."""
        log = (self.folder / f"{name}.log").open("ab")
        command = {"head": self.head, "node": self.node, "store": self.store}[name]
        self.running[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def kill(self, name: str) -> None:
        """Kills a process and all that it has started."""
        kill_tree(self.running.pop(name))


def main(options: Chaos) -> None:
    """Runs trainings until all kills are done; exit code 1 if one ended otherwise."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    dice = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    cache = _cache(folder)
    unbroken = TrainingRun(EXPERIMENT, cache, folder / "unbroken").train(Resources(), here=True)
    expected = _ended(unbroken.folder, unbroken.run_id, f"sqlite:///{folder}/unbroken/mlflow.db")
    done: Counter[str] = Counter()
    faults: list[str] = []
    trainings = 0
    with _stage(folder) as stage:
        while done.total() < options.kills:
            output = folder / f"broken-{trainings}"
            _train_under_fire(stage, cache, output, options, dice, done)
            trainings += 1
            faults += _compare(output, expected, stage.environment["MLFLOW_TRACKING_URI"])
    print(f"{done.total()} kills in {trainings} trainings: {dict(done)}; seed {seed}")
    for fault in faults:
        print(f"FAULT {fault}")
    if faults:
        sys.exit(f"what is left lies in {folder}")
    print("every training ended with the bits and the records of the unbroken one")
    shutil.rmtree(folder)


def _train_under_fire(
    stage: Stage, cache: Path, output: Path, options: Chaos, dice: random.Random, done: Counter[str]
) -> None:
    """One training from its start to its end, whatever is killed meanwhile."""
    driver, kills_before, failures = _drive(stage, cache, output), done.total(), 0
    next_kill = time.monotonic() + 12 + dice.uniform(0, options.longest_wait)
    while True:
        if driver.poll() is not None:
            if driver.returncode == 0:
                return
            untouched = done.total() == kills_before
            failures = failures + 1 if untouched else 0
            if driver.returncode == USAGE_ERROR or failures == _MOST_FAILURES:
                log = (stage.folder / "driver.log").read_text(errors="replace")
                sys.exit(
                    f"the driver ended with {driver.returncode}, and not because of a kill; its "
                    f"log in {stage.folder} ends with\n{log[-2000:]}"
                )
            print(
                f"  the driver ended with {driver.returncode}; the same command again", flush=True
            )
            driver, kills_before = _drive(stage, cache, output), done.total()
        if time.monotonic() >= next_kill and done.total() < options.kills:
            victim = dice.choice(VICTIMS)
            if _strike(victim, stage, driver):
                done[victim] += 1
                print(f"{done.total():4d} killed the {victim}", flush=True)
            next_kill = time.monotonic() + 3 + dice.uniform(0, options.longest_wait)
        time.sleep(0.1)


def _strike(victim: str, stage: Stage, driver: subprocess.Popen[bytes]) -> bool:
    """Kills one of them; whether it was there to be killed."""
    if victim == "driver":
        kill_tree(driver)
        return True
    if victim == "store":
        stage.kill("store")
        time.sleep(2)
        stage.start("store")
        return True
    if victim == "raylet":
        stage.kill("node")
        stage.start("node")
        return True
    for process in psutil.Process(stage.running["node"].pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
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
    """What is not as in the unbroken training."""
    from pipelines.queued_run import QueuedRun

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


@dataclass(frozen=True)
class Ending:
    """What a training left behind."""

    weights: dict[str, np.ndarray]
    points: Curves


def _ended(folder: str, run_id: str, uri: str) -> Ending:
    return Ending(load_file(Path(folder) / PROMPTS), curves(uri, run_id))


def _cache(folder: Path) -> Path:
    """A small motion set as a cache; made in a process of its own, whose Ray ends with it."""
    import ray

    write_motion_dataset(folder / "videos", train=64, test=16, seed=1)
    preprocess(
        PreprocessConfig(
            dataset="hmdb51", data_root=folder / "videos", cache=folder / "cache", frames=6,
            size=32, output=folder,
        )
    )  # fmt: skip
    ray.shutdown()
    return folder / "cache"


@contextlib.contextmanager
def _stage(folder: Path) -> Iterator[Stage]:
    """Head, node and store, running."""
    ports = iter(free_ports(20))
    gcs, store = next(ports), next(ports)
    # Ray's sockets live below it, and their names may not be long.
    sessions = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{store}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    ray = [str(BIN / "ray"), "start", "--block"]
    head = [*ray, "--head", f"--port={gcs}", "--num-cpus=0", f"--temp-dir={sessions}"]
    head += [f"--dashboard-port={next(ports)}", f"--ray-client-server-port={next(ports)}"]
    head += ["--node-ip-address=127.0.0.1", *(f"--{name}={next(ports)}" for name in PORTS)]
    # An address of its own: at the driver's, the driver might live on this node, and die with it.
    node = [*ray, f"--address=127.0.0.1:{gcs}", "--num-cpus=2", "--node-ip-address=127.0.0.2"]
    node += [f"--{name}={next(ports)}" for name in PORTS]
    server = [str(BIN / "mlflow"), "server", "--host=127.0.0.1", f"--port={store}", "--workers=1"]
    server += [f"--backend-store-uri=sqlite:///{folder}/server.db"]
    server += [f"--artifacts-destination={folder}/artifacts"]
    stage = Stage(folder, environment, head, node, server, {})
    try:
        for name in ("store", "head"):
            stage.start(name)
        _until(lambda: _answers(gcs) and _answers(store))
        stage.start("node")
        yield stage
    finally:
        for name in list(stage.running):
            stage.kill(name)
        shutil.rmtree(sessions, ignore_errors=True)


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        if time.monotonic() > deadline:
            sys.exit("Ray or the MLflow server did not start")
        time.sleep(0.2)


if __name__ == "__main__":
    main(tyro.cli(Chaos))
