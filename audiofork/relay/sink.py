"""One WebSocket client: connects, sends each frame at once, keeps what cannot go yet.

The library does the handshake, TLS, pings, receiving and closing. Binary frames are built here:
its `send()` is a coroutine and costs three times as much (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.protocol import OPEN

from audiofork.config import WebSocketConfig
from audiofork.relay import retry
from audiofork.relay.backlog import Backlog

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library's wheel for this platform has no C code
    from websockets.utils import apply_mask

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
MAX_MESSAGE_BYTES = 65_536
# Bytes that may wait in the transport: 200 ms of stereo frames with their headers. What a slow
# server does not take beyond that waits in the backlog, where it is bounded and counted.
WRITE_LIMIT_BYTES = 10 * (640 + 8)


def _masks() -> Iterator[bytes]:
    """Yield masking keys; drawn in blocks, since each draw is a system call."""
    while True:
        block = os.urandom(4096)
        for start in range(0, len(block), 4):
            yield block[start : start + 4]


_next_mask = _masks().__next__


def binary_frame(payload: bytes) -> bytes:
    """Return a final, masked, binary WebSocket frame (RFC 6455, 5.2); 126 to 65,535 bytes."""
    mask = _next_mask()
    return b"".join((b"\x82\xfe", len(payload).to_bytes(2, "big"), mask, apply_mask(payload, mask)))


class Sink:
    """The WebSocket end of one fork.

    Owned by a session, which runs `run()` in a task, calls `send()` for each frame and `close()`
    once. Frames offered = `frames_sent` + `backlog.dropped` + `len(backlog)`, at any moment.
    """

    def __init__(self, url: str, config: WebSocketConfig, tls: ssl.SSLContext) -> None:
        self._url = url
        self._config = config
        self._tls = tls
        self.on_open: Callable[[], None] = lambda: None
        self._connection: _Connection | None = None
        self._connect_timeout: asyncio.Timeout | None = None
        self._settled = asyncio.Event()  # the connect has come to an end, good or bad
        self._flushed = asyncio.Event()  # nothing waits any more, or it cannot be sent
        self._closing = False
        self._writable = False
        self.backlog = Backlog(config.backlog)
        self.frames_sent = 0

    async def run(self) -> None:
        """Connect, then listen to the server until the connection is over.

        Returns when `close()` ended it.

        Raises:
            SinkError: It did not come about, or the server or the network ended it.
        """
        try:
            connection = await self._connect()
        finally:
            self._settled.set()
        if connection is None:
            return
        self._flush()
        self.on_open()
        try:
            while True:
                await connection.recv()
        except ConnectionClosed as exc:
            self._writable = False
            self._flushed.set()
            if not self._closing:
                raise retry.closure(exc) from exc

    async def _connect(self) -> _Connection | None:
        try:
            async with asyncio.timeout(self._config.connect_timeout) as self._connect_timeout:
                connection = await _Connect(
                    self._url,
                    ssl=self._tls if self._url.startswith("wss:") else None,
                    compression=None,
                    proxy=None,
                    open_timeout=None,
                    ping_interval=self._config.ping_interval,
                    ping_timeout=self._config.ping_interval,
                    close_timeout=CLOSE_TIMEOUT_S,
                    max_size=MAX_MESSAGE_BYTES,
                    write_limit=WRITE_LIMIT_BYTES,
                    # Typed as a class, used as a factory.
                    create_connection=cast(Any, functools.partial(_Connection, self)),
                )
        except Exception as exc:
            if self._closing and isinstance(exc, TimeoutError):
                return None
            raise retry.connect_failure(exc) from exc
        assert isinstance(connection, _Connection)
        self._connection = connection
        self._writable = True
        return connection

    def send(self, frame: bytes) -> None:
        """Send a frame now, or keep it in the backlog; never waits."""
        connection = self._connection
        if self._writable and connection is not None and connection.protocol.state is OPEN:
            connection.transport.write(binary_frame(frame))
            self.frames_sent += 1
        else:
            self.backlog.put(frame)

    def pause(self) -> None:
        """Stop sending: the server does not keep up."""
        self._writable = False

    def resume(self) -> None:
        """Send again, the backlog first."""
        self._writable = True
        self._flush()

    def _flush(self) -> None:
        """Send what waits, in order, as far as the server takes it."""
        connection = self._connection
        assert connection is not None
        # A transport that drains may belong to a connection that is closing already.
        while self._writable and self.backlog and connection.protocol.state is OPEN:
            connection.transport.write(binary_frame(self.backlog.take()))
            self.frames_sent += 1
        if not self.backlog:
            self._flushed.set()

    async def close(self, code: int, reason: str) -> None:
        """Give the server what still waits, then close; takes CLOSE_TIMEOUT_S at most.

        A connect that is under way is waited for if frames wait for it, else given up.
        """
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._finish_connect()
                await self._say_goodbye(code, reason)
        except TimeoutError:
            self._give_up()
        self._writable = False
        self.backlog.drop_all()

    async def _finish_connect(self) -> None:
        if self._settled.is_set():
            return
        if not self.backlog:
            self._stop_connecting()
        await self._settled.wait()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        if self._connection is None:
            return
        if self._connection.protocol.state is OPEN:
            self._flushed.clear()
            self._flush()
            await self._flushed.wait()
        await self._connection.close(code, reason)

    def _give_up(self) -> None:
        if self._connection is None:
            self._stop_connecting()
        else:
            self._connection.transport.abort()

    def _stop_connecting(self) -> None:
        timeout = self._connect_timeout
        # One that has run out, or whose connect is over, cannot be changed.
        if timeout is not None and not timeout.expired() and not self._settled.is_set():
            timeout.reschedule(asyncio.get_running_loop().time())


class _Connect(connect):
    """A connect that follows no redirect: it could lead past allow_urls."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _Connection(ClientConnection):
    """A connection that tells its sink when the transport's buffer is full and when it is not."""

    def __init__(self, sink: Sink, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sink = sink

    async def drain(self) -> None:
        """Do not wait: a ping's time limit must run also when the server reads nothing."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sink.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._sink.resume()
