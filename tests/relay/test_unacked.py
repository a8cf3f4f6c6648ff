"""What a connection that breaks has held comes back, to the frame."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from audiofork.errors import SinkLost
from audiofork.relay.client_tls import client_tls
from testbed.openssl import ask_for_another_key
from tests.relay.conftest import server_tls
from tests.relay.peers import FickleServer, HoldingProxy, StalledServer, number, numbered, until
from tests.relay.sinks import Start, Waits, all_acknowledged, failure, offer, opened

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize(
    ("frame_on_wire", "version", "ciphers"),
    [
        (8 + 320, None, ""),
        (8 + 320 + 22, ssl.TLSVersion.TLSv1_3, ""),
        (8 + 320 + 29, ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM"),
        (8 + 320 + 77, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-SHA384"),
    ],
    ids=["plain", "1.3", "1.2 with GCM", "1.2 with CBC"],
)
async def test_frames_of_a_broken_connection_that_were_not_acknowledged_wait_again(
    ca: trustme.CA,
    system_tls: ssl.SSLContext,
    start: Start,
    waits: Waits,
    frame_on_wire: int,
    version: ssl.TLSVersion | None,
    ciphers: str,
) -> None:
    """Of TLS 1.3 with a server that asks for another key with each frame."""
    tls = None
    if version is not None:
        tls = server_tls(ca.issue_cert("localhost"))
        tls.maximum_version = version
        if ciphers:
            tls.set_ciphers(ciphers)
    async with FickleServer(tls) as server, HoldingProxy(server.port) as proxy:
        trusting = ssl.create_default_context()
        ca.configure_trust(trusting)
        url = f"wss://localhost:{proxy.port}/" if tls else f"ws://127.0.0.1:{proxy.port}/"
        sink, task = start(url, trusting if tls else system_tls)
        await opened(sink)
        for count in range(50):
            if version is ssl.TLSVersion.TLSv1_3:
                await ask_for_key(server)
            offer(sink, numbered(1, count), before=count)
        await until(lambda: len(server.frames) == 50 and all_acknowledged(sink))
        await proxy.hold()
        count = 50
        while not sink.backlog:
            offer(sink, numbered(1, count), before=count)
            count += 1
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)  # for the last acknowledgement, which may be delayed by 40 ms
        taken = proxy.held_bytes() // frame_on_wire
        proxy.break_off()
        assert isinstance(await failure(task), SinkLost)
        assert sink.frames_sent == 50 + taken < count - 1
        assert len(sink.backlog) == count - 50 - taken
        waiting = [number(sink.backlog.take()) for _ in range(len(sink.backlog))]
        assert waiting == list(range(50 + taken, count))


async def ask_for_key(server: FickleServer) -> None:
    await until(lambda: server.connection)
    assert server.connection is not None
    ask_for_another_key(server.connection.transport.get_extra_info("ssl_object"))
    await (await server.connection.ping())  # takes it along


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_server_that_stalls_again_and_again_gets_each_frame_once_in_order(
    tls: ssl.SSLContext, ca_file: Path, start: Start, secure: bool
) -> None:
    async with FickleServer(tls if secure else None) as server:
        sink, _ = start(server.url, client_tls(str(ca_file)), backlog=30, latency_budget=5)
        await opened(sink)
        await until(lambda: server.connection)
        count = 0
        for _ in range(5):
            server.stop_reading()
            while not sink.backlog:  # the kernel and the transport are full
                offer(sink, numbered(1, count), before=count)
                count += 1
            offer(sink, numbered(20, count), before=count)
            count += 20
            server.read_on()
            await until(lambda: len(server.frames) == count)  # noqa: B023
        assert server.frames == numbered(count)
        assert (sink.frames_sent, sink.backlog.dropped) == (count, 0)


async def test_message_of_several_tls_records_is_acknowledged_when_its_last_byte_is(
    tls: ssl.SSLContext, ca_file: Path, start: Start
) -> None:
    async with FickleServer(tls) as server:
        wishes = {"frame_ms": 1000, "frame_bytes": 1280}
        sink, _ = start(server.url, client_tls(str(ca_file)), **wishes)
        await opened(sink)
        offer(sink, numbered(250, 0, 1280))
        await until(lambda: len(server.frames) == 5 and all_acknowledged(sink))
        unacked = sink._outlet._unacked
        assert unacked is not None
        acked = unacked._acked()
        assert acked is not None
        assert unacked._position == acked > 5 * 64_000


@pytest.mark.parametrize("frame_bytes", [100, 125, 126, 65_535, 65_536, 192_000])
async def test_message_with_a_header_of_any_length_is_acknowledged_when_its_last_byte_is(
    fickle: FickleServer, start: Start, frame_bytes: int
) -> None:
    sink, _ = start(fickle.url, frame_bytes=frame_bytes)
    await opened(sink)
    offer(sink, [bytes(frame_bytes)] * 7)
    await until(lambda: len(fickle.frames) == 7 and all_acknowledged(sink))
    unacked = sink._outlet._unacked
    assert unacked is not None
    assert unacked._position == unacked._acked()


@pytest.mark.parametrize("frame_bytes", [20, 320, 640, 1280])
async def test_messages_of_a_broken_connection_wait_again_frame_by_frame(
    stalled: StalledServer, start: Start, frame_bytes: int
) -> None:
    sink, task = start(stalled.url, frame_ms=100, latency_budget=1, frame_bytes=frame_bytes)
    await opened(sink)
    count = 0
    while sink._outlet._takes:
        offer(sink, numbered(1, count, frame_bytes), before=count)
        count += 1
        await asyncio.sleep(0)
    stalled.transport.abort()
    await failure(task)
    waiting = [number(sink.backlog.take()) for _ in range(len(sink.backlog))]
    assert waiting == list(range(sink.frames_sent, count))
    assert len(waiting) > 0
