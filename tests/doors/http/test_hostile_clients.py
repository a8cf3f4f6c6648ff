"""What a hostile client costs; `make attacks` stages the same beside forks."""

from __future__ import annotations

import asyncio
from unittest import mock

from audiofork.doors.http.connections import Connection, Server
from tests.doors.http.stage import Stage


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
    assert len(connection._messages) == 1
    transport.pause_reading.assert_called_once_with()
    connection.connection_lost(None)


async def test_head_that_does_not_end_is_refused_and_others_are_answered(stage: Stage) -> None:
    async with stage.client() as hostile:
        hostile.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000)
        answer = await hostile.ended()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert (await stage.get("/api/v1/forks")).status == 200
