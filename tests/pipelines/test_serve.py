"""`stop serve` answers over HTTP on loopback, from its replicas, until it is interrupted."""

import base64
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.serve import ServeConfig
from tests.tools import free_ports, is_loopback, killed_at_the_end

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "--replicas must be positive"),
        ({"max_request_mib": 0.0}, "--max-request-mib must be positive"),
        ({"gpus_per_replica": 2.0}, "--gpus-per-replica must be above 0 and at most 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServeConfig(**options)


def _post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_two_replicas_answer_on_loopback_until_an_interrupt(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "pipelines/serve.py", "--tower", "tiny", "--frames", "2"]
    command += ["--labels", "red", "blue", "--replicas", "2", "--device", "cpu"]
    command += ["--port", str(port), "--output", str(tmp_path)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process,
        killed_at_the_end(process),
    ):
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line == f"serving at http://127.0.0.1:{port}/invocations\n"
        address = line.split()[-1]
        row = {"frames": base64.b64encode(bytes(2 * 32 * 32 * 3)).decode()}
        answers = [_post(address, {"dataframe_records": [row]}) for _ in range(8)]
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0]["label"] in ("red", "blue")
        (bad, good) = _post(address, {"dataframe_records": [{"video": "%"}, row]})
        assert "not base64" in bad["error"]
        assert good == answers[0][0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(address, {"dataframe_records": [row] * 17})
        assert refused.value.code == 400
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=60) as alive:
            assert alive.status == 200
        started = psutil.Process(process.pid)
        listening = {
            f"{one.laddr.ip}:{one.laddr.port}": " ".join(child.cmdline())[:80]
            for child in [started, *started.children(recursive=True)]
            for one in child.net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        }
        assert f"127.0.0.1:{port}" in listening
        assert {k: name for k, name in listening.items() if not is_loopback(k)} == {}
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
