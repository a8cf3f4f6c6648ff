"""Look-ups of names: one of each, and none that holds up another."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from audiofork.errors import SinkUnreachable
from audiofork.relay import lookup
from audiofork.relay.lookup import Lookups, lookups
from testbed.name_server import with_resolv_conf
from tests.relay.peers import FakeLoop, until

pytestmark = pytest.mark.usefixtures("nothing_left")

REAL = socket.getaddrinfo
MODULE = "tests.relay.dead_names"


class NameServer:
    """What getaddrinfo asks; names that begin with `dead` get no answer before `give_up()`.

    Attributes:
        names: The address of each name.
        asked: Each look-up that took a thread.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.asked: list[str] = []
        self._given_up = threading.Event()

    def getaddrinfo(self, host: str, port: None, *, type: int, flags: int) -> Any:
        if flags:
            assert flags == socket.AI_NUMERICHOST
            return REAL(host, port, type=type, flags=flags)
        assert threading.current_thread() is not threading.main_thread()
        self.asked.append(host)
        if host.startswith("dead"):
            assert self._given_up.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return REAL(self.names[host], port, type=type)

    def give_up(self) -> None:
        self._given_up.set()


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NameServer]:
    one = NameServer()
    monkeypatch.setattr("audiofork.relay.lookup.socket.getaddrinfo", one.getaddrinfo)
    yield one
    one.give_up()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch, one: Lookups) -> FakeLoop:
    """Own the time that answers are kept."""
    fake = FakeLoop()
    monkeypatch.setattr(one, "loop", fake)
    return fake


@pytest.fixture
async def one(server: NameServer) -> AsyncIterator[Lookups]:
    made = Lookups()
    yield made
    server.give_up()
    await until(lambda: not made._threads.running)


def found(infos: list[Any]) -> list[str]:
    return [info[4][0] for info in infos]


async def within(finding: Any) -> Any:
    async with asyncio.timeout(5):
        return await finding


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *(("192.0.2.1", "192.0.2.1"), ("127.1", "127.0.0.1"), ("0x7f000001", "127.0.0.1")),
        *(("::1", "::1"), ("2001:db8::1", "2001:db8::1"), ("\uff11.2.3.4", "1.2.3.4")),
    ],
)
async def test_number_is_its_own_address_and_nobody_is_asked(
    server: NameServer, one: Lookups, host: str, address: str
) -> None:
    assert found(await one.find(host)) == [address]
    assert server.asked == []


async def test_names_without_an_answer_hold_up_no_other(server: NameServer, one: Lookups) -> None:
    dead = [asyncio.create_task(one.find(f"dead{n}.example")) for n in range(100)]
    await until(lambda: len(server.asked) == 100)
    server.names["good.example"] = "127.0.0.1"
    assert found(await within(one.find("good.example"))) == ["127.0.0.1"]
    server.give_up()
    outcomes = await within(asyncio.gather(*dead, return_exceptions=True))
    assert {type(exc) for exc in outcomes} == {socket.gaierror}


async def test_many_who_want_a_name_at_once_share_one_look_up(
    server: NameServer, one: Lookups
) -> None:
    waiting = [asyncio.create_task(one.find("dead.example")) for _ in range(50)]
    await until(lambda: server.asked)
    waiting.pop().cancel()  # which is no matter of the others
    server.give_up()
    outcomes = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert {str(exc) for exc in outcomes} == {"[Errno -3] Temporary failure in name resolution"}
    assert server.asked == ["dead.example"]


@pytest.mark.parametrize("known", [True, False])
async def test_answer_serves_for_a_second_also_that_there_is_none(
    server: NameServer, one: Lookups, clock: FakeLoop, known: bool
) -> None:
    async def ask() -> object:
        try:
            return found(await within(one.find("h.example")))
        except socket.gaierror as exc:
            return exc.errno

    if known:
        server.names["h.example"] = "192.0.2.1"
    first = await ask()
    assert first == (["192.0.2.1"] if known else socket.EAI_NONAME)
    server.names["h.example"] = "192.0.2.2"
    clock.advance(0.999)
    assert await ask() == first
    assert server.asked == ["h.example"]
    clock.advance(0.001)
    assert await ask() == ["192.0.2.2"]
    assert server.asked == ["h.example"] * 2


async def test_beyond_the_limit_a_new_name_is_refused_and_a_known_one_is_not(
    server: NameServer,
    one: Lookups,
    clock: FakeLoop,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one._threads, "limit", 20)
    server.names["good.example"] = "192.0.2.1"
    await within(one.find("good.example"))
    clock.advance(1)
    dead = [asyncio.create_task(one.find(f"dead{n}")) for n in range(20)]
    await until(lambda: len(server.asked) == 21)
    for task in dead:  # those whom nobody waits for take their threads all the same
        task.cancel()
    await asyncio.wait(dead)
    with pytest.raises(SinkUnreachable) as refused:
        await one.find("other.example")
    text = "other.example was not looked up: 20 other names have yet to answer"
    assert str(refused.value) == text
    assert "names that were not looked up: 1 more, last: other.example" in caplog.text
    assert found(await within(one.find("good.example"))) == ["192.0.2.1"]
    assert found(await within(one.find("192.0.2.9"))) == ["192.0.2.9"]
    server.give_up()
    await until(lambda: not one._threads.running)
    server.names["other.example"] = "192.0.2.3"
    assert found(await within(one.find("other.example"))) == ["192.0.2.3"]


async def test_system_without_more_threads_is_told(
    server: NameServer, one: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuse)
        with pytest.raises(SinkUnreachable, match=r"^h was not looked up: no more threads: can't"):
            await one.find("h")
    server.names["h"] = "192.0.2.1"
    assert found(await within(one.find("h"))) == ["192.0.2.1"]


async def test_name_that_answered_long_ago_is_forgotten(
    server: NameServer, one: Lookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "MAX_KNOWN", 2)
    for name in ("a", "b", "a2", "b2"):
        server.names[name] = "192.0.2.1"
        await within(one.find(name))
    assert list(one._known) == ["a2", "b2"]


async def test_name_under_way_is_told(server: NameServer, one: Lookups) -> None:
    assert not one.is_under_way("dead")
    task = asyncio.create_task(one.find("dead"))
    await until(lambda: server.asked)
    assert one.is_under_way("dead")
    server.give_up()
    await asyncio.wait([task])
    assert isinstance(task.exception(), socket.gaierror)
    assert not one.is_under_way("dead")


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
async def test_what_is_no_name_raises(one: Lookups, server: NameServer, host: str) -> None:
    with pytest.raises(UnicodeError):
        await one.find(host)
    assert server.asked == []


async def test_hosts_file_counts() -> None:
    """What getaddrinfo knows is known: names of /etc/hosts, search domains, nsswitch.conf."""
    assert {"127.0.0.1", "::1"} >= {*found(await within(Lookups().find("localhost")))}


FOUND = """\
addresses: {'127.0.0.1'}
asked once: True
localhost: True
before those: True
later: {'127.0.0.2'}
still without an answer: True
"""


@pytest.mark.slow
async def test_names_are_found_beside_50_whose_dns_does_not_answer_and_the_end_waits_for_none(
    tmp_path: Path,
) -> None:
    command = with_resolv_conf(tmp_path / "resolv.conf", sys.executable, "-m", MODULE)
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    apart = ("unshare", *as_root, "--net", *command)
    process = await asyncio.create_subprocess_exec(*apart, stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = ""
    async with asyncio.timeout(30):  # half of what a look-up takes that is not answered
        while "still" not in told and (line := await process.stdout.readline()):
            told += line.decode()
        assert (await process.wait(), told) == (0, FOUND)


async def test_loop_has_its_own() -> None:
    assert lookups() is lookups()
    assert lookups().loop is asyncio.get_running_loop()
