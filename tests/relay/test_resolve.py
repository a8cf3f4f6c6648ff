"""Connections that go to checked addresses alone."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from audiofork.errors import SinkRefused
from audiofork.relay.resolve import open_socket
from tests.relay.peers import until

pytestmark = pytest.mark.usefixtures("nothing_left")

FORBIDDEN = "which [security] allow_private forbids"


class Internet:
    """Names, and addresses of the internet that lead to this machine.

    Attributes:
        names: The addresses of each name.
        up: The addresses at which somebody listens.
        asked: Each look-up.
        tried: Each address that was connected to.
    """

    def __init__(self, listening: socket.socket) -> None:
        self.names: dict[str, list[str]] = {}
        self.up: set[str] = set()
        self.asked: list[str] = []
        self.tried: list[str] = []
        self._listening = listening

    async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[Any]:
        self.asked.append(host)
        return [
            (socket.AF_INET6 if ":" in there else socket.AF_INET, type, 6, "", (there, port))
            for there in self.names[host]
        ]

    async def sock_connect(self, connecting: socket.socket, there: tuple[Any, ...]) -> None:
        self.tried.append(there[0])
        if there[0] not in self.up:
            raise ConnectionRefusedError(111, f"{there[0]} is down")
        await asyncio.get_running_loop().sock_connect(connecting, self._listening.getsockname())


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


@pytest.fixture
def internet(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    one = Internet(listening)
    faked = SimpleNamespace(get_running_loop=lambda: one)
    monkeypatch.setattr("audiofork.relay.resolve.asyncio", faked)
    before = len(os.listdir("/proc/self/fd"))
    yield one
    assert len(os.listdir("/proc/self/fd")) == before


async def test_public_address_is_connected_to(internet: Internet) -> None:
    internet.names["example.org"] = ["8.8.8.8"]
    internet.up.add("8.8.8.8")
    with await open_socket("example.org", 80, allow_private=False) as opened:
        assert opened.getpeername()[0] == "127.0.0.1"
        assert opened.gettimeout() == 0
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert (internet.asked, internet.tried) == (["example.org"], ["8.8.8.8"])


@pytest.mark.parametrize("private", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"])
async def test_name_of_a_private_address_is_refused_and_not_connected_to(
    internet: Internet, private: str
) -> None:
    internet.names["example.org"] = [private, "192.168.0.1"]
    internet.up.add(private)
    with pytest.raises(SinkRefused) as caught:
        await open_socket("example.org", 80, allow_private=False)
    assert (
        str(caught.value) == f"example.org resolves to the private address {private}, {FORBIDDEN}"
    )
    assert internet.tried == []


async def test_of_a_name_with_both_only_the_public_addresses_are_tried(internet: Internet) -> None:
    internet.names["example.org"] = ["10.0.0.1", "8.8.8.8", "127.0.0.1", "8.8.4.4", "fe80::1"]
    internet.up = {"10.0.0.1", "127.0.0.1", "8.8.4.4"}
    (await open_socket("example.org", 80, allow_private=False)).close()
    assert internet.tried == ["8.8.8.8", "8.8.4.4"]


async def test_name_whose_address_changes_is_looked_up_once(internet: Internet) -> None:
    """What DNS rebinding needs is a second look-up."""
    internet.names["example.org"] = ["8.8.8.8"]
    internet.up = {"8.8.8.8", "127.0.0.1"}
    (await open_socket("example.org", 80, allow_private=False)).close()
    internet.names["example.org"] = ["127.0.0.1"]
    with pytest.raises(SinkRefused):
        await open_socket("example.org", 80, allow_private=False)
    assert (internet.asked, internet.tried) == (["example.org"] * 2, ["8.8.8.8"])


async def test_none_that_answers_raises_what_the_last_one_said(internet: Internet) -> None:
    internet.names["example.org"] = ["8.8.8.8", "8.8.4.4"]
    with pytest.raises(OSError, match=r"8\.8\.4\.4 is down"):
        await open_socket("example.org", 80, allow_private=False)
    assert internet.tried == ["8.8.8.8", "8.8.4.4"]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1"),
        *("0", "::1", "::ffff:127.0.0.1", "\uff11\uff12\uff17.0.0.1"),
    ],
)
async def test_every_form_of_this_machine_is_refused(listening: socket.socket, host: str) -> None:
    port = listening.getsockname()[1]
    with pytest.raises(SinkRefused, match="resolves to the private address"):
        await open_socket(host, port, allow_private=False)


async def test_connect_that_is_given_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiofork.relay.resolve.is_public", lambda address: True)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:  # fills the queue: the next one gets no answer
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        before = len(os.listdir("/proc/self/fd"))
        connecting = asyncio.create_task(open_socket(*full.getsockname(), allow_private=False))
        await until(lambda: len(os.listdir("/proc/self/fd")) > before)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert len(os.listdir("/proc/self/fd")) == before
        for one in waiting:
            one.close()
