"""`stop ui` serves the store of an output folder, and links to what a browser should show."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from pipelines.cli.console import RunError
from pipelines.tracking.store import (
    open_experiment,
    page_links,
    save_table_view,
    tracking_uri,
)
from pipelines.ui import UiConfig, main
from tests.pipelines.conftest import NewStore
from tests.tools import free_ports, killed_at_the_end

ROOT = Path(__file__).resolve().parents[2]


def test_the_newest_finished_table_comes_first_and_then_the_runs_of_its_experiment(
    tmp_path: Path, new_store: NewStore
) -> None:
    new_store(tmp_path / "mlflow.db")
    client = MlflowClient(tracking_uri(tmp_path))
    assert page_links(client, "http://host:1") == {}
    motion = open_experiment(tmp_path, "motion")
    client.create_run(motion, tags={"kind": "training"})
    client.create_run(motion, tags={"kind": "table"}, start_time=1)
    newest = client.create_run(motion, tags={"kind": "table"}, start_time=2)
    client.create_run(motion, tags={"kind": "table"}, start_time=3)  # has no view until it ends
    assert list(page_links(client, "http://host:1")) == ["all runs on motion"]
    save_table_view(client, newest, ["metrics.`test/top1`"])
    view, runs = page_links(client, "http://host:1").items()
    page = f"http://host:1/#/experiments/{motion}/runs?workflowType=machine_learning"
    share = f"viewStateShareKey=table-{newest.info.run_id[:8]}"
    assert view == ("newest table of motion", f"{page}&{share}")
    assert runs == ("all runs on motion", f"{page}&viewStateShareKey=runs")
    client.delete_experiment_tag(motion, "mlflow.sharedViewState.runs")  # of an earlier version
    assert page_links(client, "http://host:1")["all runs on motion"] == page
    assert open_experiment(tmp_path, "motion") == motion
    assert page_links(client, "http://host:1")["all runs on motion"] == runs[1]


def test_a_folder_without_runs_and_a_used_port_are_refused(
    tmp_path: Path, new_store: NewStore
) -> None:
    with pytest.raises(RunError, match=r"no runs in .* yet; train first"):
        main(UiConfig(tmp_path))
    new_store(tmp_path / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} is in use"):
            main(UiConfig(tmp_path, port))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_server_answers_at_its_links_and_ends_with_an_interrupt(
    tmp_path: Path, new_store: NewStore
) -> None:
    new_store(tmp_path / "mlflow.db")
    client = MlflowClient(tracking_uri(tmp_path))
    client.create_run(open_experiment(tmp_path, "motion"))
    (port,) = free_ports(1)
    command = [sys.executable, "pipelines/ui.py", "--output", str(tmp_path)]
    command += ["--port", str(port), "--browser", "False"]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process,
        killed_at_the_end(process),
    ):
        assert process.stdout is not None
        link = process.stdout.readline().decode()
        assert link.startswith(f"all runs on motion: http://127.0.0.1:{port}/#/experiments/")
        with urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    # The processes of the server have been killed, and the system closes their port soon after.
    deadline = time.monotonic() + 60
    while _answers(port):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
