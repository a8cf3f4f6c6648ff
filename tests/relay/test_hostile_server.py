"""Servers that mean harm: what they cost is bounded, and they are treated as lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from audiofork.errors import SinkLost, SinkRefused
from audiofork.relay import sink as sinks
from audiofork.relay.client_tls import client_tls
from audiofork.relay.connection import Connection
from audiofork.relay.server_limits import WORK
from audiofork.relay.sink import Sink
from audiofork.relay.sink_states import SinkState
from testbed.faulty_server import FaultyServer
from testbed.hostile_server import (
    FLOODS,
    LAST_WORDS,
    TLS_FLOODS,
    WITHIN_BOUNDS,
    HostileServer,
)
from tests.relay.peers import StalledServer, numbered, until
from tests.relay.sinks import Start, Waits, failure, offer, opened, retries_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def hostile(request: pytest.FixtureRequest) -> Iterator[HostileServer]:
    with HostileServer(request.param) as server:
        yield server


# --- Floods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", [*FLOODS, "ping-slow", "bigtext-slow"], indirect=True)
async def test_server_that_floods_is_closed_with_1008_and_lost(
    hostile: HostileServer, start: Start, soon: float
) -> None:
    sink, task = start(hostile.url)
    offer(sink, numbered(5))
    error = await failure(task)
    assert isinstance(error, SinkLost)
    assert str(error).startswith("closed by us with 1008 more than ")
    if hostile.reads:
        await until(lambda: hostile.over)
        assert hostile.over[0].close_code == 1008


@pytest.mark.parametrize("hostile", ["ping125", "emptytext", "bigtext", "cont0"], indirect=True)
async def test_server_that_floods_holds_up_nobody(
    hostile: HostileServer, start: Start, soon: float
) -> None:
    """What it sends is not even read any more, once it has sent too much."""
    longest_s = await longest_turn_while(start, hostile.url)
    assert longest_s < 0.1
    await until(lambda: hostile.over)
    assert hostile.over[0].sent_bytes < 20_000_000  # the kernels hold some of them


async def longest_turn_while(start: Start, url: str) -> float:
    """Return how long the event loop stood still at most until a sink has failed."""
    _, task = start(url)
    longest_s = 0.0
    async with asyncio.timeout(10):
        while not task.done():
            before_s = time.thread_time()  # other processes' time does not count
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - before_s)
    task.exception()
    return longest_s


@pytest.mark.parametrize("hostile", ["ping125-noread"], indirect=True)
async def test_pongs_that_are_not_read_take_no_memory(
    hostile: HostileServer, start: Start, soon: float
) -> None:
    sink, task = start(hostile.url)
    connection = await opened_connection(sink)
    most = 0
    async with asyncio.timeout(10):
        while not task.done():
            most = max(most, connection.transport.get_write_buffer_size())
            await asyncio.sleep(0)
    assert most < 20_000


@pytest.mark.parametrize("hostile", ["ping"], indirect=True)
async def test_server_that_floods_again_and_again_is_tried_seldom(
    hostile: HostileServer, start: Start, waits: Waits, soon: float
) -> None:
    waits(0.05, 0)
    sink, task = start(hostile.url, reconnect_attempts=5, reconnect_interval=0.4)
    retried = retries_of(sink)
    began = time.monotonic()
    offer(sink, numbered(5))
    assert isinstance(await failure(task), SinkLost)
    assert [attempt for attempt, _ in retried][:4] == [2, 3, 4, 5]
    assert time.monotonic() - began >= 1.5
    assert len(hostile.over) <= 12


@pytest.mark.parametrize("hostile", list(WITHIN_BOUNDS), indirect=True)
async def test_server_within_the_bounds_is_kept(hostile: HostileServer, start: Start) -> None:
    sink, task = start(hostile.url)
    await opened(sink)
    for number in range(50):
        offer(sink, numbered(1, number), before=number)
        await asyncio.sleep(0.01)
    assert sink.frames_sent == 50
    assert not task.done()


@pytest.mark.parametrize("mode", list(TLS_FLOODS))
async def test_server_that_floods_with_requests_of_tls_is_closed_with_1008_and_lost(
    mode: str,
    ca: trustme.CA,
    ca_file: Path,
    tmp_path: Path,
    start: Start,
    soon: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine it causes less than it may.
    monkeypatch.setattr("audiofork.relay.tls.WORK", WORK._replace(a_second=1, at_once=20))
    certificate = tmp_path / "server.pem"
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    with HostileServer(mode, certificate) as hostile:
        sink, task = start(hostile.url, client_tls(str(ca_file)))
        connection = await opened_connection(sink)
        most_kept = 0
        async with asyncio.timeout(20):
            while not task.done():
                most_kept = max(most_kept, connection.transport.get_write_buffer_size())
                await asyncio.sleep(0.005)
        error = await failure(task)
        assert isinstance(error, SinkLost)
        assert str(error) == "closed by us with 1008 more than 50 ms of work a second"
        assert most_kept < 200_000


async def opened_connection(sink: Sink) -> Connection:
    await opened(sink)
    assert sink._connection is not None
    return sink._connection


@pytest.mark.parametrize("hostile", ["403body"], indirect=True)
async def test_server_that_refuses_with_a_body_without_end_is_not_tried_again(
    hostile: HostileServer, start: Start
) -> None:
    _, task = start(hostile.url, reconnect_attempts=0)
    error = await failure(task)
    assert isinstance(error, SinkRefused)
    assert ": the server answered HTTP 403 Forbidden; " in str(error)


# --- Closed, and yet connected -------------------------------------------------------------------


@pytest.mark.parametrize("hostile", list(LAST_WORDS), indirect=True)
async def test_server_that_closes_and_keeps_tcp_is_lost_at_once_and_aborted_in_time(
    hostile: HostileServer,
    start: Start,
    waits: Waits,
    soon: float,
) -> None:
    waits(3600)
    sink, task = start(hostile.url, reconnect_attempts=0, reconnect_interval=3600)
    retried = retries_of(sink)
    await until(lambda: sink.state is SinkState.AWAY)
    assert sink._connection is not None  # TCP still is
    began = asyncio.get_running_loop().time()
    offer(sink, numbered(20))
    assert len(sink.backlog) == 20
    await until(lambda: sink._connection is None)
    assert asyncio.get_running_loop().time() - began <= soon + 0.5
    if hostile.mode == "close1000":
        assert isinstance(await failure(task), SinkRefused)
    else:
        assert len(retried) == 1  # told at once
        await sink.close(1000, "test over")


async def test_frames_before_a_close_frame_count_as_sent_when_they_are_acknowledged_after_it(
    stalled: StalledServer, start: Start, waits: Waits, soon: float
) -> None:
    waits(3600)
    sink, task = start(stalled.url, reconnect_attempts=0, reconnect_interval=3600)
    await opened(sink)
    offer(sink, numbered(3))
    stalled.send_close(1001)
    await until(lambda: sink.state is SinkState.AWAY)
    offer(sink, numbered(4, 3), before=3)
    await until(lambda: sink._connection is None)
    assert (sink.frames_sent, len(sink.backlog)) == (3, 4)
    await sink.close(1000, "test over")


async def test_server_that_ends_its_side_of_tcp_and_reads_nothing_is_lost_in_time(
    stalled: StalledServer, start: Start, soon: float
) -> None:
    sink, task = start(stalled.url)
    connection = await opened_connection(sink)
    connection.transport.write(bytes(20_000_000))  # the kernel and the transport are full
    stalled.transport.write_eof()
    async with asyncio.timeout(soon + 1):
        assert isinstance(await failure(task), SinkLost)


async def test_close_of_a_sink_whose_server_has_closed_gives_what_waits_to_the_next(
    start: Start, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "CLOSE_TIMEOUT_S", 0.1)
    async with FaultyServer() as server:
        sink, task = start(server.url(), reconnect_attempts=0)
        await opened(sink)
        server.link.stall()
        server.link.send_raw(LAST_WORDS["close1001"])
        await until(lambda: sink.state is SinkState.AWAY)
        offer(sink, numbered(4))
        async with asyncio.timeout(5):
            await sink.close(1000, "hangup")
            await task
        await until(lambda: server.messages_of("/") == numbered(4))
    assert (sink.frames_sent, sink.backlog.dropped) == (4, 0)


def test_close_takes_two_seconds_at_most() -> None:
    assert sinks.CLOSE_TIMEOUT_S == 2
