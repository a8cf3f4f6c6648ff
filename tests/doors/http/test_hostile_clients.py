"""What a hostile client costs; `make attacks` stages the same beside forks."""

from __future__ import annotations

import asyncio
import contextlib
from unittest import mock

import pytest
from aiohttp import web_protocol
from aiohttp._websocket import reader

from audiofork.doors.http.connections import SAID, Connection, Server
from audiofork.rate_limit import Allowance
from tests.doors.http.stage import CONTROLLER, FORK_ID, LISTENER, Stage, request
from tests.relay.peers import until

HANDSHAKE = request(
    "GET",
    f"/api/v1/forks/{FORK_ID}/listen",
    LISTENER,
    Upgrade="websocket",
    Connection="Upgrade",
    Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
    Sec_WebSocket_Version="13",
)


def frame(head: int, payload: bytes = b"") -> bytes:
    """Return a frame as clients send it; its mask is 0."""
    return bytes([head, 0x80 | len(payload)]) + bytes(4) + payload


PING, PONG, CONTINUATION = frame(0x89), frame(0x8A), frame(0x00)
MANY = SAID.at_once // len(PING)


async def test_reads_after_a_request_that_is_no_http_are_dropped() -> None:
    """In one turn of the loop, before the first is answered, many may come: 8 MB with uvloop."""
    connection: Connection = Server(mock.AsyncMock())()
    transport = mock.Mock(asyncio.Transport)
    transport.is_closing.return_value = False
    connection.connection_made(transport)
    connection.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
    transport.pause_reading.assert_not_called()
    for _ in range(32):
        connection.data_received(b"x" * 65_536)
    ((error, _),) = connection._messages
    assert isinstance(error, web_protocol._ErrInfo)
    assert (error.status, len(str(error.exc)) < 100, error.exc.__traceback__) == (400, True, None)
    transport.pause_reading.assert_called_once_with()
    connection.connection_lost(None)


async def test_head_that_does_not_end_is_refused_and_others_are_answered(stage: Stage) -> None:
    async with stage.client() as hostile:
        hostile.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000)
        answer = await hostile.ended()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert (await stage.get("/api/v1/forks")).status == 200


async def test_body_of_a_request_that_is_refused_is_not_read(stage: Stage) -> None:
    """Neither what is sent after the answer, nor for the sake of the connection."""
    async with stage.client() as hostile:
        head = b"POST /api/v1/forks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n"
        answer = await hostile.raw(head + b"Content-Type: application/json\r\n\r\n[")
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while True:
                try:
                    async with asyncio.timeout(0.2):
                        hostile.writer.write(b"[" * 65_536)
                        await hostile.writer.drain()
                except TimeoutError:
                    break  # the kernels hold all that they may
                sent += 65_536
        assert sent < 16 << 20
        assert await hostile.ended() == b""


async def test_body_that_comes_after_its_head_is_read_and_the_connection_stays(
    stage: Stage,
) -> None:
    body = b'{"uniqueid": "1.1", "url": "ws://localhost/"}'
    whole = request("POST", "/api/v1/forks", CONTROLLER, body)
    async with stage.client() as client:
        client.writer.write(whole[: -len(body)])
        await client.writer.drain()
        assert (await client.raw(body)).status == 201
        assert (await client.raw(request("GET", "/healthz"))).status == 200


# --- WebSockets ----------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each look at the frames of a client had to go through."""
    sizes: list[int] = []
    real = web_protocol.RequestHandler.data_received

    def data_received(connection: web_protocol.RequestHandler, data: bytes) -> None:
        if connection._upgraded:
            sizes.append(len(data))
        real(connection, data)

    monkeypatch.setattr(web_protocol.RequestHandler, "data_received", data_received)
    return sizes


@pytest.mark.parametrize("flood", [PING, PONG, CONTINUATION], ids=["ping", "pong", "continuation"])
async def test_flood_of_frames_is_not_looked_at_and_its_connection_is_closed(
    stage: Stage, flood: bytes, parsed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with stage.client() as hostile:
        assert (await hostile.raw(HANDSHAKE)).status == 101
        hostile.writer.write(flood * 10_000)
        assert len(await hostile.ended()) < 1000
    await until(lambda: stage.others.listeners == [])
    assert sum(parsed) <= SAID.at_once
    assert caplog.text.count("HTTP clients dropped: 1 more, last: 127.0.0.1: it says too") == 1
    assert "Traceback" not in caplog.text


async def test_flood_of_frames_in_small_reads_is_no_way_around(
    stage: Stage, parsed: list[int]
) -> None:
    async with stage.client() as hostile:
        assert (await hostile.raw(HANDSHAKE)).status == 101
        with contextlib.suppress(ConnectionError):
            for _ in range(10 * MANY):
                hostile.writer.write(PING)
                await hostile.writer.drain()
                await asyncio.sleep(0)
        await hostile.ended()
    await until(lambda: stage.others.listeners == [])
    assert sum(parsed) < 2 * SAID.at_once


async def test_flood_of_frames_behind_the_handshake_is_not_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = mock.Mock()
    monkeypatch.setattr(web_protocol.RequestHandler, "set_parser", fed)
    async with stage.client() as hostile:
        hostile.writer.write(HANDSHAKE + PING * 5_000)
        await hostile.ended()
    await until(lambda: stage.others.listeners == [])
    for call in fed.call_args_list:
        assert isinstance(call.args[0], reader.WebSocketReader)
    assert stage.door._server is not None
    assert not stage.door._server._address_of


async def test_pings_at_a_low_rate_are_answered(stage: Stage) -> None:
    async with stage.client() as client:
        assert (await client.raw(HANDSHAKE)).status == 101
        client.writer.write(frame(0x89, b"p" * 125) * 3)
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(3 * 127) == (b"\x8a\x7d" + b"p" * 125) * 3


async def test_what_a_client_may_say_comes_back_with_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection: Connection = Server(mock.AsyncMock())()
    now = 1000.0
    monkeypatch.setattr(connection, "_said", Allowance(SAID, lambda: now))
    assert connection._may_say(SAID.at_once)
    now += 1
    assert connection._may_say(100)
    assert not connection._may_say(100)
    connection._is_refused = False
    now += 3600
    assert not connection._may_say(SAID.at_once + 1)


async def test_flood_of_other_requests_that_could_not_be_handled_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection: Connection = Server(mock.AsyncMock())()
    request = mock.Mock()
    request.writer.output_size = 0
    for _ in range(5):
        assert connection.handle_error(request, 500, ZeroDivisionError()).status == 500
    assert caplog.text.count("Traceback") + caplog.text.count("ZeroDivisionError") <= 2
    assert len(caplog.records) == 1
