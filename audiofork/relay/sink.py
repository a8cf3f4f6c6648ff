"""One WebSocket client: connects, sends each frame at once, keeps what cannot go yet.

The library does the handshake, TLS, pings, receiving and closing. Binary frames are built here:
its `send()` is a coroutine and costs three times as much (docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import contextlib
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
from audiofork.errors import SinkError
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

    Attributes:
        on_open: Called when the server has accepted a connection and got what waited for it.
        on_retry: Called with the number of the next attempt and why the last one failed.
        on_text: Called with each text message of the server.
        reconnects: How often a lost server came back.
        dropped_in_gap: Frames that were lost when it came back last, since it took none.
    """

    def __init__(self, url: str, config: WebSocketConfig, tls: ssl.SSLContext) -> None:
        self._url = url
        self._config = config
        self._tls = tls if url.lower().startswith("wss:") else None
        self._connection: _Connection | None = None
        self._connect_timeout: asyncio.Timeout | None = None
        self._settled = asyncio.Event()  # open, or never to be open again
        self._flushed = asyncio.Event()  # nothing waits any more, or it cannot be sent
        self._hurry = asyncio.Event()  # no time to wait between attempts
        self._closing = False
        self._writable = False
        self._open_s = 0.0
        self._was_open = False
        self.on_open: Callable[[], None] = lambda: None
        self.on_retry: Callable[[int, str], None] = lambda attempt, why: None
        self.on_text: Callable[[str], None] = lambda text: None
        self.backlog = Backlog(config.backlog)
        self.frames_sent = 0
        self.reconnects = 0
        self.dropped_in_gap = 0
        self._dropped_before = 0  # when the server took no more

    async def run(self) -> None:
        """Connect, listen to the server, connect again when it is lost.

        Returns when `close()` ended it.

        Raises:
            SinkError: It did not come about or was lost, and there is no sense in another attempt.
        """
        config = self._config
        retries = retry.Retries(config.reconnect_attempts, config.reconnect_interval)
        try:
            while True:
                try:
                    await self._serve()
                    return
                except SinkError as exc:
                    await self._before_next(retries, exc)
        finally:
            self._settled.set()

    async def _before_next(self, retries: retry.Retries, error: SinkError) -> None:
        """Wait until the next attempt is due; raise the error if there is to be none."""
        wait_s = retries.next_wait_s(error, self._open_s)
        if wait_s is None or self._hurry.is_set():
            raise error
        self._settled.clear()
        self.on_retry(retries.attempt, str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurry.wait()

    async def _serve(self) -> None:
        """Live through one connection; return when `close()` ended it, or raise SinkError."""
        self._open_s = 0.0
        if self._closing and not self.backlog:
            return
        connection = await self._connect()
        if connection is None:
            return
        opened = asyncio.get_running_loop().time()
        self._settled.set()
        self._flush()
        self.on_open()
        try:
            while True:
                message = await connection.recv()
                if isinstance(message, str):
                    self.on_text(message)
        except ConnectionClosed as exc:
            self._open_s = asyncio.get_running_loop().time() - opened
            self.pause()
            self._connection = None
            self._flushed.set()
            if not self._closing:
                raise retry.closure(exc) from exc

    async def _connect(self) -> _Connection | None:
        try:
            async with asyncio.timeout(self._config.connect_timeout) as self._connect_timeout:
                connection = await _Connect(
                    self._url,
                    ssl=self._tls,
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
        finally:
            self._connect_timeout = None
        assert isinstance(connection, _Connection)
        self.reconnects += self._was_open
        self._was_open = True
        self.dropped_in_gap = self.backlog.dropped - self._dropped_before
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
        """Stop sending: the server does not keep up, or is lost."""
        if self._writable:
            self._writable = False
            self._dropped_before = self.backlog.dropped

    def resume(self) -> None:
        """Send again, the backlog first."""
        self._writable = True
        self._flush()

    def _flush(self) -> None:
        """Send what waits, in order, as far as the server takes it."""
        connection = self._connection
        if connection is None:
            return
        # A transport that drains may belong to a connection that is closing already.
        while self._writable and self.backlog and connection.protocol.state is OPEN:
            connection.transport.write(binary_frame(self.backlog.take()))
            self.frames_sent += 1
        if not self.backlog:
            self._flushed.set()

    async def close(self, code: int, reason: str) -> None:
        """Give the server what still waits, then close; takes CLOSE_TIMEOUT_S at most.

        A connect that is under way is waited for if frames wait for it, else given up; there
        are no further attempts.
        """
        self._closing = True
        self._hurry.set()
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
        if self._connection is not None:
            await self._connection.close(code, reason)

    def _give_up(self) -> None:
        if self._connection is None:
            self._stop_connecting()
        else:
            self._connection.transport.abort()

    def _stop_connecting(self) -> None:
        timeout = self._connect_timeout
        if timeout is not None and not timeout.expired():  # one that has run out cannot be changed
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
