"""Three nodes that share only a bucket preprocess, train, sweep and make a table, despite losses.

    python tests/pipelines/chaos_nodes.py

Every node has its own mounts: home, temporary files and Ray's sessions are on a disk that no other
node sees, and that is lost with it. Videos, cache and results are on an S3 server on loopback; the
records go to an MLflow server. On the way:

    preprocess   a node is lost and replaced by an empty one
    train        with two workers on two nodes: one is lost and replaced; the store is away
    sweep        the head is lost with its disk; on a new cluster, the same command again

Then one node does the same without losses. All results must be equal, in one MLflow run each. It
needs the right to make namespaces (root), and 20 minutes on two cores that do nothing else.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs
import tyro
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipelines.cli.console import EXIT_USAGE
from stop_core.datasets.motion.files import write_motion_dataset
from stop_core.storage.documents import parse_json
from stop_core.storage.paths import RemotePath, StoragePath
from tests.pipelines.chaos_train import EXPERIMENT
from tests.pipelines.ray_nodes import Stage, ray_nodes, train_worker
from tests.tools import kill_tree, killed_at_the_end, options_of, signals_interrupt

SPACE = """
algorithm: grid
fixed: {method: stop, tower: tiny, epochs: 2, batch_size: 16, max_prompts: 2, spatial_width: 4}
search:
  n_s: {choice: [1, 2]}
"""
TABLE = """
common: {tower: tiny, batch_size: 16, epochs: 1}
baseline: zero-shot
rows:
  zero-shot: {method: zero-shot}
  prompts: {method: vpt-deep, static_prompts: 2}
"""
_MOST_STARTS = 6
"""Starts of one command: a busy machine may not start Ray in time."""


@dataclass(frozen=True)
class NodesChaos:
    """Lose nodes, the head and the store, and compare the results with those of one node."""

    away: float = 60.0
    """Seconds for which the store does not answer."""
    shared_disk: bool = False
    """Results in a folder that all nodes see, as on NFS; the videos and the cache stay on the
    store."""


@dataclass(frozen=True)
class Loss:
    """A loss, which happens once it is due."""

    of: str
    is_due: Callable[[], bool]
    strike: Callable[[], None]


class Story:
    """The commands on one cluster, with their results in `output`."""

    def __init__(self, stage: Stage, own: Path, shared_disk: bool) -> None:
        self.stage, self.own = stage, own
        server = stage.environment["STOP_TEST_S3"]
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        os.environ.update({name: stage.environment[name] for name in keys})
        self.bucket = RemotePath("s3", "stop", f"endpoint_override={server}&scheme=http")
        self.output: StoragePath = stage.folder / "out" if shared_disk else self.bucket / "out"
        self.losses = 0
        filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{self.bucket}&allow_bucket_creation=true")
        filesystem.create_dir("stop")
        write_motion_dataset(stage.folder / "videos", train=64, test=16, seed=1)
        for path in (stage.folder / "videos").rglob("*.*"):
            (self.bucket / f"{path.relative_to(stage.folder)}").upload(path)

    def tell(self, away: float | None) -> None:
        """Runs all commands; with `away`, losses happen, and the store is away so many seconds."""
        cache, steps = str(self.bucket / "cache"), self.steps_saved
        space, table = self.stage.folder / "space.yaml", self.stage.folder / "table.yaml"
        space.write_text(SPACE)
        table.write_text(TABLE)
        losses: dict[str, list[Loss]] = {}
        if away is not None:
            worker = Loss("a node at work", lambda: steps() >= 2, self.replace_worker)
            store = Loss("the store", lambda: steps() >= 6, lambda: self.suspend_store(away))
            losses = {
                "preprocess": [
                    Loss("a node", lambda: self.shards() > 0, lambda: self.replace("node0"))
                ],
                "train": [worker, store],
                "sweep": [Loss("the head", lambda: self.trials_begun() > 0, self.lose_head)],
            }
        experiment = options_of(replace(EXPERIMENT, epochs=4))
        root, shape = str(self.bucket / "videos"), ("--frames", "6", "--size", "32")
        commands = {
            "preprocess": ["--dataset", "hmdb51", "--data-root", root, *shape],
            "train": ["--workers", "2", "--checkpoint-every-steps", "2", *experiment],
            "sweep": ["--space", str(space)],
            "benchmark": ["--table", str(table), "--seeds", "1"],
        }
        for name, words in commands.items():
            self.run(name, ["--cache", cache, *words], losses.get(name, []))

    def run(self, name: str, words: Sequence[str], losses: list[Loss]) -> None:
        """Runs a command, with losses, and the same command again until it succeeds."""
        # Preprocessing only reports to MLflow there.
        output = str(self.own / "out" if name == "preprocess" else self.output)
        words = [sys.executable, f"pipelines/{name}.py", *words, "--output", output]
        log = self.stage.folder / f"{name}.log"
        options = {"cwd": ROOT, "env": self.stage.environment, "start_new_session": True}
        for _ in range(_MOST_STARTS):
            began = time.monotonic()
            with log.open("ab") as file:
                self.driver = subprocess.Popen(words, stdout=file, stderr=file, **options)
            with killed_at_the_end(self.driver):
                while self.driver.poll() is None:
                    if losses and losses[0].is_due():
                        loss = losses.pop(0)
                        print(f"{time.monotonic() - began:6.0f} s: lost {loss.of}", flush=True)
                        loss.strike()
                        self.losses += 1
                    self.stage.revive()
                    time.sleep(1)
            code, seconds = self.driver.returncode, time.monotonic() - began
            print(f"{seconds:6.0f} s: {name} ended with {code}", flush=True)
            if code == 0 and losses:
                sys.exit(f"{name} ended before {losses[0].of} could be lost")
            if code == 0:
                return
            if code == EXIT_USAGE:
                break
            self.stage.start_all()
        sys.exit(f"{name} does not succeed:\n{log.read_text(errors='replace')[-3000:]}")

    def replace(self, node: str) -> None:
        """Loses a node with its disk, and starts an empty one."""
        self.stage.kill(node)
        self.stage.start(node)

    def replace_worker(self) -> None:
        """Loses a node on which a worker trains."""
        running = {name: psutil.Process(self.stage.running[name].pid) for name in self.stage.nodes}
        self.replace(next(name for name, root in running.items() if train_worker(root)))

    def lose_head(self) -> None:
        """Loses the head with its disk and the driver; Ray's nodes do not outlive it."""
        for name in ("head", *self.stage.nodes):
            self.stage.kill(name)
        kill_tree(self.driver)
        shutil.rmtree(self.own)
        make_home(self.own)

    def suspend_store(self, seconds: float) -> None:
        """Suspends the store: it accepts connections, and does not answer."""
        server = self.stage.running["s3"]
        server.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.send_signal(signal.SIGCONT)

    def shards(self) -> int:
        """Returns how many shards of the cache are complete."""
        return len(list((self.bucket / "cache/records").listing()))

    def steps_saved(self) -> int:
        """Returns the steps of the latest checkpoint of all runs."""
        return max(
            (one["step"] for one in self._read("runs/*/checkpoint*/progress.json")), default=0
        )

    def trials_begun(self) -> int:
        """Returns how many trials of the sweep have a record."""
        return len(self._read("sweeps/*/trials/*.json"))

    def cache_files(self) -> dict[str, bytes]:
        """Returns the files of the cache, except locks and records of upload times."""
        folder, apart = self.bucket / "cache", (".lock", "records/")
        names = [name for name, status in folder.listing() if status and not name.startswith(apart)]
        return {name: (folder / name).read_bytes() for name in names}

    def results(self) -> dict[str, dict[str, float]]:
        """Returns the metrics of all trainings by their names, which have the hash of the data."""
        return {one["name"]: one["metrics"] for one in self._read("runs/*/result.json")}

    def recorded(self) -> int:
        """Returns the number of trainings in MLflow."""
        client = MlflowClient(self.stage.environment["MLFLOW_TRACKING_URI"])
        experiments = [one.experiment_id for one in client.search_experiments()]
        return len(client.search_runs(experiments, "tags.kind = 'training'"))

    def _read(self, pattern: str) -> list[dict[str, Any]]:
        found = []
        for path in self.output.glob(pattern):
            with contextlib.suppress(OSError, ValueError):  # it is being replaced
                found.append(parse_json(path.read_text()))
        return found


def make_home(own: Path) -> None:
    """Makes the folders of the head and of the driver, which have a disk of their own, too."""
    for name in ("home", "tmp"):
        (own / name).mkdir(parents=True)


def main(options: NodesChaos) -> None:
    """Runs the story on three nodes with losses, then on one; exit code 1 if results differ."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    endings = []
    losses = 0
    for name, nodes, away in (("three", 3, options.away), ("one", 1, None)):
        print(f"{name}:", flush=True)
        own = folder / name / "own"
        make_home(own)
        cpus = 1 if nodes > 1 else 2
        with ray_nodes(
            folder / name, nodes=nodes, cpus=cpus, server=True, hidden=own, apart=True
        ) as stage:
            story = Story(stage, own, options.shared_disk)
            story.tell(away)
            endings.append((story.cache_files(), story.results(), story.recorded()))
            losses += story.losses
    (files, results, recorded), (files_of_one, results_of_one, _) = endings
    faults = [
        f"{name} of the cache differs"
        for name in files_of_one
        if files.get(name) != files_of_one[name]
    ]
    faults += [
        f"{name}: {results.get(name)}, not {metrics}"
        for name, metrics in results_of_one.items()
        if results.get(name) != metrics
    ]
    if recorded != len(results):
        faults.append(f"{recorded} MLflow runs of {len(results)} trainings")
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"in all {losses} losses; {len(files)} files of the cache and {len(results)} trainings")
    if faults:
        sys.exit(f"what is left lies in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    with signals_interrupt():
        main(tyro.cli(NodesChaos))
