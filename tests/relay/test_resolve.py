"""Connections that go to checked addresses alone."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from audiofork.errors import SinkRefused
from audiofork.relay.resolve import open_socket
from tests.relay.peers import FakeLoop, silent_address, until

pytestmark = pytest.mark.usefixtures("nothing_left")

FORBIDDEN = "which [security] allow_private forbids"


class Internet:
    """Names, and addresses of the internet that lead to this machine; the time is the test's.

    An address is down, and says so at once, unless it is in one of these.

    Attributes:
        names: The addresses of each name.
        up: The addresses at which somebody listens.
        silent: Those that answer nothing before `answer()` or `refuse()`.
        lost: Those to which no way leads.
        asked: Each look-up.
        tried: Each address that was connected to.
        sockets: Each that was opened.
        watched: Which of their descriptors the event loop watches.
    """

    def __init__(self, listening: socket.socket) -> None:
        self.names: dict[str, list[str]] = {}
        self.up: set[str] = set()
        self.silent: set[str] = set()
        self.lost: set[str] = set()
        self.asked: list[str] = []
        self.tried: list[str] = []
        self.sockets: list[_Socket] = []
        self.watched: set[int] = set()
        self.clock = FakeLoop()
        self.call_later = self.clock.call_later
        self._ready: dict[str, Callable[[], object]] = {}
        loop = asyncio.get_running_loop()
        self._loop, self.create_future = loop, loop.create_future
        self._listening = listening.getsockname()
        self.socket = functools.partial(_Socket, self)

    async def find(self, host: str) -> list[Any]:
        self.asked.append(host)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (there, 0, 0, 0))
            if ":" in there
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (there, 0))
            for there in self.names[host]
        ]

    def connect(self, attempt: _Socket, there: str) -> None:
        self.tried.append(there)
        attempt.there = there
        if there in self.lost:
            raise OSError(errno.ENETUNREACH, f"no way to {there}")
        if there not in self.up | self.silent:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{there} is down")
        attempt.lead_to(self._listening)
        if there in self.silent:
            raise BlockingIOError(errno.EINPROGRESS, "")

    def add_writer(self, fd: int, callback: Callable[..., object], attempt: _Socket) -> None:
        self.watched.add(fd)
        if attempt.there in self.silent:
            self._ready[attempt.there] = functools.partial(callback, attempt)
        else:
            self._loop.add_writer(fd, callback, attempt)

    def remove_writer(self, fd: int) -> None:
        self.watched.discard(fd)
        self._loop.remove_writer(fd)

    def answer(self, there: str) -> None:
        """Let the attempt to connect to a silent address succeed."""
        self._ready[there]()

    def refuse(self, there: str) -> None:
        """Let it fail."""
        attempt = next(one for one in self.sockets if one.there == there)
        attempt.error = errno.ECONNREFUSED
        self._ready[there]()

    def open(self) -> list[str]:
        """Return to which addresses there are sockets."""
        return [one.there for one in self.sockets if one.fileno() >= 0]


class _Socket(socket.socket):
    """A socket of the internet."""

    def __init__(self, internet: Internet, family: int, kind: int) -> None:
        super().__init__(socket.AF_INET, kind)
        self._internet = internet
        self.there = ""
        self.error = 0
        internet.sockets.append(self)

    def connect(self, there: Any) -> None:
        assert there[1:] in ((80,), (80, 0, 0))
        self._internet.connect(self, there[0])

    def lead_to(self, there: Any) -> None:
        self.setblocking(True)  # a connection to this machine is there at once
        super().connect(there)
        self.setblocking(False)

    def close(self) -> None:
        assert self.fileno() not in self._internet.watched
        super().close()

    def getsockopt(self, level: int, option: int, *size: int) -> Any:
        if option == socket.SO_ERROR and level == socket.SOL_SOCKET and self.error:
            return self.error
        return super().getsockopt(level, option, *size)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


@pytest.fixture
async def internet(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Internet]:
    one = Internet(listening)
    faked = SimpleNamespace(get_running_loop=lambda: one)
    monkeypatch.setattr("audiofork.relay.resolve.asyncio", faked)
    sockets = SimpleNamespace(**vars(socket) | {"socket": one.socket})
    monkeypatch.setattr("audiofork.relay.resolve.socket", sockets)
    monkeypatch.setattr("audiofork.relay.resolve.lookups", lambda: one)
    before = len(os.listdir("/proc/self/fd"))
    yield one
    assert one.open() == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert one.clock.armed == 0


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


# --- Several addresses ---------------------------------------------------------------------------

A, B, C = "8.8.8.8", "8.8.4.4", "1.1.1.1"


async def connecting_to(internet: Internet, *addresses: str) -> asyncio.Task[socket.socket]:
    """Begin to connect to a name with these addresses."""
    internet.names["example.org"] = list(addresses)
    task = asyncio.create_task(open_socket("example.org", 80, allow_private=False))
    await until(lambda: internet.tried)
    return task


async def ended(task: asyncio.Task[socket.socket]) -> socket.socket:
    """Return what a connect comes to, without the time that is the test's."""
    async with asyncio.timeout(5):
        return await task


async def test_next_address_is_tried_when_one_has_not_answered_for_250_ms(
    internet: Internet,
) -> None:
    internet.silent, internet.up = {A}, {B}
    task = await connecting_to(internet, A, B, C)
    internet.clock.advance(0.249)
    assert internet.tried == [A]
    internet.clock.advance(0.001)
    with await ended(task):
        assert internet.tried == [A, B]
        assert internet.open() == [B]


async def test_next_addresses_are_tried_at_once_when_one_fails_at_once(internet: Internet) -> None:
    internet.lost, internet.up = {A}, {C}
    with await ended(await connecting_to(internet, A, B, C)):
        assert internet.tried == [A, B, C]
        assert internet.open() == [C]


async def test_next_address_is_tried_at_once_when_one_is_refused_and_has_its_own_250_ms(
    internet: Internet,
) -> None:
    internet.silent = {A, B, C}
    task = await connecting_to(internet, A, B, C)
    internet.clock.advance(0.2)
    internet.refuse(A)
    assert (internet.tried, internet.open()) == ([A, B], [B])
    internet.clock.advance(0.249)
    assert internet.tried == [A, B]
    internet.clock.advance(0.001)
    assert internet.tried == [A, B, C]
    internet.answer(C)
    (await ended(task)).close()


async def test_families_take_turns(internet: Internet) -> None:
    addresses = ["2600::1", "2600::2", "2600::3", A, B]
    internet.silent = {*addresses}
    task = await connecting_to(internet, *addresses)
    internet.clock.advance(2)
    assert internet.tried == ["2600::1", A, "2600::2", B, "2600::3"]
    internet.answer(A)
    (await ended(task)).close()


async def test_earlier_address_wins_when_it_answers_first_after_all(internet: Internet) -> None:
    internet.silent = {A, B, C}
    task = await connecting_to(internet, A, B, C)
    internet.clock.advance(0.5)
    assert internet.open() == [A, B, C]
    internet.answer(A)
    with await ended(task) as opened:
        assert opened.gettimeout() == 0
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert internet.open() == [A]


async def test_of_two_that_answer_in_one_turn_the_second_is_closed(internet: Internet) -> None:
    internet.silent = {A, B}
    task = await connecting_to(internet, A, B, C)
    internet.clock.advance(0.25)
    internet.answer(A)
    internet.answer(B)
    internet.clock.advance(0.25)
    with await ended(task):
        assert (internet.tried, internet.open()) == ([A, B], [A])


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        (set(), "1.1.1.1 is down"),
        ({C}, "8.8.4.4 is down"),
        ({B, C}, "8.8.8.8 is down"),
        ({A, B, C}, "no way to 1.1.1.1"),
    ],
)
async def test_none_that_answers_raises_what_the_last_one_said_that_said_something(
    internet: Internet, lost: set[str], text: str
) -> None:
    internet.lost = lost
    with pytest.raises(OSError, match=text):
        await ended(await connecting_to(internet, A, B, C))
    assert internet.tried == [A, B, C]


async def test_none_that_answers_is_waited_for_to_the_last(internet: Internet) -> None:
    internet.silent = {A, B}
    task = await connecting_to(internet, A, B)
    internet.clock.advance(0.25)
    internet.refuse(B)
    internet.clock.advance(10)
    assert internet.open() == [A]
    internet.refuse(A)
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        await ended(task)


async def test_family_that_the_kernel_has_not_is_passed_over(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_one(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return internet.socket(family, kind)

    monkeypatch.setattr("audiofork.relay.resolve.socket.socket", open_one)
    internet.up = {A}
    with await ended(await connecting_to(internet, "2600::1", A)):
        assert internet.open() == [A]


@pytest.mark.parametrize("answers", [0, 1, 2])
async def test_connect_that_is_cancelled_closes_all_at_once(
    internet: Internet, answers: int
) -> None:
    """Also one that has just succeeded: its timeout has run out, whatever came of it."""
    internet.silent = {A, B, C}
    task = await connecting_to(internet, A, B, C)
    internet.clock.advance(0.25)
    for there in [A, B][:answers]:
        internet.answer(there)
    task.cancel()
    internet.clock.advance(0.25)
    with pytest.raises(asyncio.CancelledError):
        await ended(task)
    assert (internet.tried, internet.open()) == ([A, B], [])


async def test_failure_after_a_cancel_begins_no_other(internet: Internet) -> None:
    internet.silent = {A}
    task = await connecting_to(internet, A, B)
    task.cancel()
    internet.refuse(A)
    with pytest.raises(asyncio.CancelledError):
        await ended(task)
    assert internet.tried == [A]


# --- Real ones -----------------------------------------------------------------------------------


async def test_connect_that_is_given_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiofork.relay.resolve.is_public", lambda address: True)
    with silent_address() as silent:
        before = len(os.listdir("/proc/self/fd"))
        connecting = asyncio.create_task(open_socket(*silent, allow_private=False))
        await until(lambda: len(os.listdir("/proc/self/fd")) > before)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert len(os.listdir("/proc/self/fd")) == before
