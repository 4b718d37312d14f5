"""What tests and the chaos scripts of several packages need: ports, files, options, curves."""

import contextlib
import ipaddress
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from mlflow import MlflowClient

from stop_core.settings.experiment import ExperimentConfig

Curves = dict[str, list[tuple[int, float]]]
"""Points of an MLflow run, as (step, value), by the name of their metric."""
_TIMED = ("system/", "cost/", "train/step_seconds", "train/clips_per", "train/data_wait")


def free_ports(count: int) -> list[int]:
    """Different ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def files_below(folder: Path) -> dict[str, bytes]:
    """All files by their relative path, but for those that are only being written."""
    # A worker that outlives its killed driver may still write to a staging file.
    paths = (path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def options_of(config: ExperimentConfig) -> list[str]:
    """The words of a command line that say what `config` says."""
    words = []
    for name, value in config.parameters().items():
        values = value if isinstance(value, tuple) else (value,)
        words += ["--" + name.replace("_", "-"), *map(str, values)]
    return words


def curves(uri: str, run_id: str) -> Curves:
    """All points of a run, but for those that tell a speed or a load."""
    client = MlflowClient(uri)
    return {
        name: sorted((p.step, p.value) for p in client.get_metric_history(run_id, name))
        for name in client.get_run(run_id).data.metrics
        if not name.startswith(_TIMED)
    }


def steps_saved(output: Path) -> int:
    """The steps of the furthest checkpoint of all runs below an output folder."""
    steps = [0]
    # No pattern of all folders: one of them may go while it is looked through.
    for pattern in ("checkpoint_*", "checkpoints/checkpoint_*"):
        for file in output.glob(f"runs/*/{pattern}/progress.json"):
            with contextlib.suppress(ValueError, OSError):  # it is just being removed
                steps.append(json.loads(file.read_text())["step"])
    return max(steps)


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Has SIGTERM and SIGHUP end this process as Ctrl-C does: what it has started ends first.

    So does SIGINT where a shell has started the process in the background, and had it ignored.
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
    """Kills a process that still runs at the end of the body, with all that it has started."""
    try:
        yield
    finally:
        if process.poll() is None:
            kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process that we started and all that it has started."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(process.pid)
        for one in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.Error):
                one.kill()
    process.wait()  # through Popen: another's wait would leave it with an exit code of 0


def listening() -> dict[str, str]:
    """Where this process and all that it has started listen, and who does."""
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
    """Whether only this machine reaches an `ip:port`."""
    ip = ipaddress.ip_address(address.rpartition(":")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
