"""Checks of Ray and of the MLflow store."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stop_core.storage.private import without_password

from ..cli.console import RunError
from ..cli.folders import ROOT
from ..cluster.session import long_temp_dir, ray_temp_dir, start_ray
from .finding import Finding, failure, ok, one_line, warn_if

_RAY_PATIENCE = 120.0
# Runs in a separate process, which can be killed if Ray hangs.
_RAY_PROGRAM = f"from {start_ray.__module__} import start_ray"  # the package may be renamed
_RAY_PROGRAM += """
import json
start_ray()
import ray
answer = ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=90)
print("RAY " + json.dumps({"answer": answer, "resources": ray.cluster_resources(),
    "nodes": sum(node["Alive"] for node in ray.nodes()), "version": ray.__version__}))
"""


def check_ray() -> Iterator[Finding]:
    """Checks that Ray starts, or the cluster answers, and runs a task."""
    address = os.environ.get("RAY_ADDRESS")
    if address is None and (problem := long_temp_dir()):
        found, _, advice = problem.partition(". ")
        yield failure("ray sockets", found, advice)
        return
    about = "ray" if address is None else f"ray at {address}"
    advice = f"see the logs in {ray_temp_dir()}/session_latest; a start needs about 1 GiB of memory"
    if address is not None:
        advice = "run `ray status` on the head, or unset RAY_ADDRESS to start Ray on this machine"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-c", _RAY_PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=_RAY_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        yield failure(about, f"does not answer within {_RAY_PATIENCE:.0f} s", advice)
        return
    reports = [line for line in stdout.splitlines() if line.startswith("RAY ")]
    if not reports:
        reason = (stderr.strip().splitlines() or ["no reason given"])[-1]
        yield failure(about, one_line(reason.rpartition("RunError: ")[2]), advice)
        return
    report = json.loads(reports[0].removeprefix("RAY "))
    cpus, gpus = (report["resources"].get(name, 0) for name in ("CPU", "GPU"))
    found = f"{report['version']} runs a task; {report['nodes']} node(s), {cpus:g} CPUs, "
    found += f"{gpus:g} GPUs"
    advice = "training needs 2 CPUs, to compute and to read: start Ray with --num-cpus 2"
    yield warn_if(cpus < 2, about, found, advice)


def check_mlflow(output: Path) -> Iterator[Finding]:
    """Checks that the store answers, has the schema of this MLflow, and can be written."""
    from ..tracking.store import tracking_uri

    about = "mlflow store"
    try:
        uri = tracking_uri(output)
    except RunError as problem:
        found, _, advice = str(problem).partition(": ")
        yield failure(about, found, advice)
        return
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not file.exists():
        yield ok(about, f"{file} will be created at its first use")
        return
    try:
        yield _check_server(uri) if uri.startswith("http") else _check_database(uri)
    except Exception as problem:  # of SQLAlchemy, requests or MLflow
        from ..cli.store_problem import diagnosis

        found, advice = diagnosis(uri, problem)
        yield failure(about, one_line(found), advice)


def _check_database(uri: str) -> Finding:
    import sqlalchemy
    from mlflow.store.db import utils as untyped_utils

    utils: Any = untyped_utils
    shown = without_password(uri)
    engine = sqlalchemy.create_engine(uri)
    try:
        there = utils._get_schema_version(engine)
        wanted = utils._get_latest_schema_revision()
        if there != wanted:
            return failure(
                "mlflow store",
                f"{shown} has schema {there}, this MLflow needs {wanted}",
                f"back it up, then run `mlflow db upgrade {shlex.quote(shown)}`; if the store is "
                "the newer one, install the MLflow that created it",
            )
        with engine.connect() as connection:
            # This needs the lock and the permission for a change, and changes nothing.
            connection.execute(
                sqlalchemy.text("UPDATE experiments SET name = name WHERE experiment_id = -1")
            )
            connection.rollback()
            runs = connection.execute(sqlalchemy.text("SELECT COUNT(*) FROM runs")).scalar()
    finally:
        engine.dispose()
    return ok("mlflow store", f"{shown} can be written; {runs} runs, schema {there}")


def _check_server(uri: str) -> Finding:
    """Writes a run and its artifact, and deletes it again."""
    from mlflow import MlflowClient
    from mlflow.utils.credentials import read_mlflow_creds

    from ..tracking.store import experiment_id

    client = MlflowClient(uri)
    # With accounts, users can delete runs of their own experiments only.
    experiment = " ".join(filter(None, ["stop doctor", read_mlflow_creds().username]))
    run = client.create_run(experiment_id(client, experiment, None), run_name="doctor")
    try:
        client.log_metric(run.info.run_id, "doctor", 1.0)
        client.log_text(run.info.run_id, "written by stop doctor", "doctor.txt")
    finally:
        client.delete_run(run.info.run_id)
    return ok("mlflow store", f"{without_password(uri)} takes runs and artifacts")
