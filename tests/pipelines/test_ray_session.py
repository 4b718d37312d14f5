"""A cluster that is not there is told of in one sentence, and soon."""

import socket

import pytest

from pipelines.command_line import RunError
from pipelines.ray_session import await_head
from tests.tools import free_ports


def test_a_dead_address_is_refused_by_name() -> None:
    (port,) = free_ports(1)
    with pytest.raises(RunError, match=rf"RAY_ADDRESS=127.0.0.1:{port}.*unset RAY_ADDRESS"):
        await_head(f"127.0.0.1:{port}", 0.0)


def test_a_head_that_answers_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        await_head(f"127.0.0.1:{head.getsockname()[1]}", 0.0)


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://nowhere:1", "http://nowhere:1"])
def test_what_is_no_host_and_port_is_left_to_ray(address: str) -> None:
    await_head(address, 0.0)
