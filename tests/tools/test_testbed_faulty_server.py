"""The faulty server does what it is told: else the fault tests prove nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    ConnectionClosedError,
    InvalidHandshake,
    InvalidStatus,
)

from testbed.faulty_server import BROKEN_OFF, GARBAGE, FaultyServer, Manner, ServerProcess


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    async with FaultyServer(receive_buffer=4096) as one:
        yield one


def client(server: FaultyServer, path: str = "/") -> connect:
    return connect(server.url(path), proxy=None, compression=None, close_timeout=1)


async def closure(connection: ClientConnection) -> ConnectionClosed:
    with pytest.raises(ConnectionClosed) as caught:
        async with asyncio.timeout(5):
            await connection.recv()
    return caught.value


async def test_well_treated_connection_is_recorded_and_answered(server: FaultyServer) -> None:
    async with client(server, "/a?b") as connection:
        await connection.send(b"1")
        await connection.send("2")
        await (await connection.ping())
    recording = await server.wait_closed("/a?b")
    assert recording.messages == [b"1", "2"]
    assert len(recording.times) == 2
    assert recording.close_code == 1000
    assert len(server.connects) == 1


@pytest.mark.parametrize(
    "manner",
    [Manner(accepts=False), Manner(raw_answer=GARBAGE + b"\r\n\r\n")],
    ids=["closes", "garbage"],
)
async def test_connection_without_a_handshake_opens_nothing(
    server: FaultyServer, manner: Manner
) -> None:
    server.manner = manner
    with pytest.raises((InvalidHandshake, ConnectionClosed, OSError)):
        await client(server)
    assert server.recordings == []
    assert len(server.connects) == 1


async def test_request_that_gets_no_answer_waits(server: FaultyServer) -> None:
    server.manners = [Manner(answers=False)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client(server)
    async with client(server):
        pass


async def test_status_and_headers_of_a_refusal_are_sent(server: FaultyServer) -> None:
    server.manner = Manner(status=429, headers={"Retry-After": "7"})
    with pytest.raises(InvalidStatus) as caught:
        await client(server)
    assert caught.value.response.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "7"


@pytest.mark.parametrize("code", [1012, BROKEN_OFF])
async def test_connection_is_closed_right_after_its_handshake(
    server: FaultyServer, code: int
) -> None:
    server.manner = Manner(close_code=code)
    connection = await client(server)
    closed = await closure(connection)
    assert (closed.rcvd.code if closed.rcvd else BROKEN_OFF) == code


async def test_server_that_went_refuses_and_comes_back_on_its_port(server: FaultyServer) -> None:
    connection = await client(server)
    stopping = asyncio.create_task(server.stop(1001))
    assert (await closure(connection)).rcvd is not None
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await client(server)
    await server.start()
    async with client(server):
        pass


async def test_message_sent_before_the_client_saw_the_close_is_recorded(
    server: FaultyServer,
) -> None:
    connection = await client(server)
    await connection.send(b"1")
    await server.wait_messages("/", 1)
    server.link.close(1012)
    await connection.send(b"2")
    await closure(connection)
    recording = await server.wait_closed("/")
    assert recording.messages == [b"1", b"2"]


async def test_pings_can_be_left_unanswered(server: FaultyServer) -> None:
    server.manner = Manner(pongs=False)
    async with client(server) as connection:
        pong = await connection.ping()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pong, 0.2)


async def test_stalled_connection_reads_on_when_told(server: FaultyServer) -> None:
    async with client(server) as connection:
        server.link.stall()
        await connection.send(b"1")
        await asyncio.sleep(0.1)
        assert server.at("/")[0].messages == []
        server.link.read_on()
        await server.wait_messages("/", 1)


async def test_vanished_connection_hears_nothing_and_says_nothing(server: FaultyServer) -> None:
    async with client(server) as connection:
        server.link.vanish()
        await connection.send(b"1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.recv(), 0.2)
        assert server.at("/")[0].messages == []
        server.link.reset()
        assert isinstance(await closure(connection), ConnectionClosedError)


@pytest.mark.parametrize("wire", [GARBAGE, b"\x82\x7f" + (1 << 20).to_bytes(8, "big")])
async def test_bytes_out_of_protocol_make_the_client_close(
    server: FaultyServer, wire: bytes
) -> None:
    connection = await connect(server.url(), proxy=None, max_size=65536)
    server.link.send_raw(wire)
    closed = await closure(connection)
    assert closed.sent is not None
    assert closed.sent.code in (1002, 1009)
    assert (await server.wait_closed("/")).close_code == closed.sent.code


async def test_half_a_message_is_the_last_that_comes(server: FaultyServer) -> None:
    connection = await client(server)
    server.link.break_in_message()
    assert (await closure(connection)).rcvd is None


async def test_process_goes_on_after_a_freeze_with_what_its_kernel_took() -> None:
    async with ServerProcess() as process:
        async with connect(process.url("/p"), proxy=None) as connection:
            process.freeze()
            began = time.monotonic()
            await connection.send(b"1")
            await asyncio.sleep(0.3)
            process.thaw()
            await process.wait(lambda got: got and got[0].messages == [b"1"])
        assert process.connections()[0].path == "/p"
        assert process.connections()[0].times[0] - began >= 0.25


async def test_process_that_is_stopped_says_1001_and_comes_back_on_its_port() -> None:
    async with ServerProcess() as process:
        connection = await connect(process.url("/1"), proxy=None)
        stopping = asyncio.create_task(process.stop())
        closed = await closure(connection)
        assert closed.rcvd is not None
        assert closed.rcvd.code == 1001
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await connect(process.url(), proxy=None)
        await process.start()
        async with connect(process.url("/2"), proxy=None):
            pass
        await process.wait(lambda got: [one.path for one in got] == ["/1", "/2"])
