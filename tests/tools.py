"""Helpers of tests and chaos scripts: ports, files, options, curves, processes."""

import contextlib
import ipaddress
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from stop_core.settings.experiment import ExperimentConfig

Curves = dict[str, list[tuple[int, float]]]
"""Points of an MLflow run, as (step, value), by the name of their metric."""
_TIMED = ("system/", "cost/", "train/step_seconds", "train/clips_per", "train/data_wait")


def free_ports(count: int) -> list[int]:
    """Returns different free ports of loopback."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def files_below(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files by relative path, except staging files."""
    # A worker may still write to a staging file after its driver was killed.
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def options_of(config: ExperimentConfig) -> list[str]:
    """Returns the words of a command line that give `config`."""
    words = []
    for name, value in config.parameters().items():
        values = value if isinstance(value, tuple) else (value,)
        words += ["--" + name.replace("_", "-"), *map(str, values)]
    return words


def curves(uri: str, run_id: str) -> Curves:
    """Returns all points of a run, except those of speed and load."""
    client = MlflowClient(uri)
    return {
        name: sorted((p.step, p.value) for p in client.get_metric_history(run_id, name))
        for name in client.get_run(run_id).data.metrics
        if not name.startswith(_TIMED)
    }


@contextlib.contextmanager
def without_figures() -> Iterator[None]:
    """Draws no figures in this process: they take most of the time of a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.training.worker.WorkerRun._draw", lambda *arguments: None)
        yield


def steps_saved(output: Path) -> int:
    """Returns the steps of the latest checkpoint of all runs in an output folder."""
    steps = [0]
    # Not `**`: a folder may be deleted while it is searched.
    for pattern in ("checkpoint_*", "checkpoints/checkpoint_*"):
        for file in output.glob(f"runs/*/{pattern}/progress.json"):
            with contextlib.suppress(ValueError, OSError):  # it is being removed
                steps.append(json.loads(file.read_text())["step"])
    return max(steps)


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end this process as Ctrl-C does: its children end first.

    The same holds for SIGINT if a shell started the process in the background with it ignored.
    """

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kills a process that still runs at the end of the body, with its children."""
    try:
        yield
    finally:
        if process.poll() is None:
            kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGKILL to a process that we started and to its children."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process.pid)
        for one in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.Error):
                one.kill()
    process.wait()  # through Popen: any other wait would leave it with the exit code 0


def listening() -> dict[str, str]:
    """Returns where this process and its children listen, with their names."""
    me = psutil.Process()
    found = {}
    for process in [me, *me.children(recursive=True)]:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:  # it has ended
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                found[f"{one.laddr.ip}:{one.laddr.port}"] = process.name()
    return found


def is_loopback(address: str) -> bool:
    """Returns whether only this machine can reach an `ip:port`."""
    ip = ipaddress.ip_address(address.rpartition(":")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
