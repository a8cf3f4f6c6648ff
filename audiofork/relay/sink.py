"""One WebSocket client: connects, sends each frame at once, keeps what cannot go yet.

The library does the handshake, pings, receiving and closing. Binary frames are built here:
its `send()` is a coroutine and costs three times as much (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from audiofork import __version__
from audiofork.audiosocket import FRAME_BYTES, PTIME_MS, PTIME_S
from audiofork.config import WebSocketConfig
from audiofork.errors import SinkError
from audiofork.relay import retry
from audiofork.relay.backlog import Backlog
from audiofork.relay.resolve import open_socket
from audiofork.relay.tls import open_tls
from audiofork.relay.unacked import Unacked, Written
from audiofork.uri import uri_of

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library's wheel for this platform has no C code
    from websockets.utils import apply_mask

log = logging.getLogger(__name__)

USER_AGENT = f"audiofork/{__version__}"
MAX_MESSAGE_BYTES = 65_536
CLOSE_TIMEOUT_S = 2.0
# A fork that has ended goes on trying to deliver what waits, for so long at most.
LINGER_S = 30.0
# TCP gives up a server that acknowledges nothing for so long (tcp(7), TCP_USER_TIMEOUT): pings
# find it too, but later than the backlog can wait.
UNACKNOWLEDGED_S = 5.0
# A server that is back gets what waited when it has answered a ping, or after this time: one
# that accepts and closes at once would swallow it.
PROOF_TIMEOUT_S = 1.0
# How often the kernel is asked what it holds back: by frames while all is well, else by time.
FRAMES_BETWEEN_CHECKS = 5
CHECK_INTERVAL_S = 0.01


def _masks() -> Iterator[bytes]:
    """Yield masking keys; drawn in blocks, since each draw is a system call."""
    while True:
        block = os.urandom(4096)
        for start in range(0, len(block), 4):
            yield block[start : start + 4]


_next_mask = _masks().__next__


def binary_frame(payload: bytes) -> bytes:
    """Return a final, masked, binary WebSocket frame (RFC 6455, 5.2)."""
    header, _ = _envelope(len(payload))
    mask = _next_mask()
    return b"".join((header, mask, apply_mask(payload, mask)))


@functools.lru_cache(maxsize=16)
def _envelope(length: int) -> tuple[bytes, int]:
    """Return what comes before the mask, and how many bytes the whole takes on the wire.

    The same two objects to all forks alike, for the processor caches' sake.
    """
    if length < 126:
        header = bytes((0x82, 0x80 | length))
    elif length < 65_536:
        header = b"\x82\xfe" + length.to_bytes(2, "big")
    else:
        header = b"\x82\xff" + length.to_bytes(8, "big")
    return header, len(header) + 4 + length


class _Outlet:
    """The way of a frame into an open connection, and all that it needs: the hot path.

    Small and apart from its sink, because a frame of another fork comes before the next of this
    one, and what it touches is no longer in the processor's caches by then.

    Attributes:
        at_once: The connection takes each frame in a message of its own, and none waits.
        header: Of a message of one frame, which takes `wire_bytes`.
        write: Gives the connection a message; `note` notes it as not acknowledged.
        keep: Takes a frame that cannot go at once.
        frames_sent: Those in messages that were written.
        next_check: At so many frames sent, `check` is called.
    """

    __slots__ = (
        *("at_once", "header", "wire_bytes", "write", "note", "frames_sent", "next_check"),
        *("keep", "check"),
    )

    def __init__(
        self, frame_bytes: int, keep: Callable[[bytes], object], check: Callable[[], object]
    ) -> None:
        self.at_once = False
        self.header, self.wire_bytes = _envelope(frame_bytes)
        self.write: Callable[[bytes], object] = lambda message: None
        self.note: Callable[[Written], object] = lambda written: None
        self.frames_sent = 0
        self.next_check = 0
        self.keep = keep
        self.check = check

    def send(self, frame: bytes) -> None:
        """Send a frame now, or keep it in the backlog; never waits."""
        if not self.at_once:
            self.keep(frame)
            return
        # Looked up before they are called: that is faster than a call of an attribute.
        write, note = self.write, self.note
        mask = _next_mask()
        write(b"".join((self.header, mask, apply_mask(frame, mask))))
        note(((frame,), self.wire_bytes))
        self.frames_sent = sent = self.frames_sent + 1
        if sent >= self.next_check:
            self.check()


class Sink:
    """The WebSocket end of one fork.

    Owned by a session, which runs `run()` in a task, calls `send()` for each frame and `close()`
    once. Frames offered = `frames_sent` + `backlog.dropped` + `len(backlog)`, at any moment.
    A frame that was sent over a connection that broke counts as sent only if the server's TCP has
    acknowledged it; else it waits again.

    Args:
        frame_bytes: Size of every frame.

    Attributes:
        send: Sends a frame now, or keeps it in the backlog; never waits.
        frame_ms: Audio in a full message.
        on_open: Called when the server has accepted a connection and is given what waited.
        on_retry: Called with the number of the next attempt and why the last one failed.
        on_text: Called with each text message of the server.
        reconnects: How often a lost server came back.
        dropped_in_gap: Frames that were lost when it came back last, since it took none.
    """

    def __init__(
        self,
        url: str,
        config: WebSocketConfig,
        tls: ssl.SSLContext,
        *,
        frame_bytes: int = FRAME_BYTES,
        allow_private: bool = True,
    ) -> None:
        self._url = url
        self._config = config
        self._tls = tls if url.lower().startswith("wss:") else None
        self._allow_private = allow_private
        self._connection: _Connection | None = None
        self._unacked: Unacked | None = None
        self._connect_timeout: asyncio.Timeout | None = None
        self._settled = asyncio.Event()  # open, or never to be open again
        self._flushed = asyncio.Event()  # nothing waits any more, or it cannot be sent now
        self._hurry = asyncio.Event()  # no time to wait between attempts
        self._closing = False
        self._writable = False  # the connection takes frames
        self._good = False  # the connection may be given frames
        self._over = False
        self._patience: asyncio.Timeout | None = None
        self._outlet = _Outlet(frame_bytes, self._keep, self._has_room)
        self.send = self._outlet.send
        self.frame_ms = config.frame_ms
        self._per_message = config.frame_ms // PTIME_MS
        # A message that was just written is no sign of a slow server.
        self._budget_frames = max(
            int(config.latency_budget * 1000) // PTIME_MS, 2 * self._per_message
        )
        self._budget_bytes = self._budget_frames * self._outlet.wire_bytes
        self._part_timer: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._open_s: float | None = None  # how long the latest connection was open
        self._was_open = False
        self.on_open: Callable[[], None] = lambda: None
        self.on_retry: Callable[[int, str], None] = lambda attempt, why: None
        self.on_text: Callable[[str], None] = lambda text: None
        self.backlog = Backlog(max(config.backlog, config.frame_ms / 1000))
        self.reconnects = 0
        self.dropped_in_gap = 0
        self._dropped_before = 0  # when the server took no more

    @property
    def frames_sent(self) -> int:
        return self._outlet.frames_sent

    # --- The connection's life ---

    async def run(self) -> None:
        """Connect, listen to the server, connect again when it is lost.

        Returns when `close()` ended it.

        Raises:
            SinkError: It did not come about or was lost, and there is no sense in another attempt.
        """
        config = self._config
        retries = retry.Retries(config.reconnect_attempts, config.reconnect_interval)
        try:
            while not self._is_done():
                try:
                    await self._serve()
                except SinkError as exc:
                    await self._before_next(retries, exc)
        finally:
            self._over = True
            self._settled.set()

    def _is_done(self) -> bool:
        return self._closing and not self.backlog

    async def _before_next(self, retries: retry.Retries, error: SinkError) -> None:
        """Wait until the next attempt is due; raise the error if there is to be none."""
        now = asyncio.get_running_loop().time()
        wait_s = retries.next_wait_s(error, self._open_s, now)
        if wait_s is None or self._hurry.is_set():
            raise error
        self.on_retry(retries.attempt, str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurry.wait()

    async def _serve(self) -> None:
        """Live through one connection; return when `close()` ended it, or raise SinkError."""
        self._open_s = None
        connection = await self._connect()
        if connection is None:
            return
        opened = asyncio.get_running_loop().time()
        try:
            if self._was_open:
                await self._prove(connection)
            self._open_gate()
            while True:
                message = await connection.recv()
                if isinstance(message, str):
                    self.on_text(message)
        except ConnectionClosed as exc:
            self._open_s = asyncio.get_running_loop().time() - opened
            self.on_lost(connection)
            if not self._is_done():
                raise retry.closure(exc) from exc

    async def _connect(self) -> _Connection | None:
        """Return an open connection, or None when `close()` needs none any more."""
        try:
            async with asyncio.timeout(self._config.connect_timeout) as self._connect_timeout:
                connection = await self._open()
        except Exception as exc:
            if self._is_done() and isinstance(exc, TimeoutError):
                return None
            raise retry.connect_failure(exc) from exc
        finally:
            self._connect_timeout = None
        self._connection = connection
        self._unacked = connection.unacked = Unacked(connection.transport)
        self._outlet.write = connection.transport.write
        self._outlet.note = self._unacked.add
        return connection

    async def _open(self) -> _Connection:
        """Return a connection that the server has accepted.

        The library's own `connect` would do TLS by the event loop, and follow redirects, perhaps
        past allow_urls.
        """
        uri = parse_uri(uri_of(self._url))
        connected = await open_socket(uri.host, uri.port, allow_private=self._allow_private)
        connection = _Connection(
            self,
            ClientProtocol(uri, max_size=MAX_MESSAGE_BYTES),
            ping_interval=self._config.ping_interval,
            ping_timeout=self._config.ping_interval,
            close_timeout=CLOSE_TIMEOUT_S,
            write_limit=self._budget_bytes,
        )
        if self._tls is not None:
            await open_tls(connected, self._tls, uri.host, connection)
        else:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: connection, sock=connected)
        try:
            await connection.handshake(user_agent_header=USER_AGENT)
        except BaseException:
            connection.transport.abort()
            raise
        connection.start_keepalive()
        return connection

    async def _prove(self, connection: _Connection) -> None:
        """Wait until the server shows that it reads, though not for ever: some answer no ping."""
        pong = await connection.ping()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROOF_TIMEOUT_S):
                await pong

    def _open_gate(self) -> None:
        """Give the connection what waited, and then all that comes."""
        self.reconnects += self._was_open
        self._was_open = True
        self.dropped_in_gap = self.backlog.dropped - self._dropped_before
        self._good = True
        self.resume()
        self._settled.set()
        self.on_open()

    def on_lost(self, connection: _Connection) -> None:
        """Take back what a connection still held; it tells before anybody else hears."""
        if connection is not self._connection:
            return
        self.pause()
        self._good = False
        self._settled.clear()
        self._connection = None
        assert self._unacked is not None
        lost = self._unacked.close()
        self._unacked = None
        self._outlet.frames_sent -= len(lost)
        self.backlog.put_back(lost)
        self._flushed.set()

    # --- The way of a frame that cannot go at once ---

    @property
    def missing(self) -> int:
        """How many frames the last message of what waits still lacks; of nothing, all."""
        return self._per_message - len(self.backlog) % self._per_message

    def _keep(self, frame: bytes) -> None:
        backlog = self.backlog
        backlog.put(frame)
        is_part = self._part_timer is not None and len(backlog) < self._per_message
        if self._writable and not is_part:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what waits, in order, as far as the server takes it and it fills messages."""
        while self._writable and self.backlog:
            if len(self.backlog) < self._per_message and not self._closing:
                self._begin_part()
                return
            self._send_message()
        if not self.backlog:
            self._flushed.set()

    def _send_message(self) -> None:
        self._end_part()
        count = min(self._per_message, len(self.backlog))
        frames = [self.backlog.take() for _ in range(count)]
        payload = frames[0] if count == 1 else b"".join(frames)
        outlet = self._outlet
        message = binary_frame(payload)
        outlet.write(message)
        outlet.note((frames, len(message)))
        outlet.frames_sent += count
        if outlet.frames_sent >= outlet.next_check:
            self._has_room()

    def _begin_part(self) -> None:
        """Wait for the rest of a message, but not longer than the message lasts."""
        if self._part_timer is None:
            loop = asyncio.get_running_loop()
            wait_s = self._per_message * PTIME_S
            self._part_timer = loop.call_later(wait_s, self._on_part_due)

    def _on_part_due(self) -> None:
        self._part_timer = None
        self.send_part()

    def send_part(self) -> None:
        """Send what waits for the rest of its message, without that."""
        if self._writable and self.backlog:
            self._send_message()

    def _end_part(self) -> None:
        if self._part_timer is not None:
            self._part_timer.cancel()
            self._part_timer = None

    def _has_room(self) -> bool:
        """Tell whether the kernel holds no more than the budget; if it does, pause for a while."""
        self._outlet.next_check = self.frames_sent + FRAMES_BETWEEN_CHECKS
        assert self._unacked is not None
        self._unacked.update()
        if self._unacked.not_sent <= self._budget_bytes:
            return True
        self.pause()
        loop = asyncio.get_running_loop()
        self._check_timer = loop.call_later(CHECK_INTERVAL_S, self.resume)
        return False

    def pause(self) -> None:
        """Keep frames in the backlog: the server does not keep up, or is lost."""
        self._end_part()
        if self._check_timer is not None:
            self._check_timer.cancel()
            self._check_timer = None
        if self._writable:
            self._writable = self._outlet.at_once = False
            self._dropped_before = self.backlog.dropped

    def resume(self) -> None:
        """Send again, the backlog first, as far as the server takes it."""
        connection = self._connection
        if connection is None or connection.protocol.state is not OPEN or connection.paused:
            return
        if self._good and self._has_room():
            self._writable = True
            self._send_waiting()
            self._outlet.at_once = self._writable and self._per_message == 1

    # --- The end ---

    async def close(self, code: int, reason: str) -> None:
        """Give the server what still waits, then close.

        While the server is away the attempts go on, for LINGER_S at most; with nothing to give
        it, they end at once. What then still waits is dropped and counted.
        """
        self._closing = True
        limit_s = CLOSE_TIMEOUT_S if self._hurry.is_set() else LINGER_S
        if not self.backlog:
            self._hurry.set()
            self._stop_connecting()
        try:
            async with asyncio.timeout(limit_s) as self._patience:
                while not self._over:
                    await self._say_goodbye(code, reason)
        except TimeoutError:
            await self._give_up()
        self.pause()
        self.backlog.drop_all()

    def hurry(self) -> None:
        """Let `close()`, under way or to come, take no longer than CLOSE_TIMEOUT_S."""
        self._hurry.set()
        if self._patience is not None and not self._patience.expired():
            limit = asyncio.get_running_loop().time() + CLOSE_TIMEOUT_S
            self._patience.reschedule(min(limit, self._patience.when() or limit))

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """Close the connection when it has got all; return when it is lost, or got all."""
        await self._settled.wait()
        connection = self._connection
        if connection is None:
            return
        if self.backlog and connection.protocol.state is OPEN:
            self._flushed.clear()
            self.resume()
            await self._flushed.wait()
        else:
            await connection.close(code, reason)

    async def _give_up(self) -> None:
        self._hurry.set()
        if self._connection is None:
            self._stop_connecting()
        else:
            self._connection.transport.abort()
            await self._connection.wait_closed()  # it gives back what it held

    def _stop_connecting(self) -> None:
        timeout = self._connect_timeout
        if timeout is not None and not timeout.expired():  # one that has run out cannot be changed
            timeout.reschedule(asyncio.get_running_loop().time())


class _Connection(ClientConnection):
    """A connection that tells its sink what it writes, when it is full, and when it is lost."""

    def __init__(self, sink: Sink, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sink = sink
        self.unacked: Unacked | None = None  # set when the handshake is over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        limit_ms = int(UNACKNOWLEDGED_S * 1000)
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)

    def connection_lost(self, exc: Exception | None) -> None:
        self._sink.on_lost(self)
        super().connection_lost(exc)

    def send_data(self) -> None:
        """Let the sink know what the library writes besides frames: pings, pongs, the close."""
        if self.unacked is not None:
            for data in filter(None, self.protocol.writes):
                self.unacked.add(((), len(data)))
        super().send_data()
        if self.protocol.state is not OPEN:  # a frame after a close frame would be an error
            self._sink.pause()

    async def drain(self) -> None:
        """Do not wait: a ping's time limit must run also when the server reads nothing."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sink.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._sink.resume()
