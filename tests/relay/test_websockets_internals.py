"""All that the project relies on of the inside of `websockets`, beyond its documented API.

A test that fails here after an upgrade of the library says what is gone; what the project does
with it is said beside each.
"""

from __future__ import annotations

import asyncio
import inspect
import pkgutil
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.frames import Close
from websockets.http11 import Response
from websockets.protocol import CLOSING, CONNECTING, OPEN
from websockets.uri import parse_uri
from websockets.version import version

from audiofork.relay.connection import Connection
from audiofork.relay.server_limits import LimitedProtocol
from tests.relay.peers import StalledServer, until

pytestmark = pytest.mark.usefixtures("nothing_left")

GONE = f"websockets {version} has no {{}} any more: {{}}"

# What it is, and what for.
NAMES = {
    "websockets.utils:apply_mask": "outlet.py masks with it where the C code is missing",
    "websockets.protocol:OPEN": "connection.py: frames may be written in this state alone",
    "websockets.uri:parse_uri": "connection.py takes host and port from it",
    "websockets.streams:StreamReader.read_exact": "proxy.py reads answers of proxies",
    "websockets.http11:Response.parse": "proxy.py reads answers to CONNECT",
    "websockets.headers:build_host": "proxy.py names the server",
    "websockets.headers:build_authorization_basic": "proxy.py logs in",
    "websockets.client:ClientProtocol": "server_limits.py limits what it takes",
    "websockets.client:ClientProtocol.state": "connection.py tells by it that a close has begun",
    "websockets.client:ClientProtocol.receive_data": "server_limits.py counts bytes",
    "websockets.client:ClientProtocol.receive_eof": "server_limits.py ends the answer's head",
    "websockets.client:ClientProtocol.recv_frame": "server_limits.py counts frames",
    "websockets.client:ClientProtocol.parse": "server_limits.py: a bad text raises through it",
    "websockets.asyncio.messages:SimpleQueue.__len__": "connection.py asks if a message waits",
    "websockets.client:ClientProtocol.fail": "server_limits.py gives a server up",
    "websockets.asyncio.client:ClientConnection.handshake": "connection.py makes the request",
    "websockets.asyncio.client:ClientConnection.start_keepalive": "connection.py: pings",
    "websockets.asyncio.client:ClientConnection.send_data": "connection.py counts what it writes",
    "websockets.asyncio.client:ClientConnection.drain": "connection.py lets it wait for nothing",
    "websockets.asyncio.client:ClientConnection.connection_made": "connection.py sets TCP options",
    "websockets.asyncio.client:ClientConnection.connection_lost": "connection.py hears it first",
    "websockets.asyncio.client:ClientConnection.pause_writing": "connection.py tells the outlet",
    "websockets.asyncio.client:ClientConnection.resume_writing": "connection.py tells the outlet",
}


@pytest.mark.parametrize(("name", "use"), NAMES.items(), ids=NAMES)
def test_name_is_there(name: str, use: str) -> None:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(GONE.format(name, use))


@pytest.mark.parametrize(
    ("taker", "names"),
    [
        (
            ClientConnection,
            ["ping_interval", "ping_timeout", "close_timeout", "write_limit", "max_queue"],
        ),
        (ClientProtocol, ["max_size"]),
        (ClientConnection.handshake, ["user_agent_header"]),
    ],
    ids=["ClientConnection", "ClientProtocol", "handshake"],
)
def test_argument_is_taken(taker: Callable[..., object], names: list[str]) -> None:
    taken = inspect.signature(taker).parameters
    gone = [name for name in names if name not in taken]
    assert not gone, GONE.format(f"argument {gone} of {taker}", "connection.py passes it")


def test_c_code_and_python_code_mask_alike() -> None:
    speedups = pytest.importorskip("websockets.speedups", reason="no C code for this platform")
    masked = speedups.apply_mask(bytes(range(256)), b"\1\2\3\4")
    assert masked == websockets.utils.apply_mask(bytes(range(256)), b"\1\2\3\4")
    assert masked[:5] == bytes((1, 3, 1, 7, 5))


def test_states_are_what_the_protocol_goes_through() -> None:
    protocol = ClientProtocol(parse_uri("ws://example.org/"))
    assert protocol.state is CONNECTING
    protocol.state = OPEN
    protocol.send_close(1000)
    assert protocol.state is CLOSING, "connection.py shuts the outlet in any state but OPEN"


def test_writes_are_the_bytes_that_data_to_send_is_going_to_return() -> None:
    protocol = ClientProtocol(parse_uri("ws://example.org/"))
    protocol.state = OPEN
    protocol.send_ping(b"x")
    writes = list(getattr(protocol, "writes", ()))
    assert [len(data) for data in writes] == [7], GONE.format(
        "ClientProtocol.writes", "connection.py counts by it what the library writes"
    )
    assert protocol.data_to_send() == writes
    assert not protocol.writes


def test_protocol_tells_what_of_a_message_it_has() -> None:
    protocol = ClientProtocol(parse_uri("ws://example.org/"))
    use = "server_limits.py takes a message by itself only if none has begun"
    assert protocol.current_size is None, GONE.format("ClientProtocol.current_size", use)
    assert not protocol.reader.buffer, GONE.format("ClientProtocol.reader.buffer", use)
    assert protocol.events == [], GONE.format("ClientProtocol.events", use)


class Heard:
    """Stands for an outlet; keeps what a connection tells it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.written = 0

    def note_control(self, wire_bytes: int) -> None:
        self.written += wire_bytes

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.calls.append(name)


@pytest.fixture
async def connected(stalled: StalledServer) -> AsyncIterator[tuple[Connection, Heard]]:
    """A connection whose handshake is over, and what it tells."""
    heard: Any = Heard()
    connection = Connection(
        heard,
        lambda closing: heard.calls.append("closing"),
        lambda lost: heard.calls.append("lost"),
        LimitedProtocol(parse_uri(stalled.url)),
        ping_interval=None,
        close_timeout=0.1,
    )
    uri = parse_uri(stalled.url)
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: connection, uri.host, uri.port)
    await connection.handshake()
    heard.calls.clear()
    heard.written = 0
    yield connection, heard
    connection.transport.abort()
    await connection.wait_closed()


Connected = tuple[Connection, Heard]


async def test_ping_goes_by_way_of_send_data_and_waits_for_no_room(connected: Connected) -> None:
    connection, heard = connected
    connection.pause_writing()
    async with asyncio.timeout(1):
        pong = await connection.ping(b"proof")
    assert heard.written == 2 + 4 + 5, GONE.format("call of send_data by ping", "see NAMES")
    assert heard.calls == ["pause"]
    assert isinstance(pong, asyncio.Future)
    assert not pong.done()
    connection.resume_writing()
    assert heard.calls == ["pause", "resume"]
    pong.cancel()


async def test_paused_is_whether_the_transport_is_full(connected: Connected) -> None:
    connection, _ = connected
    seen = [connection.paused]
    connection.pause_writing()
    seen.append(connection.paused)
    connection.resume_writing()
    seen.append(connection.paused)
    told = GONE.format("Connection.paused", "sink.py asks when it opens")
    assert seen == [False, True, False], told


async def test_close_goes_by_way_of_send_data_and_shuts_the_outlet(
    connected: Connected, stalled: StalledServer
) -> None:
    connection, heard = connected
    stalled.read_on()
    await connection.close(1000, "bye")
    assert heard.calls[0] == "shut"
    assert heard.written >= 2 + 4 + 2 + len("bye")
    assert "lost" in heard.calls


async def test_protocol_tells_what_both_sides_have_closed_with(connected: Connected) -> None:
    connection, _ = connected
    protocol = connection.protocol
    assert (protocol.close_rcvd, protocol.close_sent) == (None, None), "sink.py asks for them"
    await connection.close(1000, "bye")
    assert protocol.close_sent == Close(1000, "bye")


async def test_loss_is_heard_before_recv_raises(
    connected: Connected, stalled: StalledServer
) -> None:
    connection, heard = connected
    receiving = asyncio.create_task(connection.recv())
    receiving.add_done_callback(lambda task: heard.calls.append("recv"))
    await asyncio.sleep(0)
    stalled.transport.abort()
    await until(receiving.done)
    await asyncio.sleep(0)
    assert heard.calls.index("lost") < heard.calls.index("recv")
    assert isinstance(receiving.exception(), websockets.ConnectionClosed)


async def test_tcp_is_told_how_long_it_may_wait_for_acknowledgements(connected: Connected) -> None:
    own = connected[0].transport.get_extra_info("socket")
    assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


async def test_attributes_are_few_enough_to_share_their_names_with_other_connections(
    connected: Connected,
) -> None:
    connection, _ = connected
    assert [len(vars(one)) <= 30 for one in (connection, connection.protocol)] == [True, True]


async def test_nobody_is_kept_waiting_for_room(connected: Connected) -> None:
    connection, _ = connected
    connection.pause_writing()
    await connection.ping()
    assert not connection.drain_waiters
    connection.resume_writing()


async def test_response_of_a_refusal_has_status_and_headers() -> None:
    fields = inspect.signature(Response).parameters
    assert {"status_code", "headers"} <= fields.keys(), "retry.py tells by them what was refused"


async def test_pings_are_pending_until_they_are_answered(
    connected: Connected, stalled: StalledServer
) -> None:
    connection, _ = connected
    pong = await connection.ping(b"x")
    assert list(connection.pending_pings) == [b"x"], "tests of the sink answer pings by it"
    stalled.read_on()
    async with asyncio.timeout(1):
        await pong
    assert not connection.pending_pings
