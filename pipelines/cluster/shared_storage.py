"""Refuses a cluster whose machines do not share the folders of a command, before it starts.

A worker that sees another folder of the same name would train on its own, and its results would
be missing without a message.
"""

import secrets
import socket
from pathlib import Path
from typing import Any, cast

from stop_core.storage.paths import StoragePath

from ..cli.console import RunError
from ..cli.store_problem import given_store


def require_shared(*folders: StoragePath, records: bool = False) -> None:
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
    try:
        look = ray.remote(num_cpus=0)(_sees)
        asked = [
            look.options(scheduling_strategy=On(node, soft=False)).remote(token) for node in nodes
        ]
        blind = sorted({name for name, sees in ray.get(asked) if not sees})
    finally:
        own.unlink(missing_ok=True)
    if blind:
        raise RunError(
            f"{', '.join(blind)} of the cluster cannot see {folder}: use a folder that every "
            'machine mounts at the same path (docs/clusters.md, "Shared storage and services")'
        )


def _sees(token: Path) -> tuple[str, bool]:
    """Returns the name of this machine, and whether it sees a file, when it looks again."""
    return socket.gethostname(), token.parent.is_dir() and token in token.parent.iterdir()
