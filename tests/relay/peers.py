"""The two peers of a relay, as tests need them: cooperative ones, and others."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import socket
import ssl
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from audiofork.config import Address
from audiofork.link.messages import ForkStats

HANGUP = b"\x00\x00\x00"


_SOUND = struct.Struct("<HH")
_LOUD = 1000


def numbered(count: int, first: int = 0, frame_bytes: int = 320) -> list[bytes]:
    """Return frames that can be told apart; none is silent."""
    return [_SOUND.pack(n, _LOUD) * (frame_bytes // 4) for n in range(first, first + count)]


def number(frame: bytes) -> int:
    """Return which of the `numbered` frames this is."""
    return cast(int, _SOUND.unpack_from(frame)[0])


def lives(pid: int) -> bool:
    """Return whether a process is there, other than as a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Let the loop turn until a condition is true."""
    async with asyncio.timeout(timeout_s):
        began_s = time.monotonic()
        while not condition():  # noqa: ASYNC110 - not all that is waited for has an event
            # What takes longer is another's doing, which needs the core.
            await asyncio.sleep(0 if time.monotonic() < began_s + 0.002 else 0.001)


class FakeLoop:
    """The timers of an event loop whose clock belongs to the test.

    Attributes:
        late_s: How long after its time each timer is called.
    """

    def __init__(self) -> None:
        self.late_s = 0.0
        self._now = 1000.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self._now

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, cast(asyncio.AbstractEventLoop, self))
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args)

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    @property
    def armed(self) -> int:
        """How many timers were not called yet."""
        return sum(not handle.cancelled() for _, _, handle in self._timers)

    def advance(self, seconds: float) -> None:
        """Let time pass, calling each timer when it is due."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] + self.late_s <= end:
            when, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                self._now = max(self._now, when + self.late_s)
                handle._callback(*handle._args)  # type: ignore[attr-defined]
        self._now = max(self._now, end)

    def stall(self, seconds: float) -> None:
        """Let time pass in which no timer is called."""
        self._now += seconds


class Leg:
    """The Asterisk end of an AudioSocket connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: Address, source: str = "") -> Self:
        """Connect, from an address of this machine if one is given."""
        local = (source, 0) if source else None
        host, port = address.host, address.port
        return cls(*await asyncio.open_connection(host, port, local_addr=local))

    def send(self, wire: bytes) -> None:
        self._writer.write(wire)

    def send_uuid(self, fork_id: str) -> None:
        self.send(b"\x01\x00\x10" + uuid.UUID(fork_id).bytes)

    def send_audio(self, *frames: bytes) -> None:
        for frame in frames:
            self.send(b"\x10" + len(frame).to_bytes(2, "big") + frame)

    async def read_to_end(self) -> bytes:
        """Return all bytes that the server sent until it closed the connection."""
        async with asyncio.timeout(5):
            return await self._reader.read()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the server was faster
            await self._writer.wait_closed()


class StalledServer:
    """A WebSocket server that reads nothing after the handshake, until `read_on()`.

    Attributes:
        frames: The binary messages that it has read; `close_code` and `close_reason` what the
            client closed with.
        asked: Whether a request has come.
        gone: Whether the connection is over.
    """

    def __init__(self) -> None:
        self.hold_handshake = False
        self.frames: list[bytes] = []
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self.asked = False
        self.gone = False
        self._protocol = ServerProtocol(max_size=None)
        self._transport: asyncio.Transport | None = None  # the latest
        self._open: set[asyncio.Transport] = set()  # it hears no end of those that it does not read

    async def __aenter__(self) -> Self:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _StalledConnection(self), sock=listening)
        self.url = f"ws://127.0.0.1:{listening.getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for transport in tuple(self._open):
            transport.abort()
        await until(lambda: not self._open)
        await self._server.wait_closed()

    def answer(self) -> None:
        """Complete the handshake that was held."""
        assert self._request is not None
        self._protocol.send_response(self._protocol.accept(self._request))
        self._write()

    def read_on(self) -> None:
        """Read what has arrived, and everything that follows."""
        self.transport.resume_reading()

    def send_close(self, code: int) -> None:
        """Send a close frame, and leave the TCP connection open."""
        self._protocol.send_close(code)
        self._write()

    def send_text(self, text: str) -> None:
        self._protocol.send_text(text.encode())
        self._write()

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def on_connect(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._open.add(transport)

    def on_lost(self, transport: asyncio.Transport) -> None:
        self._open.discard(transport)
        self.gone = True

    def on_data(self, chunk: bytes) -> None:
        self._protocol.receive_data(chunk)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._request = event
                self.asked = True
                self.transport.pause_reading()
                if not self.hold_handshake:
                    self.answer()
            elif isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                self.frames.append(bytes(event.data))
        if self._protocol.close_rcvd is not None:
            self.close_code = self._protocol.close_rcvd.code
            self.close_reason = self._protocol.close_rcvd.reason
        self._write()

    def _write(self) -> None:
        for chunk in self._protocol.data_to_send():
            if chunk:
                self.transport.write(chunk)
            else:
                self.transport.close()


class _StalledConnection(asyncio.Protocol):
    def __init__(self, server: StalledServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.on_connect(self._transport)

    def data_received(self, chunk: bytes) -> None:
        self._server.on_data(chunk)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.on_lost(self._transport)


class FickleServer:
    """A WebSocket server that goes and comes back, always on the same port.

    Attributes:
        frames: All frames received, over all connections; `frames_of`: those of each connection.
        asked: The time of each request.
        refusals: Answers to the next requests, instead of a handshake.
        close_code: The code to close each connection with at once; None: keep them.
        answers_pings: Whether it answers pings.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.frames: list[bytes] = []
        self.frames_of: list[list[bytes]] = []
        self.asked: list[float] = []
        self.refusals: list[tuple[int, str]] = []
        self.close_code: int | None = None
        self.answers_pings = True
        self.connection: ServerConnection | None = None
        self.port = unused_port()
        self.url = (
            f"ws://127.0.0.1:{self.port}/" if tls is None else f"wss://localhost:{self.port}/"
        )

    async def __aenter__(self) -> Self:
        await self.come()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go()

    async def come(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", self.port))
        self._server = await serve(
            self._handle,
            sock=listening,
            process_request=self._on_request,
            compression=None,
            max_queue=None,
            ssl=self._tls,
        )

    async def go(self) -> None:
        """Break every connection, and stop listening."""
        self.break_off()
        self._server.close()
        await self._server.wait_closed()

    def break_off(self) -> None:
        """Break every connection."""
        for connection in self._server.connections:
            connection.transport.abort()

    def stop_reading(self) -> None:
        assert self.connection is not None
        self.connection.transport.pause_reading()

    def read_on(self) -> None:
        assert self.connection is not None
        self.connection.transport.resume_reading()

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append(asyncio.get_running_loop().time())
        if not self.answers_pings:
            send = connection.protocol.send_frame
            connection.protocol.send_frame = (  # type: ignore[method-assign]
                lambda frame: None if frame.opcode is Opcode.PONG else send(frame)
            )
        if not self.refusals:
            return None
        status, retry_after = self.refusals.pop(0)
        response = connection.respond(status, "")
        if retry_after:
            response.headers["Retry-After"] = retry_after
        return response

    async def _handle(self, connection: ServerConnection) -> None:
        if self.close_code is not None:
            await connection.close(self.close_code)
            return
        self.connection = connection
        frames: list[bytes] = []
        self.frames_of.append(frames)
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await connection.recv(decode=False)
                frames.append(message)
                self.frames.append(message)


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[int]:
    """Run a TCP server that answers whatever comes with these bytes; None: never, b"": resets.

    Yields:
        Its port on 127.0.0.1.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if answer:
                await reader.read(1)
                writer.write(answer)
            elif answer is None:
                await reader.read()
            else:
                writer.transport.abort()
            writer.close()
            await writer.wait_closed()
        except OSError:  # the client was faster
            pass

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """Yield an address of this machine that drops all connection requests."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        for _ in range(3):  # fills the queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast(int, probe.getsockname()[1])


class HoldingProxy:
    """Forwards a connection to a server until `hold()`; then its kernel takes bytes, it none.

    Attributes:
        port: Where it listens on 127.0.0.1.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]
        self._tasks.append(asyncio.create_task(self._accept()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hold()
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        self._client, _ = await loop.sock_accept(self._listening)
        self._server = socket.create_connection(("127.0.0.1", self._server_port))
        self._server.setblocking(False)
        for source, target in (self._client, self._server), (self._server, self._client):
            self._tasks.append(asyncio.create_task(self._forward(source, target)))

    async def _forward(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await loop.sock_recv(source, 65_536):
            await loop.sock_sendall(target, chunk)

    async def hold(self) -> None:
        """Stop forwarding."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def held_bytes(self) -> int:
        """Return how many bytes its kernel has accepted and acknowledged since then."""
        return len(self._client.recv(1 << 20, socket.MSG_PEEK))

    def break_off(self) -> None:
        """Reset the client's connection."""
        self._client.close()
        self._server.close()


def counted(stats: Mapping[str, ForkStats]) -> dict[str, ForkStats]:
    """Return statistics without what depends on the network: round trips, and what is under way."""
    return {one: replace(of, rtt_ms=0.0, unacked_bytes=0) for one, of in stats.items()}
