"""The message for a store that cannot be used has its address, its origin, the reason, advice."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines.cli.console import RunError
from pipelines.tracking.store import open_experiment
from tests.tools import free_ports


@contextmanager
def _server(status: int, body: bytes = b"no") -> Iterator[str]:
    """Yields the address of a server that gives this answer to every request."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def _message(output: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with pytest.raises(RunError) as refusal:
        open_experiment(output, "motion")
    message = str(refusal.value)
    assert message.startswith(f"the MLflow store {uri} (the address in MLFLOW_TRACKING_URI) cannot")
    assert "unset MLFLOW_TRACKING_URI to record in a file" in message
    assert " set MLFLOW_TRACKING_URI" not in message  # it is set
    return message


@pytest.mark.parametrize(
    ("status", "body", "found", "advice"),
    [
        (401, b"no", r"refuses the user or password \(HTTP 401\)", "Set MLFLOW_TRACKING_USERNAME"),
        (403, b"no", r"refuses the user or password \(HTTP 403\)", "MLFLOW_TRACKING_TOKEN"),
        (403, b"Invalid Host header", "not to be called by that host name", "--allowed-hosts"),
        (404, b"no", r"not answer as an MLflow server does \(HTTP 404\)", "Correct the address"),
        (200, b"<html>", r"not answer as an MLflow server does", "Correct the address"),
        (500, b"no", r"the server fails \(HTTP 500\)", "See the log of the server"),
        (503, b"no", r"the server fails \(HTTP 503\)", "See the log of the server"),
    ],
)
def test_answer_of_a_server_is_explained(
    status: int,
    body: bytes,
    found: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _server(status, body) as address:
        message = _message(tmp_path, f"http://{address}", monkeypatch)
    assert re.search(found, message)
    assert advice in message


def test_server_that_does_not_answer_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    message = _message(tmp_path, f"http://127.0.0.1:{port}", monkeypatch)
    assert "the connection was refused. Start its server, or correct host and port" in message
    message = _message(tmp_path, "http://no-such-host.invalid:5000", monkeypatch)
    assert "its host name is not known. Correct the host name" in message
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        message = _message(tmp_path, f"http://{address}", monkeypatch)
        assert "did not answer in time" in message
    with _server(200) as plain:
        message = _message(tmp_path, f"https://{plain}", monkeypatch)
        assert "no secure connection" in message
        assert "Write http://" in message


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("mysql+nodriver://me@host/db", "cannot be used: "),
        ("postgresql://me@127.0.0.1:9/db", r"driver psycopg2? is not installed|refused"),
        ("nonsense://me@host", "nonsense"),
        ("127.0.0.1:5000", "no server and no database .* Give a URI such as http"),
        ("sqlite:////proc/nowhere/x.db", "See that the file and its folder can be written"),
    ],
)
def test_other_addresses_are_explained(
    uri: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.search(found, _message(tmp_path, uri, monkeypatch))


def test_default_store_is_called_the_default(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match=r"mlflow.db \(the default, as .* or give another --output"):
        open_experiment(tmp_path, "motion")
