import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from testbed.proxy import Proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that gives back what it gets, with its own name in front."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.errors: list[Exception] = []
        self.ended = asyncio.Event()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self.name)
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except OSError as exc:
            self.errors.append(exc)
        writer.close()
        self.ended.set()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    server = Echo(b"a")
    yield server, await server.start()
    server.close()


@pytest.fixture
async def proxy(echo: tuple[Echo, int]) -> AsyncIterator[Proxy]:
    async with Proxy(("127.0.0.1", echo[1])) as one:
        yield one


@contextlib.asynccontextmanager
async def connect(proxy: Proxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(5):
        return await reader.readexactly(count)


async def is_silent(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.1):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_megabytes_pass_in_both_directions_unharmed(proxy: Proxy) -> None:
    sent = bytes(range(256)) * 16384
    async with connect(proxy) as (reader, writer):
        writer.write(sent)
        assert await read(reader, 1 + len(sent)) == b"a" + sent


async def test_end_of_stream_passes_and_what_was_sent_before_it_arrives(
    echo: tuple[Echo, int], proxy: Proxy
) -> None:
    async with connect(proxy) as (reader, writer):
        writer.write(b"xyz")
        writer.write_eof()
        async with asyncio.timeout(5):
            assert await reader.read() == b"axyz"
            await echo[0].ended.wait()
    assert echo[0].errors == []


async def test_stalled_nothing_passes_and_resumed_nothing_is_lost(proxy: Proxy) -> None:
    async with connect(proxy) as (reader, writer):
        assert await read(reader, 1) == b"a"
        proxy.stall()
        writer.write(b"held")
        assert await is_silent(reader)
        async with connect(proxy) as (newer, _):
            assert await is_silent(newer)
            assert proxy.connections == 2
            proxy.resume()
            assert await read(newer, 1) == b"a"
        assert await read(reader, 4) == b"held"


async def test_cut_resets_both_sides_and_new_connections_work(
    echo: tuple[Echo, int], proxy: Proxy
) -> None:
    async with connect(proxy) as (reader, _):
        await read(reader, 1)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await read(reader, 1)
        async with asyncio.timeout(5):
            await echo[0].ended.wait()
        assert [type(exc) for exc in echo[0].errors] == [ConnectionResetError]
    async with connect(proxy) as (reader, _):
        await read(reader, 1)


async def test_cut_while_stalled_resets_connections_that_had_no_answer_yet(proxy: Proxy) -> None:
    proxy.stall()
    async with connect(proxy) as (reader, _):
        assert await is_silent(reader)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await read(reader, 1)


async def test_refusing_keeps_live_connections_and_the_port_until_it_accepts_again(
    proxy: Proxy,
) -> None:
    async with connect(proxy) as (reader, writer):
        await read(reader, 1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", proxy.port))
        writer.write(b"on")
        assert await read(reader, 2) == b"on"
        proxy.accept()
        async with connect(proxy) as (newer, _):
            assert await read(newer, 1) == b"a"


async def test_retargeted_new_connections_reach_the_other_server(proxy: Proxy) -> None:
    other = Echo(b"b")
    async with connect(proxy) as (reader, writer):
        await read(reader, 1)
        proxy.retarget(await other.start())
        async with connect(proxy) as (newer, _):
            assert await read(newer, 1) == b"b"
        writer.write(b"old")
        assert await read(reader, 3) == b"old"
    other.close()


async def test_server_that_refuses_resets_the_client(proxy: Proxy) -> None:
    async with Proxy(("127.0.0.1", 0)) as refusing:
        refusing.refuse()
        proxy.retarget(refusing.port)
        async with connect(proxy) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await read(reader, 1)


async def test_url_names_the_proxy_s_port(proxy: Proxy) -> None:
    assert proxy.ws_url("/x") == f"ws://127.0.0.1:{proxy.port}/x"
