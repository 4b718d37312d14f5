"""A cluster that is away is told of at once, and a Ray of this machine is of use to it alone."""

import atexit
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from pipelines.checks.services import check_ray
from pipelines.cli.errors import RunError
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


def test_a_dead_address_is_refused_by_name() -> None:
    (port,) = free_ports(1)
    with pytest.raises(RunError, match=rf"RAY_ADDRESS=127.0.0.1:{port}.*unset RAY_ADDRESS"):
        await_head(f"127.0.0.1:{port}", 0.0)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_that_another_program_has_is_told_apart_from_a_head(says: bytes) -> None:
    with _listener(says) as address, pytest.raises(RunError, match=r"no Ray cluster .* \("):
        await_head(address, 0.0)


def test_a_head_that_answers_is_taken() -> None:
    with _listener(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) as address:
        await_head(address, 0.0)


@pytest.mark.slow
@pytest.mark.cluster
def test_the_head_of_a_cluster_is_one(local_ray: None) -> None:
    import ray

    await_head(ray.get_runtime_context().gcs_address, 0.0)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_is_refused_exactly_where_ray_could_not_make_its_longest_socket(
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
    """A new folder whose path has that many bytes."""
    base = tempfile.mkdtemp(prefix=first, dir="/tmp")
    folder = f"{base}/{'x' * (length - len(os.fsencode(base)) - 1)}"
    Path(folder).mkdir()
    atexit.register(shutil.rmtree, base)
    return folder


def test_the_advice_of_the_doctor_is_one_that_can_be_followed(
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
def _listener(says: bytes) -> Iterator[str]:
    """The address of a program that takes one connection, and says this."""

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(says)
            connection.recv(100)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://nowhere:1", "http://nowhere:1"])
def test_what_is_no_host_and_port_is_left_to_ray(address: str) -> None:
    await_head(address, 0.0)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_local_ray_listens_on_loopback_alone(local_ray: None) -> None:
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
