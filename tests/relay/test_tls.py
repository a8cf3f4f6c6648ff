"""TLS over a socket of its own, with real TLS at both ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from types import BuiltinMethodType
from typing import cast

import pytest

from audiofork.rate_limit import Allowance, Limit
from audiofork.relay import tls as tls_module
from audiofork.relay.client_tls import client_tls
from audiofork.relay.latencies import Latencies
from audiofork.relay.tls import RECORD_PAYLOAD_BYTES, Records, TlsTransport, open_tls
from audiofork.relay.unacked import Unacked
from audiofork.tls_contexts import client_context
from testbed.openssl import ask_for_another_handshake, ask_for_another_key
from tests.relay.peers import until
from tests.relay.transports import MUCH, Protocol, connected_pair, read, reset

pytestmark = pytest.mark.usefixtures("nothing_left")


class Peer:
    """The server's end.

    Attributes:
        tls: Blocks; to be used in a thread.
    """

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls

    async def read(self, count: int) -> bytes:
        return await asyncio.to_thread(read, self.tls, count)

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.tls.sendall, data)

    async def say_goodbye(self) -> None:
        """Send the alert that ends TLS, and wait for the other's."""
        (await asyncio.to_thread(self.tls.unwrap)).close()

    def vanish(self) -> None:
        """End TCP without a word of TLS."""
        self.tls.close()

    def reset(self) -> None:
        reset(self.tls)

    def send_plain(self, data: bytes) -> None:
        """Send past TLS."""
        socket.socket.send(self.tls, data)


class Stage:
    """A transport, its protocol and its peer."""

    def __init__(self, transport: TlsTransport, protocol: Protocol, peer: Peer) -> None:
        self.transport = transport
        self.fd: int = transport.get_extra_info("socket").fileno()
        self.protocol = protocol
        self.peer = peer

    async def lost(self) -> Exception | None:
        """Wait for the end; return what it was for."""
        await until(lambda: self.protocol.lost)
        (exc,) = self.protocol.lost
        return exc


@contextlib.asynccontextmanager
async def connected(
    server: ssl.SSLContext, ca_file: Path, client: ssl.SSLContext | None = None
) -> AsyncIterator[Stage]:
    near, far = connected_pair()
    shaking = asyncio.to_thread(server.wrap_socket, far, server_side=True)
    protocol = Protocol()
    opening = open_tls(near, client or client_tls(str(ca_file)), "localhost", protocol)
    tls, transport = await asyncio.gather(shaking, opening)
    yield Stage(transport, protocol, Peer(tls))
    transport.abort()
    await until(lambda: protocol.lost)
    tls.close()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def stage(
    tls: ssl.SSLContext, ca_file: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Stage]:
    before = tls.maximum_version
    tls.maximum_version = request.param
    try:
        async with connected(tls, ca_file) as one:
            yield one
    finally:
        tls.maximum_version = before


# --- Writing -------------------------------------------------------------------------------------


async def test_writes_arrive_whole_and_in_order(stage: Stage) -> None:
    for part in (b"a", b"bc", b"def"):
        stage.transport.write(part)
    assert await stage.peer.read(6) == b"abcdef"
    assert stage.transport.get_write_buffer_size() == 0


async def test_what_the_kernel_does_not_take_waits_and_goes_when_the_peer_reads(
    stage: Stage,
) -> None:
    stage.transport.write(MUCH)
    stage.transport.write(b"and more")
    assert stage.transport.get_write_buffer_size() > 0
    assert await stage.peer.read(len(MUCH) + 8) == MUCH + b"and more"
    await until(lambda: stage.transport.get_write_buffer_size() == 0)
    assert stage.transport._events == select.EPOLLIN  # else it would be called for ever
    stage.transport.write(b"at once")
    assert await stage.peer.read(7) == b"at once"


async def test_protocol_pauses_above_the_high_limit_and_resumes_at_the_low_one(
    stage: Stage,
) -> None:
    transport, protocol, sizes = stage.transport, stage.protocol, list[int]()
    protocol.on_resume = lambda: sizes.append(transport.get_write_buffer_size())
    transport.set_write_buffer_limits(high=1000, low=100)
    assert transport.get_write_buffer_limits() == (100, 1000)
    transport.write(MUCH)
    assert protocol.calls == ["made", "pause"]
    for size in (500, 50):
        transport.write(bytes(size))
    assert await stage.peer.read(len(MUCH) + 550) == MUCH + bytes(550)
    await until(lambda: sizes)
    assert protocol.calls == ["made", "pause", "resume"]
    assert 50 < sizes[0] <= 100


async def test_protocol_may_write_while_it_is_told_to_resume(stage: Stage) -> None:
    stage.protocol.on_resume = lambda: stage.transport.write(b"last")
    stage.transport.write(MUCH)
    assert await stage.peer.read(len(MUCH) + 4) == MUCH + b"last"
    assert stage.transport.get_write_buffer_size() == 0


@pytest.mark.parametrize(
    ("high", "low", "limits"),
    [(None, None, (16_384, 65_536)), (4000, None, (1000, 4000)), (None, 100, (100, 400))],
)
async def test_limits_follow_from_each_other(
    stage: Stage, high: int | None, low: int | None, limits: tuple[int, int]
) -> None:
    stage.transport.set_write_buffer_limits(high, low)
    assert stage.transport.get_write_buffer_limits() == limits


async def test_nothing_is_written_of_nothing(stage: Stage) -> None:
    stage.transport.write(b"")
    stage.transport.write(b"x")
    assert await stage.peer.read(1) == b"x"
    assert not stage.transport.can_write_eof()


# --- Reading -------------------------------------------------------------------------------------


async def test_many_records_arrive_in_order(stage: Stage) -> None:
    sent = MUCH[: 33 * RECORD_PAYLOAD_BYTES + 1]
    await stage.peer.send(sent)
    await until(lambda: len(stage.protocol.received) == len(sent))
    assert stage.protocol.received == sent


async def test_nothing_is_read_while_paused_and_what_has_come_follows(stage: Stage) -> None:
    stage.protocol.on_data = stage.transport.pause_reading
    sent = b"a" * RECORD_PAYLOAD_BYTES + b"b" * RECORD_PAYLOAD_BYTES
    await stage.peer.send(sent)
    await until(lambda: stage.protocol.received)
    await asyncio.sleep(0.01)
    assert stage.protocol.received == sent[:RECORD_PAYLOAD_BYTES]
    assert not stage.transport._events
    stage.transport.resume_reading()
    await until(lambda: stage.protocol.received == sent)


async def test_peer_is_read_while_it_does_not_read(stage: Stage) -> None:
    stage.transport.write(MUCH)
    await stage.peer.send(b"pong")
    await until(lambda: stage.protocol.received == b"pong")


# --- What OpenSSL does of its own ----------------------------------------------------------------


def extras_of(stage: Stage) -> list[int]:
    """Return the list to which what is told of OpenSSL's own bytes is going to be added."""
    extras: list[int] = []
    stage.transport.get_extra_info("tls_records").on_extra = extras.append
    stage.transport.write(b"first")
    return extras


def on_wire(stage: Stage) -> int:
    """Return how many bytes the kernel has been given, over the connection's life."""
    records = stage.transport.get_extra_info("tls_records")
    told = records.on_extra
    unacked = Unacked(cast(asyncio.Transport, stage.transport), 320, Latencies())
    unacked.close()
    records.on_extra = told
    return unacked._before


async def test_each_byte_on_the_wire_is_told_whatever_keys_the_peer_asks_for(
    stage: Stage,
) -> None:
    extras = extras_of(stage)
    record_bytes = stage.transport.get_extra_info("tls_records").record_bytes
    before = on_wire(stage)
    for count in range(20):
        if stage.peer.tls.version() == "TLSv1.3":
            for _ in range(count % 4):
                await asyncio.to_thread(ask_for_another_key, stage.peer.tls)
            await stage.peer.send(b"x" if count % 2 else b"")
            await asyncio.sleep(0.01)
        stage.transport.write(bytes(328))
    assert on_wire(stage) - before == 20 * (328 + record_bytes) + sum(extras)
    assert await stage.peer.read(5 + 20 * 328) == b"first" + bytes(20 * 328)
    if stage.peer.tls.version() == "TLSv1.3":
        assert extras
        assert all(extra % 27 == 0 for extra in extras)


@pytest.mark.parametrize("stage", [ssl.TLSVersion.TLSv1_2], indirect=True, ids=["1.2"])
async def test_peer_that_asks_for_another_handshake_is_told_no_and_nothing_spins(
    stage: Stage,
) -> None:
    extras = extras_of(stage)
    before = on_wire(stage)
    assert await stage.peer.read(5) == b"first"
    await asyncio.to_thread(ask_for_another_handshake, stage.peer.tls)
    await until(lambda: extras)
    stage.transport.write(bytes(328))
    began_s = time.thread_time()
    await asyncio.sleep(0.2)
    assert time.thread_time() - began_s < 0.1
    assert stage.transport._events == select.EPOLLIN
    record_bytes = stage.transport.get_extra_info("tls_records").record_bytes
    assert on_wire(stage) - before == 328 + record_bytes + sum(extras)
    assert not stage.protocol.lost


async def test_handshake_in_the_midst_ends_the_connection_and_nothing_spins(
    tls: ssl.SSLContext, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No context of ours allows it; a write that OpenSSL does not take must not be tried for ever.

    The peer asks for another handshake and then does not take part in it.
    """
    allowing = client_context(str(ca_file))
    allowing.options &= ~ssl.OP_NO_RENEGOTIATION
    allowing.maximum_version = ssl.TLSVersion.TLSv1_2
    async with connected(tls, ca_file, allowing) as stage:
        stage.transport.write(b"first")
        await asyncio.to_thread(ask_for_another_handshake, stage.peer.tls)
        await asyncio.sleep(0.05)
        stage.transport.write(b"second")
        assert isinstance(await stage.lost(), ssl.SSLError)


@pytest.mark.parametrize("stage", [ssl.TLSVersion.TLSv1_3], indirect=True, ids=["1.3"])
async def test_peer_that_asks_for_keys_without_end_is_told_to_be_costly(stage: Stage) -> None:
    costly = asyncio.Event()
    records = stage.transport.get_extra_info("tls_records")
    records.on_costly = costly.set
    # What a thread of ours can ask for is less than what is allowed.
    records._work_ms = Allowance(Limit("ms", 1, 5), time.monotonic)
    stop = threading.Event()

    def flood() -> None:
        with contextlib.suppress(AssertionError):
            while not stop.is_set():
                ask_for_another_key(stage.peer.tls)

    stage.peer.tls.settimeout(1)
    flooding = asyncio.create_task(asyncio.to_thread(flood))
    try:
        await asyncio.wait_for(costly.wait(), 20)
    finally:
        stop.set()
        await flooding


async def test_peer_that_reads_no_answers_of_openssl_is_told_to_be_costly(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here OpenSSL has a kilobyte to say each time that something comes."""
    costly: list[int] = []
    records, transport = stage.transport.get_extra_info("tls_records"), stage.transport
    records.on_costly = lambda: costly.append(transport.get_write_buffer_size())
    transport.set_write_buffer_limits(high=1000)
    transport.write(MUCH)
    before = transport.get_write_buffer_size()
    monkeypatch.setattr(tls_module, "MOST_ANSWERS_BYTES", before)
    monkeypatch.setattr(records, "take", lambda: bytes(1000))
    while not costly:
        kept = transport.get_write_buffer_size()
        await stage.peer.send(b"x")
        await until(lambda: transport.get_write_buffer_size() > kept)  # noqa: B023
        assert transport.get_write_buffer_size() < before + 10_000
    assert costly[0] > before + 1000


# --- The end -------------------------------------------------------------------------------------


async def test_close_sends_what_waits_and_tells_the_peer(stage: Stage) -> None:
    stage.transport.write(MUCH)
    stage.transport.close()
    assert stage.transport.is_closing()
    stage.transport.write(b"too late")
    stage.transport.close()
    assert await stage.peer.read(len(MUCH) + 1) == MUCH
    # The peer has read to the end: it would raise at a TCP that ends without an alert.
    assert await stage.lost() is None


async def test_close_with_nothing_waiting_ends_at_once(stage: Stage) -> None:
    stage.transport.close()
    assert not stage.protocol.lost  # never from within a call
    assert await stage.lost() is None
    assert await stage.peer.read(1) == b""


async def test_abort_drops_what_waits(stage: Stage) -> None:
    stage.transport.write(MUCH)
    stage.transport.abort()
    assert stage.transport.get_write_buffer_size() == 0
    assert await stage.lost() is None
    stage.transport.write(b"x")
    stage.transport.resume_reading()
    stage.transport.abort()
    await asyncio.sleep(0)
    assert stage.protocol.lost == [None]


@pytest.mark.parametrize("waits", [False, True], ids=["nothing waits", "much waits"])
async def test_goodbye_of_the_peer_ends_the_connection(stage: Stage, waits: bool) -> None:
    if waits:
        stage.transport.write(MUCH)
        stage.peer.tls.setblocking(False)
        with contextlib.suppress(ssl.SSLError):
            stage.peer.tls.unwrap()
    else:
        await stage.peer.say_goodbye()
    assert await stage.lost() is None
    assert stage.protocol.calls[-1] == "eof"


async def test_end_of_tcp_without_a_goodbye_ends_the_connection(stage: Stage) -> None:
    stage.peer.vanish()
    assert await stage.lost() is None
    assert stage.protocol.calls == ["made", "eof"]


async def test_reset_by_the_peer_ends_the_connection(stage: Stage) -> None:
    """OpenSSL takes it for an end without a goodbye, sometimes."""
    stage.peer.reset()
    assert isinstance(await stage.lost(), ConnectionResetError | None)


async def test_write_after_a_reset_is_told_as_the_reason_and_not_raised(stage: Stage) -> None:
    stage.transport.pause_reading()
    stage.peer.reset()
    await asyncio.sleep(0.01)
    for _ in range(3):
        stage.transport.write(b"x")
    assert isinstance(await stage.lost(), OSError)


async def test_reset_while_much_waits_is_told_once(stage: Stage) -> None:
    stage.transport.pause_reading()
    stage.transport.write(MUCH)
    stage.peer.reset()
    assert isinstance(await stage.lost(), OSError)
    assert stage.transport.get_write_buffer_size() == 0


async def test_bytes_that_are_no_tls_end_the_connection(stage: Stage) -> None:
    stage.peer.send_plain(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert isinstance(await stage.lost(), ssl.SSLError)


async def test_protocol_may_close_while_it_is_given_data(stage: Stage) -> None:
    stage.protocol.on_data = stage.transport.abort
    await stage.peer.send(b"a" * RECORD_PAYLOAD_BYTES + b"b")
    assert await stage.lost() is None
    assert stage.protocol.received == b"a" * RECORD_PAYLOAD_BYTES


async def test_call_after_the_end_touches_no_other_connection(stage: Stage) -> None:
    """Which may have the number that the descriptor had."""
    stage.transport.abort()
    await stage.lost()
    near, far = connected_pair()
    if far.fileno() == stage.fd:
        near, far = far, near
    elif near.fileno() != stage.fd:
        os.dup2(near.fileno(), stage.fd)
        near.close()
        near = socket.socket(fileno=stage.fd)
    with near, far:
        readable, writable = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(stage.fd, readable.set)
        loop.add_writer(stage.fd, writable.set)
        stage.transport.abort()
        stage.transport.close()
        stage.transport.pause_reading()
        stage.transport.resume_reading()
        stage.transport.write(b"x")
        far.send(b"x")
        await until(lambda: readable.is_set() and writable.is_set())
        loop.remove_reader(stage.fd)
        loop.remove_writer(stage.fd)


async def test_transport_is_freed_when_it_is_over(tls: ssl.SSLContext, ca_file: Path) -> None:
    """At once, and not when the garbage collector comes: it holds tens of kilobytes."""
    near, far = connected_pair()
    shaking = asyncio.to_thread(tls.wrap_socket, far, server_side=True)
    protocol = Protocol()
    opening = open_tls(near, client_tls(str(ca_file)), "localhost", protocol)
    peer, transport = await asyncio.gather(shaking, opening)
    del opening
    freed: list[bool] = []
    weakref.finalize(transport.get_extra_info("ssl_object"), freed.append, True)
    gc.disable()
    try:
        transport.abort()
        lost = protocol.lost
        del transport, protocol
        await until(lambda: lost)
        await asyncio.sleep(0)
        assert freed
    finally:
        gc.enable()
        peer.close()


async def test_transport_tells_of_its_socket(stage: Stage) -> None:
    assert stage.transport.get_extra_info("peername") == stage.peer.tls.getsockname()
    assert stage.transport.get_extra_info("sockname") == stage.peer.tls.getpeername()
    assert stage.transport.get_extra_info("ssl_object").version() == stage.peer.tls.version()


# --- The handshake -------------------------------------------------------------------------------


async def test_encryption_makes_no_detour_through_a_method_of_python(ca_file: Path) -> None:
    assert isinstance(Records(client_tls(str(ca_file)), "localhost")._encrypt, BuiltinMethodType)


async def test_handshake_that_is_cancelled_closes_the_socket(ca_file: Path) -> None:
    near, far = connected_pair()
    fd = near.fileno()
    with far:
        opening = asyncio.create_task(
            open_tls(near, client_tls(str(ca_file)), "localhost", Protocol())
        )
        hello = await asyncio.to_thread(far.recv, 1)
        assert hello == b"\x16"
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not asyncio.get_running_loop().remove_reader(fd)
        far.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while far.recv(4096):
                pass


async def test_protocol_that_fails_to_begin_is_told_of_the_loss(
    tls: ssl.SSLContext, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the event loop watches the socket no more: uvloop would abort the process."""
    near, far = connected_pair()
    shaking = asyncio.to_thread(tls.wrap_socket, far, server_side=True)
    protocol = Protocol()
    monkeypatch.setattr(protocol, "connection_made", lambda transport: 1 / 0)
    opening = open_tls(near, client_tls(str(ca_file)), "localhost", protocol)
    peer, error = await asyncio.gather(shaking, opening, return_exceptions=True)
    assert isinstance(error, ZeroDivisionError)
    await until(lambda: protocol.lost)
    assert isinstance(peer, ssl.SSLSocket)
    peer.close()


async def test_handshake_that_fails_closes_the_socket(tls: ssl.SSLContext) -> None:
    near, far = connected_pair()
    refused = asyncio.to_thread(tls.wrap_socket, far, server_side=True)
    opening = open_tls(near, ssl.create_default_context(), "localhost", Protocol())
    results = await asyncio.gather(refused, opening, return_exceptions=True)
    assert isinstance(results[0], OSError)
    assert isinstance(results[1], ssl.SSLCertVerificationError)
    far.close()


async def test_host_without_a_name_closes_the_socket(ca_file: Path) -> None:
    near, far = connected_pair()
    with far, pytest.raises(ValueError, match="server_hostname"):
        await open_tls(near, client_tls(str(ca_file)), "", Protocol())
    assert near.fileno() == -1
