"""Connecting to Ray, quietly."""

import atexit
import logging
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from stop_core.storage.private import private_folder

from ..cli.errors import RunError
from ..cli.folders import ROOT
from ..cli.output import TRACKING_URI, given_store
from .exit_notice import notify_of_exit
from .ray_token import keep_token_private

_LONGEST_REASON = 200  # it may have a log in it
# A socket's path has at most so many bytes, without the one that ends it. Ray's longest name has a
# time, and a process id of as many digits as there can be.
LONGEST_TEMP_DIR = (107 if sys.platform == "linux" else 103) - len(
    f"/stop-{os.getuid()}/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)

# Set before ray is imported. What each does is in docs/clusters.md.
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # a report returns at the next check, not after 2 s
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it Ray warns
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative path means the same in a trial as outside of it
}


_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SECONDS_FOR_A_HEAD = 30.0  # that has just been started; Ray itself tries for a quarter of an hour


def start_ray() -> None:
    """Connects to the cluster of RAY_ADDRESS, or starts Ray for this machine alone; idempotent.

    Raises:
        RunError: if Ray does not start or the cluster does not answer.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    if "RAY_ADDRESS" not in os.environ and (problem := long_temp_dir()):
        raise RunError(problem)
    keep_token_private(create="RAY_ADDRESS" not in os.environ)
    await_head(os.environ.get("RAY_ADDRESS", ""), _SECONDS_FOR_A_HEAD)
    try:
        notify_of_exit(str(ray_temp_dir()))
        _connect()
    except Exception as problem:  # of many kinds: Ray gives a machine 30 s, and raises Exception
        where = os.environ.get("RAY_ADDRESS")
        told = f"Ray at {where} cannot be reached" if where else "Ray does not start here"
        said = next(iter(str(problem).splitlines()), type(problem).__name__)[:_LONGEST_REASON]
        if where:
            advice = "look at `ray status` there, or unset RAY_ADDRESS to start Ray on this machine"
        elif isinstance(problem, OSError) and problem.filename:  # of the session's folder
            advice = f"see that there is room in {ray_temp_dir()} and that it can be written"
        else:
            advice = "see that the machine has processors and memory to spare"
        raise RunError(f"{told} ({said}): {advice}, then run the same command again") from problem


def long_temp_dir() -> str | None:
    """What to say if Ray's sockets would have longer paths than the system allows; None if not."""
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
    """Where a Ray of this machine keeps its sockets and logs, each session in a folder.

    Ray makes folders writable for all; the one around this one is closed to others.
    """
    return private_folder(_temp_dir()) / "ray"


def _temp_dir() -> str:
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def await_head(address: str, seconds: float) -> None:
    """Waits until a head answers at `host:port`; what is no such address is left to Ray.

    Raises:
        RunError: if none does.
    """
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
                    "`ray start --head`, give the address of one that runs, or unset RAY_ADDRESS "
                    "to start Ray on this machine"
                ) from problem
        time.sleep(0.5)


def _greet(host: str, port: int) -> None:
    """OSError if nobody answers there, or another program than a head does."""
    with socket.create_connection((host, port), timeout=5) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.sendall(_GREETING)
        # A frame of its own settings, which is of type 4, is how HTTP/2 begins, and so gRPC.
        if connection.recv(9)[3:4] != b"\x04":
            raise ConnectionError("another program listens there")


def _connect() -> None:
    import ray

    alone = "RAY_ADDRESS" not in os.environ
    if alone:
        _listen_on_loopback()
    ray.init(
        address="local" if alone else None,
        # With the dashboard: Train asks its state service who is alive.
        include_dashboard=True if alone else None,
        # Workers tell their progress through files, and their failures through exceptions.
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env=_runtime_env(),
        _temp_dir=str(ray_temp_dir()) if alone else None,
    )
    # Ahead of Ray's own, which waits half a second for what workers print; here that is nothing.
    atexit.register(ray.shutdown)


def _listen_on_loopback() -> None:
    """Keeps a Ray of this machine alone off the network.

    Otherwise its servers listen on all interfaces, behind the token alone. Ray has a switch for it,
    made for systems without clusters: it reads the environment when it is imported, and its
    processes do when they start.
    """
    from ray._private import ray_constants

    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _runtime_env() -> dict[str, object] | None:
    """Puts this checkout on the workers' path, unless a job has packaged it already.

    Nothing secret goes in here: Ray writes it into logs. Workers of this machine inherit passwords
    with the environment, those of a cluster have them from their machine (docs/security.md).
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # On a cluster that runs already, the workers do not see this process's environment.
    store = {TRACKING_URI: server} if (server := given_store()) else {}
    return {"env_vars": {"PYTHONPATH": python_path, **_SETTINGS, **store}}
