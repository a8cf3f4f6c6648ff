"""The connections of the HTTP door: how many there are, how slow they may be, bad requests.

The door accepts by itself, so that the limits count a client from its first packet, before TLS:
asyncio's own server would let any number of clients shake hands.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web, web_protocol
from aiohttp.http_exceptions import HttpProcessingError

from audiofork.doors.http.problems import Problem, a_bug
from audiofork.doors.http.sending import harden
from audiofork.log import CounterLine, Refusals
from audiofork.rate_limit import Allowance, Limit

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
MAX_OF_ADDRESS = 128  # a proxy has one address, and all its clients
# For the headers of a request, and between two requests.
IDLE_S = 15.0
TLS_TIMEOUT_S = 5.0
# A client that takes nothing for so long, while something waits for it, is dropped.
STALL_S = 10.0
# What the kernel may keep of what a client does not read; it doubles the number.
SEND_BUFFER_BYTES = 32 * 1024
MAX_LINE_BYTES = 8190
MAX_HEADERS = 64
CLOSE_S = 0.4
# What the client of a WebSocket may say: pings, pongs and a close, of 131 bytes at most each. Of
# empty frames, which cost most, these are 85 at once, and then 21 a second.
SAID = Limit("bytes", 128, 512)
_NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(web.RequestHandler):
    """A connection. Drops a client that does not read; answers bad requests as a problem."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=IDLE_S,
            access_log=cast(Any, None),
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=1.0,
            auto_decompress=False,
        )
        self._owner = server
        self._stall_timer: asyncio.TimerHandle | None = None
        self._open_transport: asyncio.Transport | None = None
        self._is_refused = False
        self._said = Allowance(SAID, loop.time)

    def data_received(self, data: bytes) -> None:
        # What follows a request that is no HTTP is not looked at: aiohttp would keep an error for
        # each read, with the read in it, and uvloop reads 8 MB in one turn.
        if self._is_refused:
            return
        was_upgraded = self._upgraded
        if was_upgraded and not self._may_say(len(data)):
            return
        super().data_received(data)
        if self._upgraded and not was_upgraded and not self._may_say(len(self._message_tail)):
            return
        error, payload = self._messages[-1] if self._messages else (None, None)
        if isinstance(error, web_protocol._ErrInfo) and payload is not None:
            # The error quotes the read, and its traceback holds it, until they are collected.
            bare = web_protocol._ErrInfo(error.status, HttpProcessingError(), "")
            self._messages[-1] = (bare, payload)
            self.read_no_more()

    def _may_say(self, size: int) -> bool:
        """Return whether the client of a WebSocket may say so much; drop it if it may not.

        It has nothing to say, but each of its frames costs time: so this is asked before one is
        looked at, and in a read that is too much none is.
        """
        if self._said.take(size):
            return True
        self._is_refused = True
        self._message_tail = b""  # of a handshake that is not answered yet
        self._drop("it says too much to a WebSocket that only speaks")
        return False

    def read_no_more(self) -> None:
        """Leave what the client still sends to the kernel, until the connection is closed.

        For a request that was answered before its body was read: aiohttp would read on for
        `lingering_time`, and each read of a fast client is 8 MB.
        """
        self._is_refused = True
        if self._open_transport is not None and not self._open_transport.is_closing():
            self._open_transport.pause_reading()

    def resume_reading(self, *how: bool, **more: bool) -> None:
        if not self._is_refused:
            super().resume_reading(*how, **more)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._open_transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        loop = asyncio.get_running_loop()
        why = f"it reads nothing for {STALL_S:g} s"
        self._stall_timer = loop.call_later(STALL_S, self._drop, why)

    def resume_writing(self) -> None:
        self._forget_stall()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_stall()
        super().connection_lost(exc)
        self._owner.on_lost(self)

    def _forget_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _drop(self, why: str) -> None:
        if self._open_transport is not None and not self._open_transport.is_closing():
            self._owner.report_dropped(why, self._open_transport)
            self._open_transport.abort()

    def abort(self) -> None:
        """Close now, and send nothing more."""
        if self._open_transport is not None:
            self._open_transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 (it quotes the request)
    ) -> web.StreamResponse:
        """Answer a request that is no HTTP, or a bug of a handler; nothing of it is repeated.

        Raises:
            ConnectionError: There is nobody to answer, or a part of the answer was sent already.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if status >= 500 and exc is not None and self._owner.bugs.count():
            log.error("a request could not be handled", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer was sent already")
        problem = a_bug() if status >= 500 else Problem(status, "the request is not valid HTTP")
        response = problem.response("")
        harden(response)
        response.force_close()
        return response


class Server(web.Server):
    """Listens and accepts, up to the limits.

    Args:
        handle: Answers a request; never raises.

    Attributes:
        bugs: Counts the requests that could not be handled; the first of a second is logged.
    """

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle, handler_cancellation=True, loop=asyncio.get_running_loop())
        self._addresses: Counter[str] = Counter()
        self._address_of: dict[Connection, str] = {}
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._greetings: set[asyncio.Task[None]] = set()
        self._refused = CounterLine(log, "HTTP connections refused")
        self._dropped = CounterLine(log, "HTTP clients dropped")
        self.bugs = Refusals(log, "HTTP requests that could not be handled")

    def __call__(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    def serve(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept the connections of a listening socket, which `close` closes."""
        listening.setblocking(False)
        # Those that are accepted have it, too.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._listening.append(listening)
        self._accepting.append(asyncio.create_task(self._accept_all(listening, tls)))

    async def _accept_all(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as exc:
                if exc.errno in _NO_MORE_FILES:
                    self._refused.count("no more files may be opened")
                await asyncio.sleep(0.1)
                continue
            host = str(address[0]) if isinstance(address, tuple) else ""
            if self._admit(host):
                task = asyncio.create_task(self._greet(accepted, host, tls))
                self._greetings.add(task)
                task.add_done_callback(self._greetings.discard)
            else:
                accepted.close()

    def _admit(self, host: str) -> bool:
        """Count a client by its address, unless there are too many."""
        if self._addresses.total() >= MAX_CONNECTIONS:
            self._refused.count(f"from {host or 'the Unix socket'}, {MAX_CONNECTIONS} are open")
            return False
        if host and self._addresses[host] >= MAX_OF_ADDRESS:
            self._refused.count(f"{MAX_OF_ADDRESS} are open from {host}")
            return False
        self._addresses[host] += 1
        return True

    async def _greet(self, accepted: socket.socket, host: str, tls: ssl.SSLContext | None) -> None:
        """Hand a connection over, after its TLS handshake."""
        connection = self()
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=tls,
                ssl_handshake_timeout=TLS_TIMEOUT_S if tls else None,
                ssl_shutdown_timeout=CLOSE_S if tls else None,
            )
        except (OSError, TimeoutError):  # ssl.SSLError among them: no TLS, or an old one
            accepted.close()
            self._leave(host)
        except BaseException:
            accepted.close()
            self._leave(host)
            raise
        else:
            if connection.transport is None:  # lost already
                self._leave(host)
            else:
                self._address_of[connection] = host

    def _leave(self, host: str) -> None:
        self._addresses[host] -= 1
        if self._addresses[host] <= 0:
            del self._addresses[host]

    def on_lost(self, connection: Connection) -> None:
        """Count a connection that is closed."""
        host = self._address_of.pop(connection, None)
        if host is not None:
            self._leave(host)

    def report_dropped(self, why: str, transport: asyncio.Transport) -> None:
        """Log that a client is dropped."""
        peer = transport.get_extra_info("peername")
        whose = str(peer[0]) if isinstance(peer, tuple) and peer else "the Unix socket"
        self._dropped.count(f"{whose}: {why}")

    @property
    def open(self) -> int:
        """How many connections are open, or shake hands."""
        return self._addresses.total()

    async def close(self) -> None:
        """Accept no more, and close all connections within about CLOSE_S."""
        for task in (*self._accepting, *self._greetings):
            task.cancel()
        await asyncio.gather(*self._accepting, *self._greetings, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        self.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * CLOSE_S):
                await self.shutdown(CLOSE_S)
        for connection in list(self._address_of):
            connection.abort()
