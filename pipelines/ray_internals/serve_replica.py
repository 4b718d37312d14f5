"""The gRPC server that Ray Serve starts in each replica."""

from typing import Any

from ray.serve._private import replica


def open_port_on_loopback() -> None:
    """Makes the gRPC server of this replica listen on loopback; for its constructor.

    Serve starts it afterwards, on all interfaces and without a password, and it unpickles its
    input. Requests reach a replica through calls of Ray, so nothing uses it.
    """
    module = vars(replica)
    usual: Any = module["add_port_to_grpc_server"]  # a KeyError in a release without it
    module["add_port_to_grpc_server"] = lambda server, _: usual(server, "127.0.0.1:0")
