"""A cluster that does not answer is reported; a Ray of this machine is private to its user."""

import atexit
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from pipelines.checks.services import check_ray
from pipelines.cli.console import RunError, say
from pipelines.cluster.ray_token import token_file
from pipelines.cluster.session import (
    LONGEST_TEMP_DIR,
    await_head,
    long_temp_dir,
    ray_temp_dir,
    start_ray,
)
from stop_core.storage.private import is_private
from tests.tools import free_ports, is_loopback, listening


def test_dead_address_is_refused_by_name() -> None:
    (port,) = free_ports(1)
    with pytest.raises(RunError, match=rf"RAY_ADDRESS=127.0.0.1:{port}.*unset RAY_ADDRESS"):
        await_head(f"127.0.0.1:{port}", 0.0)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_port_of_another_program_is_not_a_head(answer: bytes) -> None:
    with _listener(answer) as address, pytest.raises(RunError, match=r"no Ray cluster .* \("):
        await_head(address, 0.0)


def test_head_that_answers_is_accepted() -> None:
    with _listener(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address:
        await_head(address, 0.0)


@pytest.mark.slow
@pytest.mark.cluster
def test_real_head_is_accepted(local_ray: None) -> None:
    import ray

    await_head(ray.get_runtime_context().gcs_address, 0.0)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_folder_is_refused_if_the_path_of_the_longest_socket_is_too_long(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.utils import validate_socket_filepath

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # by another test
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{4194304}"
    for first in ("x", "ä"):
        longest = _folder_of(first, LONGEST_TEMP_DIR)
        for path, fits in ((longest, True), (_folder_of(first, LONGEST_TEMP_DIR + 1), False)):
            monkeypatch.setenv(name, path)
            monkeypatch.setattr(tempfile, "tempdir", None)  # Python looks at TMPDIR once
            if fits:
                assert long_temp_dir() is None
                folder = ray_temp_dir()
                validate_socket_filepath(f"{folder}/{session}/sockets/plasma_store")
                continue
            socket_path = f"{path}/{folder.relative_to(longest)}/{session}/sockets/plasma_store"
            with pytest.raises(OSError, match="AF_UNIX"):
                validate_socket_filepath(socket_path)
            with pytest.raises(RunError, match=rf" {name}={path}, .* export RAY_TMPDIR=/tmp$"):
                start_ray()


def _folder_of(first: str, length: int) -> str:
    """Creates a folder whose path has that many bytes."""
    base = tempfile.mkdtemp(prefix=first, dir="/tmp")
    folder = f"{base}/{'x' * (length - len(os.fsencode(base)) - 1)}"
    Path(folder).mkdir()
    atexit.register(shutil.rmtree, base)
    return folder


def test_doctor_advises_a_shorter_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", _folder_of("x", LONGEST_TEMP_DIR + 1))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    *_, found = check_ray()
    assert (found.about, found.status) == ("ray sockets", "failure")
    assert f"{LONGEST_TEMP_DIR + 1} bytes" in found.found
    assert "export RAY_TMPDIR=/tmp" in found.advice


@contextmanager
def _listener(answer: bytes) -> Iterator[str]:
    """Yields the address of a program that accepts one connection and answers."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(answer)
            connection.recv(100)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://nowhere:1", "http://nowhere:1"])
def test_other_forms_of_an_address_are_left_to_ray(address: str) -> None:
    await_head(address, 0.0)


@pytest.mark.slow
@pytest.mark.cluster
def test_local_ray_listens_on_loopback_only(local_ray: None) -> None:
    found = listening()
    assert {"gcs_server", "raylet"} <= set(found.values())
    assert all(map(is_loopback, found)), found


@pytest.mark.slow
@pytest.mark.cluster
def test_no_other_user_can_enter_the_folder_of_a_local_ray(local_ray: None) -> None:
    import ray

    assert Path(ray.get_runtime_context().get_temp_dir()) == ray_temp_dir()
    assert is_private(ray_temp_dir().parent.lstat())
    if not os.environ.get("RAY_AUTH_TOKEN"):
        assert is_private(token_file().lstat())


@pytest.mark.slow
@pytest.mark.cluster
def test_messages_of_workers_are_in_their_log_files(local_ray: None) -> None:
    import ray

    def work() -> None:
        say("progress of a worker")
        logging.getLogger("pipelines.worker").warning("a warning of a worker")

    ray.get(ray.remote(work).remote())
    # Not `session_latest`, which can be a Ray of another test process.
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    written = "".join(log.read_text() for log in logs.glob("worker-*.err"))
    assert "\nprogress of a worker\n" in written
    assert "\na warning of a worker\n" in written


_VERBOSE = """
import logging
from pipelines.cli.console import set_verbosity
from pipelines.cluster.session import start_ray
set_verbosity(logging.DEBUG)
start_ray()
import ray
def work():
    logging.getLogger("pipelines.worker").debug("a detail of a worker")
    logging.getLogger("library").info("of a library")
ray.get(ray.remote(work).remote())
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_verbose_driver_shows_the_messages_of_its_workers(local_ray: None) -> None:
    import ray

    done = subprocess.run(
        [sys.executable, "-c", _VERBOSE],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = done.stdout + done.stderr  # Ray prints lines of workers on either
    assert re.search(r"\(work pid=\d+\).* a detail of a worker\n", shown)
    assert re.search(r"\(work pid=\d+\).* info \(library\): of a library\n", shown)
