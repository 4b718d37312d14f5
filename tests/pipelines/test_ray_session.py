"""A Ray that is started on this machine is of use to this machine alone."""

import ipaddress

import psutil
import pytest


def _addresses() -> dict[str, str]:
    """Where this process and all that it has started listen, and who does."""
    me = psutil.Process()
    found = {}
    for process in [me, *me.children(recursive=True)]:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:  # it has ended
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                found[f"{one.laddr.ip}:{one.laddr.port}"] = process.name()
    return found


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.rpartition(":")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


@pytest.mark.slow
@pytest.mark.cluster
def test_a_local_ray_listens_on_loopback_alone(local_ray: None) -> None:
    addresses = _addresses()
    assert {"gcs_server", "raylet"} <= set(addresses.values())
    outside = {address: name for address, name in addresses.items() if not _is_loopback(address)}
    assert not outside
