"""A sweep that is submitted to a cluster as a job runs as it does locally, with Ray's token."""

import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.pipelines.conftest import NewStore
from tests.tools import free_ports, kill_tree

ROOT = Path(__file__).resolve().parents[2]
# Another Ray on this machine may use the default ports.
PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
SPACE = """
trials: 1
fixed: {method: stop, tower: tiny, epochs: 1, batch_size: 32, max_prompts: 2}
search:
  n_s: {choice: [2]}
  alpha: {uniform: [0.25, 0.75]}
  eta: {uniform: [1.0, 2.0]}
"""


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Starts a Ray head on loopback; yields the environment for submitting jobs to it."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    # It contains Ray's sockets, whose paths must not be long.
    folder = Path("/tmp") / f"ray-{os.getpid()}"
    venv = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{venv}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    start = ["ray", "start", "--head", "--node-ip-address=127.0.0.1"]
    start += [f"--{name}={port}" for name, port in ports.items()]
    start += [f"--temp-dir={folder}", "--num-cpus=2", "--disable-usage-stats", "--block"]
    with subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
        finally:
            kill_tree(process)  # with the driver of a job that still runs
            shutil.rmtree(folder, ignore_errors=True)


def _ask(environment: dict[str, str], token: str) -> int:
    """Returns the HTTP status of the job server for this token; 0 if there is no answer."""
    address = environment["RAY_ADDRESS"] + "/api/jobs/"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return 0


def _wait_for(environment: dict[str, str]) -> None:
    """Waits until the job server answers."""
    deadline = time.monotonic() + 120
    while _ask(environment, environment["RAY_AUTH_TOKEN"]) != 200:
        assert time.monotonic() < deadline, "the job server does not answer"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.cluster
def test_submitted_sweep_ends_with_its_trials_and_best_settings(
    head: dict[str, str], small_cache: Path, new_store: NewStore, tmp_path: Path
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    new_store(tmp_path / "o" / "mlflow.db")
    _wait_for(head)
    assert _ask(head, "another") == 403
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "pipelines/sweep.py"]
    command += ["--space", str(space), "--cache", str(small_cache), "--output", str(tmp_path / "o")]
    command += ["--verbose"]  # adds a hook for the workers to the environment of the job
    for _ in range(20):
        done = subprocess.run(
            command, cwd=ROOT, env=head, capture_output=True, text=True, check=False, timeout=280
        )
        if "No available agent" not in done.stderr:  # the job server starts before its agent
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    (trials,) = (tmp_path / "o" / "sweeps").glob("*/trials.csv")
    assert len(pd.read_csv(trials)) == 1
    assert (trials.parent / "best.yaml").is_file()
