"""What a hostile client costs; `make attacks` stages the same beside forks."""

from __future__ import annotations

import asyncio
import contextlib
from unittest import mock

from aiohttp import web_protocol

from audiofork.doors.http.connections import Connection, Server
from tests.doors.http.stage import CONTROLLER, Stage, request


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
