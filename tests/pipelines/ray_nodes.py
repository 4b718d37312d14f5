"""Real Ray nodes on one machine, each with its own raylet, and an MLflow server.

The head has no CPUs, so what works lives on the other nodes, which may be killed and started again.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from tests.tools import free_ports, kill_tree

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PORTS = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
_SECONDS_TO_START = 240


@dataclass
class Stage:
    """The processes that a training needs, and the commands that restart them."""

    folder: Path
    """Folder for the logs."""
    environment: dict[str, str]
    """Environment in which a driver finds them."""
    commands: dict[str, list[str]]
    ports: list[int] = field(default_factory=list)
    """Ports of the MLflow server and the object store, where they are wanted."""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        """Returns the names of the worker nodes."""
        return [name for name in self.commands if name.startswith("node")]

    def start(self, name: str) -> None:
        """Starts the head, the store or a node."""
        log = (self.folder / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            self.commands[name],
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def kill(self, name: str) -> None:
        """Kills a process and its children."""
        kill_tree(self.running.pop(name))

    def start_all(self) -> None:
        """Starts all that does not run, the nodes last, and waits until all answers."""
        missing = [name for name in self.commands if name not in self.running]
        for name in missing:
            (self.folder / f"{name}.log").unlink(missing_ok=True)  # `has_started` reads it
            if name not in self.nodes:
                self.start(name)
        _await(self, lambda: self.has_started("head") and all(map(_answers, self.ports)))
        for name in filter(self.nodes.__contains__, missing):
            # One by one: a raylet gives up if its agents do not start within 15 s.
            self.start(name)
            _await(self, partial(self.has_started, name))

    def revive(self) -> None:
        """Restarts processes that have ended: Ray gives up a node that takes 30 s to start."""
        for name, process in list(self.running.items()):
            if process.poll() is not None:
                self.kill(name)
                self.start(name)

    def has_started(self, name: str) -> bool:
        """Returns whether a node reports that it has started."""
        # An answer of its port is not enough: a driver also needs the raylet.
        return "Ray runtime started" in (self.folder / f"{name}.log").read_text(errors="replace")

    def train_worker(self) -> psutil.Process | None:
        """A process in which Ray Train trains, once there is one."""
        nodes = [self.running[name] for name in self.nodes if name in self.running]
        return next(filter(None, (train_worker(psutil.Process(node.pid)) for node in nodes)), None)


def train_worker(root: psutil.Process) -> psutil.Process | None:
    """A process below `root` in which Ray Train trains, if there is one."""
    for process in root.children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
    return None


@contextmanager
def ray_nodes(
    folder: Path,
    *,
    nodes: int = 1,
    cpus: int = 2,
    server: bool = False,
    hidden: Path | None = None,
    apart: bool = False,
) -> Iterator[Stage]:
    """Head and nodes, and with `server` an MLflow server, from start to end of the context.

    A signal that would end this process ends them too, where `signals_interrupt` holds.

    Args:
        folder: for logs and the server's store.
        nodes: how many beside the head.
        cpus: logical ones, of each node.
        server: otherwise a driver keeps the store in a file.
        hidden: a folder that the nodes do not see: they get separate names and mounts.
        apart: home, temporary files and Ray's sessions are below `hidden`, so that nothing is
            shared but an S3 server, the bucket `stop` of `STOP_TEST_S3`, host and port.
    """
    ports = iter(free_ports(7 + len(PORTS) * (nodes + 1)))
    gcs, store, bucket = next(ports), next(ports), next(ports)
    # It contains Ray's sockets, whose paths must not be long.
    sessions = hidden / "r" if apart and hidden else Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    ray = [str(BIN / "ray"), "start", "--block"]
    head = [*ray, "--head", f"--port={gcs}", "--num-cpus=0", f"--temp-dir={sessions}"]
    head += [f"--dashboard-port={next(ports)}", f"--ray-client-server-port={next(ports)}"]
    head += ["--node-ip-address=127.0.0.1", *(f"--{name}={next(ports)}" for name in PORTS)]
    commands = {"head": head}
    if apart:  # the head starts in a third of the time
        head.append("--include-dashboard=false")
    for number in range(nodes):
        # A separate address: a driver with the same address may run on this node and end with it.
        node = [*ray, f"--address=127.0.0.1:{gcs}", f"--num-cpus={cpus}"]
        node += [f"--node-ip-address=127.0.0.{number + 2}"]
        node += [f"--{name}={next(ports)}" for name in PORTS]
        if hidden:
            enter = f'hostname node{number} && mount -t tmpfs none "{hidden}" && '
            enter += f'mkdir -p "{hidden}/home" "{hidden}/tmp" && exec "$@"'
            node = ["unshare", "--mount", "--uts", "sh", "-c", enter, "sh", *node]
        commands[f"node{number}"] = node
    if server:
        mlflow = [str(BIN / "mlflow"), "server", "--host=127.0.0.1", f"--port={store}"]
        mlflow += ["--workers=1", f"--backend-store-uri=sqlite:///{folder}/server.db"]
        commands["store"] = [*mlflow, f"--artifacts-destination={folder}/artifacts"]
    stage = Stage(folder, _environment(gcs, store if server else None), commands)
    stage.ports = [store] if server else []
    if apart:
        s3 = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(bucket)]
        commands["s3"] = s3
        stage.ports.append(bucket)
        stage.environment |= {
            "HOME": f"{hidden}/home",
            "TMPDIR": f"{hidden}/tmp",
            "STOP_TEST_S3": f"127.0.0.1:{bucket}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
    try:
        stage.start_all()
        yield stage
    finally:
        for name in list(stage.running):
            stage.kill(name)
        shutil.rmtree(sessions, ignore_errors=True)


def _environment(gcs: int, store: int | None) -> dict[str, str]:
    # If this process started Ray before, Ray is limited to one machine.
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **others,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
        "RAY_health_check_period_ms": "500",  # a killed node is missed after 2 s, not after 13 s
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six processes that nothing here needs
    }
    if store is not None:
        environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{store}"
    return environment


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _await(stage: Stage, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("Ray or the MLflow server did not start")
        stage.revive()
        time.sleep(0.2)
