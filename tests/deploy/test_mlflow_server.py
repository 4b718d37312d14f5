"""The shared MLflow server as deploy/mlflow starts it, on PostgreSQL and an object store."""

import configparser
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import psutil
import pyarrow.fs
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.server import get_app_client

from pipelines.checks.services import check_mlflow
from pipelines.cli.console import RunError
from pipelines.tracking.direct_run import TrackedRun
from pipelines.tracking.store import open_experiment
from tests.tools import free_ports, kill_tree

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30
ADMIN = "password of admin"
if shutil.which("initdb") is None or shutil.which("postgres") is None:
    pytest.skip("PostgreSQL is not installed", allow_module_level=True)
pytest.importorskip("moto", reason="the S3 server of the tests is in the extra `dev`")


@contextmanager
def _running(command: list[str], ready: Callable[[], object], **options: Any) -> Iterator[int]:
    """Runs a server until the end of the block; yields its process id once it is ready."""
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=log, stderr=log, **options) as process,
    ):
        deadline = time.monotonic() + 240
        try:
            while not _answers(ready):
                log.seek(0)
                assert process.poll() is None, log.read()[-2000:]
                assert time.monotonic() < deadline, log.read()[-2000:]
                time.sleep(0.1)
            yield process.pid
        finally:
            kill_tree(process)


def _answers(ready: Callable[[], object]) -> bool:
    try:
        ready()
    except OSError:
        return False
    return True


def _connect(port: int) -> Callable[[], object]:
    def connect() -> None:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()

    return connect


@contextmanager
def _postgres(port: int) -> Iterator[str]:
    """Starts a new PostgreSQL on loopback; yields its URI. It refuses to run as root."""
    # pytest's folders are closed to the other user that it then runs as.
    with tempfile.TemporaryDirectory(prefix="stop-postgres-") as folder:
        user: dict[str, Any] = {}
        if os.getuid() == 0:
            shutil.chown(folder, "nobody")
            user = {"user": "nobody", "extra_groups": []}
        data = f"{folder}/data"
        create = ["initdb", "--pgdata", data, "--username", "mlflow", "--auth", "trust"]
        create += ["--no-sync", "--encoding", "UTF8", "--locale", "C"]
        subprocess.run(create, cwd=folder, check=True, stdout=subprocess.DEVNULL, **user)
        start = ["postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
        with _running(start, _connect(port), cwd=folder, **user):
            yield f"{_driver()}://mlflow@127.0.0.1:{port}/postgres"


@contextmanager
def _object_store(port: int, bucket: str) -> Iterator[pyarrow.fs.FileSystem]:
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with _running(command, _connect(port)):
        store = pyarrow.fs.S3FileSystem(
            access_key="key",
            secret_key="secret",
            endpoint_override=f"127.0.0.1:{port}",
            scheme="http",
            allow_bucket_creation=True,
        )
        store.create_dir(bucket)
        yield store


def _mlflow_service() -> dict[str, Any]:
    compose = yaml.safe_load((ROOT / "deploy/mlflow/compose.yaml").read_text())
    service: dict[str, Any] = compose["services"]["mlflow"]
    return service


def _driver() -> str:
    """Returns the driver of PostgreSQL in compose.yaml."""
    uri: str = _mlflow_service()["environment"]["MLFLOW_BACKEND_STORE_URI"]
    return uri.partition("://")[0]


def _server_command(port: int) -> list[str]:
    """Returns the command of compose.yaml, without the address of the container."""
    command: list[str] = _mlflow_service()["command"]
    assert command[:4] == ["mlflow", "server", "--host=0.0.0.0", "--port=5000"]
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    return [mlflow, "server", "--host=127.0.0.1", f"--port={port}", *command[4:]]


def _accounts(folder: Path, database: str) -> Path:
    """Returns the content of basic_auth.ini with another database."""
    config = configparser.ConfigParser()
    config.read(ROOT / "deploy/mlflow/basic_auth.ini")
    config["mlflow"]["database_uri"] = database
    with (folder / "auth.ini").open("w") as file:
        config.write(file)
    return folder / "auth.ini"


def _listeners(pid: int) -> set[str]:
    """Returns the addresses at which a process and its children listen."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = [c for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    return {connection.laddr.ip for connection in found}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_several_writers_share_a_server_on_postgresql_and_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_port, store_port, port = free_ports(3)
    with ExitStack() as stack:
        store = stack.enter_context(_object_store(store_port, "bucket"))
        database = stack.enter_context(_postgres(database_port))
        environment = {
            **os.environ,
            **_mlflow_service()["environment"],
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_AUTH_CONFIG_PATH": str(_accounts(tmp_path, database)),
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{store_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        uri = f"http://127.0.0.1:{port}"
        server = stack.enter_context(
            _running(
                _server_command(port),
                lambda: urllib.request.urlopen(f"{uri}/health"),
                env=environment,
                cwd=tmp_path,
            )
        )
        assert _listeners(server) == {"127.0.0.1"}
        # The writers know the server, and neither the database nor the keys of the store.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(RunError, match="401"):
            open_experiment(tmp_path, "without an account")
        for user in ("first", "second"):
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN)
            get_app_client("basic-auth", uri).create_user(user, f"password of {user}")
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"password of {user}")
            (finding,) = check_mlflow(tmp_path)
            assert finding.status == "ok", finding
            # Each continues the run of the other.
            TrackedRun.start(tmp_path, open_experiment(tmp_path, "shared a"), user).finish()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # on a busy machine
        runs = _write_at_once(["a", "b"], tmp_path)
        client = MlflowClient(uri)
        for name, run_id in runs.items():
            run = client.get_run(run_id)
            assert (run.info.status, run.data.params["writer"]) == ("FINISHED", name)
            history = client.get_metric_history(run_id, "loss")
            assert sorted(point.step for point in history) == list(range(STEPS))
        kept = store.get_file_info(pyarrow.fs.FileSelector("bucket/mlflow", recursive=True))
        weights = [file.path for file in kept if file.base_name == "weights.txt"]
        texts = {store.open_input_file(path).read().decode() for path in weights}
        assert texts == {"weights of a", "weights of b"}


def _write_at_once(names: list[str], folder: Path) -> dict[str, str]:
    """Writes one run per name concurrently; returns the ids of the runs."""
    together = Barrier(len(names))

    def write(name: str) -> str:
        run = TrackedRun.start(folder, open_experiment(folder, f"shared {name}"), name)
        together.wait(60)
        with run.ended():
            run.log_params({"writer": name})
            for step in range(STEPS):
                run.client.log_metric(run.run_id, "loss", 1 / (1 + step), step=step)
            run.log_text(f"weights of {name}", "weights.txt")
        return run.run_id

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(write, names), strict=True))
