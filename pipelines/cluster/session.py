"""Connects to a Ray cluster, or starts Ray on this machine.

A cluster whose machines do not share the folders of a command is refused: a worker that sees
another folder of the same name would train on its own, and its results would be missing without a
message.
"""

import atexit
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

from stop_core.storage.paths import StoragePath
from stop_core.storage.private import first_line, private_folder

from ..cli.console import RunError, is_verbose, reporting, show_debug
from ..cli.folders import ROOT
from ..cli.store_problem import TRACKING_URI, given_store
from ..ray_internals.driver import in_ray_job, listen_on_loopback
from .ray_token import keep_token_private

_LONGEST_REASON = 200  # characters; it may contain a log
# The system's limit for the path of a socket in bytes, less the longest path that Ray appends.
LONGEST_TEMP_DIR = (107 if sys.platform == "linux" else 103) - len(
    f"/stop-{os.getuid()}/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)

# Set before ray is imported; docs/clusters.md describes each.
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # a report returns after this, not after 2 s
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it Ray warns
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths are the same in a trial as outside of it
}
# No one drains a node of this machine. The watcher is a process of 2 CPU-seconds per training.
_LOCAL_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_KILLED = (
    "error: the process was ended from outside of Python: it was killed, or Ray on this machine "
    "was (its log is in {}/session_latest/logs; a machine that is short of memory is the "
    "usual reason). Finished work is kept; run the same command again to resume"
)
_SECONDS_FOR_A_HEAD = 30.0  # it may be starting; Ray itself tries for 15 minutes


def import_ray() -> None:
    """Sets the settings that Ray reads when it is imported, and imports it."""
    alone = "RAY_ADDRESS" not in os.environ
    for name, value in (_SETTINGS | _LOCAL_SETTINGS if alone else _SETTINGS).items():
        os.environ.setdefault(name, value)
    import ray  # noqa: F401


def start_ray(*folders: StoragePath, records: bool = False, dashboard: bool = True) -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray on this machine only; idempotent.

    Args:
        folders: the folders that workers read or write; every machine has to see them.
        records: whether workers record in MLflow, in a store that they can share.
        dashboard: False starts a Ray of this machine without it. It needs it if several trainings
            run under Ray Train, which asks its state service which of them are alive.
    """
    import_ray()
    import ray

    if not ray.is_initialized():
        _connect(dashboard)
    require_shared(*folders, records=records)


def _connect(dashboard: bool) -> None:
    import ray

    alone = "RAY_ADDRESS" not in os.environ
    if alone and (problem := long_temp_dir()):
        raise RunError(problem)
    keep_token_private(create=alone)
    await_head(os.environ.get("RAY_ADDRESS", ""), _SECONDS_FOR_A_HEAD)
    if alone and not listen_on_loopback():
        raise RunError(
            f"Ray {ray.__version__} would listen on every network of this machine; install the "
            "version of constraints.txt, or start it with `ray start --head` and set RAY_ADDRESS"
        )
    try:
        notify_of_exit(str(ray_temp_dir()))
        with reporting(lambda: "starting Ray" if alone else "connecting to Ray"):
            ray.init(
                address="local" if alone else None,
                include_dashboard=dashboard if alone else None,
                # Workers report progress through files, and failures through exceptions.
                log_to_driver=is_verbose(),
                logging_level=logging.INFO if is_verbose() else logging.ERROR,
                runtime_env=_runtime_env(),
                _temp_dir=str(ray_temp_dir()) if alone else None,
            )
    except Exception as problem:  # of many types: after 30 s Ray raises a bare Exception
        where = os.environ.get("RAY_ADDRESS")
        failure = f"Ray at {where} cannot be reached" if where else "Ray does not start here"
        reason = first_line(problem)[:_LONGEST_REASON]
        if where:
            advice = "run `ray status` there, or unset RAY_ADDRESS to start Ray on this machine"
        elif isinstance(problem, OSError) and problem.filename:  # of the session's folder
            advice = f"make sure that {ray_temp_dir()} has room and can be written"
        else:
            advice = "make sure that the machine has free processors and memory"
        raise RunError(
            f"{failure} ({reason}): {advice}, then run the same command again"
        ) from problem
    if not is_verbose():  # Ray's own exit handler waits half a second for output of the workers
        atexit.register(ray.shutdown)


def require_shared(*folders: StoragePath, records: bool) -> None:
    """Raises RunError if a machine of the cluster does not see one of the folders, naming both.

    Nothing is checked on one machine, nor of a URI. Workers that record in MLflow (`records`) need
    a server: SQLite can be used on one machine only.
    """
    import ray

    nodes: list[dict[str, Any]] = cast(Any, ray).nodes()
    at_work = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    if {node["NodeManagerHostname"] for node in at_work} <= {socket.gethostname()}:
        return
    if records and (given_store() or "sqlite").startswith(("sqlite", "file:")):
        raise RunError(
            "the workers are on other machines, which cannot share MLflow's SQLite store: start "
            "an MLflow server, and set MLFLOW_TRACKING_URI to its address (docs/clusters.md)"
        )
    for folder in folders:
        if isinstance(folder, Path):
            _require(folder.resolve(), [node["NodeID"] for node in at_work])


def _require(folder: Path, nodes: list[str]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    own = folder / f".shared-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own.touch(exist_ok=False)
        token = own
    except OSError:  # it can only be read: another machine sees the same name there
        token = min(folder.iterdir(), default=folder)

    def look() -> tuple[str, bool]:
        """Returns the name of a machine, and whether it sees the file, when it looks again."""
        return socket.gethostname(), token.parent.is_dir() and token in token.parent.iterdir()

    try:
        task = ray.remote(num_cpus=0)(look)
        asked = [task.options(scheduling_strategy=On(node, soft=False)).remote() for node in nodes]
        blind = sorted({name for name, sees in ray.get(asked) if not sees})
    finally:
        own.unlink(missing_ok=True)
    if blind:
        raise RunError(
            f"{', '.join(blind)} of the cluster cannot see {folder}: use a folder that every "
            'machine mounts at the same path (docs/clusters.md, "Shared storage and services")'
        )


def long_temp_dir() -> str | None:
    """Returns a message if the paths of Ray's sockets would be too long."""
    folder = _temp_dir()
    if (length := len(os.fsencode(folder))) <= LONGEST_TEMP_DIR:
        return None
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return (
        f"Ray cannot make its sockets below {name}={folder}, whose path has {length} bytes: with "
        f"more than {LONGEST_TEMP_DIR}, the paths of the sockets are too long for this system. "
        "Give Ray another folder: export RAY_TMPDIR=/tmp"
    )


def ray_temp_dir() -> Path:
    """Returns the folder for sockets and logs of a Ray of this machine, one subfolder per session.

    Ray makes its folders writable for all, so the parent of this one is private to the user.
    """
    return private_folder(_temp_dir()) / "ray"


def _temp_dir() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def await_head(address: str, seconds: float) -> None:
    """Waits for a Ray head at `host:port`; other forms of an address are left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            _greet(host, int(port))
            return
        except OSError as problem:
            if time.monotonic() >= deadline:
                raise RunError(
                    f"no Ray cluster answers at RAY_ADDRESS={address} ({problem}); start it with "
                    "`ray start --head`, give the address of a running cluster, or unset "
                    "RAY_ADDRESS to start Ray on this machine"
                ) from problem
        time.sleep(0.5)


def _greet(host: str, port: int) -> None:
    """Raises OSError if there is no answer, or another program than Ray answers."""
    with socket.create_connection((host, port), timeout=5) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.sendall(_GREETING)
        # An HTTP/2 server, and so gRPC, begins with a frame of its settings, which is of type 4.
        if connection.recv(9)[3:4] != b"\x04":
            raise ConnectionError("another program listens there")


def _runtime_env() -> dict[str, object] | None:
    """Returns the environment of the workers: the path of this package, and the level of logs.

    It must not contain secrets, as Ray writes it into logs. Workers of this machine inherit
    passwords with the environment; on a cluster their machine provides them (docs/security.md).
    """
    hook = f"{show_debug.__module__}.{show_debug.__name__}"
    level: dict[str, object] = {"worker_process_setup_hook": hook} if is_verbose() else {}
    if in_ray_job():  # the job has packaged the working directory
        return level or None
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # The workers of a running cluster do not inherit the environment of this process.
    store = {TRACKING_URI: server} if (server := given_store()) else {}
    return {"env_vars": {"PYTHONPATH": python_path, **_SETTINGS, **store}, **level}


@cache
def notify_of_exit(sessions: str) -> None:
    """Starts a process that prints a message if this one ends without running its exit handlers.

    If its node is lost, Ray ends a driver from native code by `_exit`: no exception, no message.
    `sessions` is the folder of Ray's sessions, which contains the logs.
    """
    # It reads until a line comes or this process is gone; an interrupt does not reach it.
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", 'read line || echo "$0" >&2', _KILLED.format(sessions)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        assert watcher.stdin is not None
        with suppress(OSError):
            watcher.stdin.write(b"a clean end\n")
            watcher.stdin.close()
        watcher.wait()

    atexit.register(end)


def quiet_ray_data() -> None:
    """Turns off the output of Ray Data about its executions; `ProgressBar` shows progress."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It warns that the bars are off, and reports the end of every execution.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
