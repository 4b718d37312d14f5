"""Passwords reach the processes that need them, and no log, argument, record or output."""

import configparser
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.environment_variables
import psutil
import pytest
import requests
from mlflow import MlflowClient

from pipelines.cli.console import RunError
from pipelines.cli.options import parse
from pipelines.cli.store_problem import given_store
from pipelines.cluster.session import _runtime_env
from pipelines.train import TrainConfig, main
from stop_core.datasets.motion.files import write_motion_dataset
from tests.caches import write_cache
from tests.tools import free_ports, kill_tree, killed_at_the_end

ROOT = Path(__file__).resolve().parents[2]
CANARY = "CANARY-5c1f-CANARY"
_WORDS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
_SECRETS = {
    name
    for name in [*vars(mlflow.environment_variables), "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"]
    if name.startswith(("MLFLOW_", "AWS_")) and any(word in name for word in _WORDS)
} | {"AWS_SECRET_ACCESS_KEY", "PGPASSWORD"}


@pytest.mark.parametrize("address", [None, "somewhere:6379"])
def test_rays_runtime_environment_has_no_secret(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*_SECRETS, "MLFLOW_SOMETHING_NEW", "GOOGLE_APPLICATION_CREDENTIALS"]:
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert CANARY not in str(_runtime_env())
    assert "http://host:5000" in str(_runtime_env()), "the workers of a cluster need the address"


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{CANARY}@127.0.0.1:9",
        f"https://{CANARY}@host/mlflow",
        f"postgresql://me:{CANARY}@127.0.0.1:9/mlflow",
        f"postgresql://127.0.0.1:9/mlflow?user=me&password={CANARY}",
    ],
)
def test_a_uri_with_a_password_is_refused_without_showing_it(
    name: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, uri)
    with pytest.raises(RunError, match=f"{name}=.*leave it out") as caught:
        given_store()
    assert CANARY not in str(caught.value)


@contextmanager
def _server(folder: Path, password: str, meanwhile: Callable[[], object]) -> Iterator[str]:
    """Starts MLflow with accounts as deploy/mlflow does, except for the database."""
    (port,) = free_ports(1)
    config = configparser.ConfigParser()
    config.read(ROOT / "deploy/mlflow/basic_auth.ini")
    config["mlflow"]["database_uri"] = f"sqlite:///{folder}/users.db"
    with (folder / "auth.ini").open("w") as file:
        config.write(file)
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--app-name", "basic-auth"]
    command += ["--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/runs.db"]
    command += [f"--artifacts-destination={folder}/artifacts"]
    command += ["--uvicorn-opts=--timeout-worker-healthcheck=120"]
    with (
        (folder / "server.log").open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log) as process,
    ):
        uri = f"http://127.0.0.1:{port}"
        try:
            meanwhile()
            deadline = time.monotonic() + 240
            while not _is_up(uri):
                assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield uri
        finally:
            kill_tree(process)


def _is_up(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=5).ok
    except requests.RequestException:
        return False


def _make_cache(folder: Path) -> None:
    videos = folder.with_name("videos")
    write_motion_dataset(videos, train=16, test=8, seed=1)
    write_cache("hmdb51", videos, folder, frames=6, size=32)


@pytest.fixture
def home() -> Iterator[Path]:
    """Home and temporary folder of a command, with a short path for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_password_of_a_training_appears_nowhere(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cache, output, store = (tmp_path / name for name in ("cache", "outputs", "store"))
    store.mkdir()
    options = ["--cache", str(cache), "--output", str(output), "--tower", "tiny"]
    options += ["--method", "linear-probe", "--epochs", "1", "--batch-size", "8"]
    with _server(store, CANARY, lambda: _make_cache(cache)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"not {CANARY}")
        with pytest.raises(RunError, match="401") as refused:
            main(parse(TrainConfig, [*options, "--in-process", "True"]))
        assert CANARY not in f"{refused.value}{capfd.readouterr()}"

        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **dict.fromkeys(_SECRETS, CANARY),
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "HOME": str(home),
            "TMPDIR": str(home),
            "PYTHONPATH": str(ROOT),
        }
        environment.pop("MLFLOW_TRACKING_TOKEN")  # MLflow would show it instead of the password
        # Not in this process, so that Ray starts.
        command = [sys.executable, "pipelines/train.py", *options, "--in-process", "False"]
        printed, arguments = _watched(command, environment, home / "log")
        assert not [line for line in arguments if CANARY in line]
        assert CANARY not in printed
        for folder in (home, output, store / "artifacts"):
            files = [file for file in folder.rglob("*") if file.is_file()]
            assert files
            assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
        assert list(home.rglob("runtime_env_agent.log")), "Ray's logs were not inspected"
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
        (experiment,) = MlflowClient(uri).search_experiments(filter_string="name = 'hmdb51'")
        (run,) = MlflowClient(uri).search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert CANARY not in str(run.data)
    assert run.data.metrics
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def _watched(command: list[str], environment: dict[str, str], log: Path) -> tuple[str, set[str]]:
    """Runs a command; returns its output, and the arguments of all processes meanwhile."""
    arguments = set()
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        with killed_at_the_end(process):
            while process.poll() is None:
                for one in psutil.process_iter(["cmdline"]):
                    arguments.add(" ".join(one.info["cmdline"] or []))
                time.sleep(0.2)
    printed = log.read_text()
    assert process.returncode == 0, printed
    return printed, arguments
