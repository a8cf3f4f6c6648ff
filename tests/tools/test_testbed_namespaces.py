"""Hosts in network namespaces, and the router between them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from testbed.namespaces import Host, NamespacesUnavailable, Network

PORT = 9000
SILENT_S = 0.3


@pytest.fixture
def network() -> Iterator[Network]:
    try:
        network = Network()
    except NamespacesUnavailable as exc:
        pytest.skip(f"no network namespaces can be made: {exc}")
    with network:
        yield network


@pytest.fixture
def hosts(network: Network) -> list[Host]:
    return [network.host(name) for name in ("a", "b", "c")]


def listener(host: Host) -> socket.socket:
    with host.entered():
        return socket.create_server((host.address, PORT))


def connected(host: Host, to: Host) -> socket.socket:
    with host.entered():
        return socket.create_connection((to.address, PORT), SILENT_S)


def test_hosts_reach_each_other_and_nothing_else(hosts: list[Host]) -> None:
    a, b, _ = hosts
    with listener(b), connected(a, b) as one:
        assert one.getsockname()[0] == a.address
    with a.entered(), pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", PORT), SILENT_S)


def test_program_runs_on_its_host(hosts: list[Host]) -> None:
    command = [*hosts[0].within, "ip", "-brief", "address", "show", "eth0"]
    assert hosts[0].address in subprocess.check_output(command, text=True)


def test_cut_link_is_silent_and_goes_on_when_it_is_healed(
    network: Network, hosts: list[Host]
) -> None:
    a, b, c = hosts
    with listener(b) as there, connected(a, b) as one:
        other, _ = there.accept()
        with other:
            network.cut(a, b)
            one.sendall(b"1")
            other.settimeout(SILENT_S)
            with pytest.raises(TimeoutError):
                other.recv(1)
            with pytest.raises(TimeoutError):  # neither refused nor unreachable
                connected(a, b)
            connected(c, b).close()
            network.heal()
            other.settimeout(10)
            assert other.recv(1) == b"1"


def test_host_that_is_cut_off_reaches_nobody(network: Network, hosts: list[Host]) -> None:
    a, b, c = hosts
    with listener(b), listener(c):
        network.cut(a)
        for to in (b, c):
            with pytest.raises(TimeoutError):
                connected(a, to)
        connected(b, c).close()
        network.heal()
        connected(a, b).close()


def test_parted_hosts_reach_their_own_side_alone(network: Network, hosts: list[Host]) -> None:
    a, b, c = hosts
    with listener(b), listener(c):
        network.part(a, b)
        connected(a, b).close()
        for host, to in ((a, c), (c, b)):
            with pytest.raises(TimeoutError):
                connected(host, to)
        network.join(c, a)
        connected(a, c).close()
        with pytest.raises(TimeoutError):
            connected(c, b)


def test_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NamespacesUnavailable, match="no ip and no nsenter"):
        Network()
