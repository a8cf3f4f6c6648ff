"""Connections: how many, from where, how slow, and what is no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from audiofork.addresses import listen_tcp
from audiofork.doors.http import connections
from tests.doors.http.stage import VIEWER, Others, Stage, request, staged
from tests.relay.peers import until

HEALTH = request("GET", "/healthz")


@contextlib.asynccontextmanager
async def open_many(stage: Stage, count: int) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(stage.client())
        yield


async def is_served(stage: Stage) -> bool:
    async with stage.client() as client:
        client.writer.write(HEALTH)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            return (await client.answer()).status == 200
    return False


async def test_connections_are_bounded_and_the_rest_is_turned_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    async with open_many(stage, 5):
        await until(lambda: stage.door._server is not None and stage.door._server.open == 5)
        assert not await is_served(stage)
        assert "HTTP connections refused: 1 more, last: from 127.0.0.1, 5 are" in caplog.text
    await until(lambda: stage.door._server is not None and stage.door._server.open == 0)
    assert await is_served(stage)


async def test_connections_of_one_address_are_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "MAX_OF_ADDRESS", 3)
    async with open_many(stage, 3):
        await until(lambda: stage.door._server is not None and stage.door._server.open == 3)
        assert not await is_served(stage)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", stage.port, local_addr=("127.0.0.2", 0)
        )
        writer.write(HEALTH)
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert "HTTP connections refused: 1 more, last: 3 are open from 127.0.0.1" in caplog.text


async def test_flood_of_connections_is_one_line_a_second_and_leaves_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    server = stage.door._server
    assert server is not None
    async with open_many(stage, 300):
        assert server.open <= 10
    await until(lambda: server.open == 0)
    assert caplog.text.count("HTTP connections refused") <= 3
    assert await is_served(stage)
    await until(lambda: server._address_of == {})


async def test_client_that_says_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.1)
    async with staged(tmp_path) as stage, stage.client() as client:
        assert await client.ended() == b""


async def test_client_whose_headers_trickle_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.2)
    async with staged(tmp_path) as stage, stage.client() as client:
        client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")

        async def trickle() -> None:
            while True:
                client.writer.write(b"X: y\r\n")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        assert await client.ended() == b""
        trickling.cancel()


async def test_answer_that_nobody_reads_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.1)
    others = Others()
    others.views = others.views * 1000
    async with staged(tmp_path, others) as stage, stage.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            client.writer.write(request("GET", "/api/v1/forks?limit=1000", VIEWER))
        await until(lambda: "HTTP clients dropped" in caplog.text, 20)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n Folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100 + b"\r\n",
    ],
)
async def test_what_is_no_http_is_a_problem_and_nothing_of_it_is_repeated(
    stage: Stage, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage.client() as client:
        answer = await client.raw(data)
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["detail"] == "the request is not valid HTTP"
        await client.ended()
    assert caplog.text == ""
    assert await is_served(stage)


async def test_requests_may_follow_one_another_without_waiting(stage: Stage) -> None:
    async with stage.client() as client:
        client.writer.write(HEALTH * 20)
        for _ in range(20):
            assert (await client.answer()).body == b"ok\n"


async def test_tls_handshake_that_does_not_come_is_given_up_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "TLS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    pem = tmp_path / "cert.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    async with staged(tmp_path, cert_file=str(pem)) as stage:
        server = stage.door._server
        assert server is not None
        async with stage.client() as first, stage.client() as second:
            await until(lambda: server.open == 2)
            async with stage.client() as third:
                assert await third.ended() == b""
            assert await first.ended() == b""
            assert await second.ended() == b""
        await until(lambda: server.open == 0)


async def test_no_more_files_is_no_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    accept, fails = loop.sock_accept, [errno.EMFILE, errno.ECONNABORTED]

    async def accept_or_fail(listening: socket.socket) -> tuple[socket.socket, object]:
        if fails:
            raise OSError(fails.pop(0), "no")
        return await accept(listening)

    monkeypatch.setattr(loop, "sock_accept", accept_or_fail)
    assert await is_served(stage)  # by the accept that waits already
    assert await is_served(stage)
    assert fails == []
    assert "HTTP connections refused: 1 more, last: no more files may be opened" in caplog.text


async def test_name_with_several_addresses_is_listened_at_all_of_them() -> None:
    sockets = listen_tcp("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        assert "127.0.0.1" in {one.getsockname()[0] for one in sockets}
    finally:
        for one in sockets:
            one.close()
