"""A replica of Ray Serve opens its gRPC port on loopback only; other releases of Ray may differ."""

import pytest
from ray.serve._private import replica

from pipelines.ray_internals.serve_replica import open_port_on_loopback


def test_the_port_of_a_replica_is_opened_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        replica, "add_port_to_grpc_server", lambda server, address: opened.append(address)
    )
    open_port_on_loopback()
    replica.add_port_to_grpc_server(None, "[::]:0")
    assert opened == ["127.0.0.1:0"]
    names = replica.Replica._on_initialized.__code__.co_names
    assert "add_port_to_grpc_server" in names, "this release opens the port in another way"
