"""One WebSocket connection, and how it is opened.

The library does the handshake, pings, receiving and closing. The internals of the library that
this module relies on are listed in tests/relay/test_websockets_internals.py.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.protocol import CONNECTING, OPEN
from websockets.uri import parse_uri

from audiofork import __version__
from audiofork.config import Proxy, WebSocketConfig
from audiofork.link.messages import PLAIN_HANDSHAKE, Handshake
from audiofork.relay.client_tls import TlsContext
from audiofork.relay.handshake_turns import handshake_turns
from audiofork.relay.lookup import lookups
from audiofork.relay.outlet import Outlet
from audiofork.relay.proxy import check_public, failure, open_tunnel, proxy_for
from audiofork.relay.resolve import open_socket
from audiofork.relay.retry import NotInTime
from audiofork.relay.server_limits import (
    MAX_MESSAGE_BYTES,
    POLICY_VIOLATION,
    WORK,
    LimitedProtocol,
)
from audiofork.relay.tcp import TcpTransport
from audiofork.relay.tls import Records, open_tls, run_over
from audiofork.uri import uri_of

USER_AGENT = f"audiofork/{__version__}"
# TCP gives up a server that acknowledges nothing for this time (tcp(7), TCP_USER_TIMEOUT). Pings
# also find such a server, but only after the backlog has overflowed.
UNACKNOWLEDGED_S = 5.0

# Who waits in `drain()`, of all connections: it returns at once.
_NOBODY: deque[asyncio.Future[None]] = deque()

# What a connect waits for, one after the other, and what it may be if it does not come.
_TCP = "no TCP connection"
_PROXY_TCP = "no TCP connection to the proxy"
_PROXY = "no answer of the proxy"
_TURN = "TCP connected, but no turn for TLS"
_TLS = "TCP connected, but no TLS"
_HANDSHAKE = "connected, but no answer to the WebSocket handshake"
_MAY_BE = {
    _TCP: ": a firewall, or a machine that is off",
    _PROXY_TCP: ": a firewall, or a machine that is off",
    _PROXY: ": it hangs, waits for the server, or is another kind of proxy",
    _TURN: ": too many other servers do not answer, or this machine is too busy",
    _TLS: ": the server hangs, or does not speak TLS there",
    _HANDSHAKE: ": the server hangs, or does not speak HTTP there",
}

Hear = Callable[["Connection"], None]


class Connection(ClientConnection):
    """A connection that tells its outlet what it writes, and whether it has room.

    After a close frame of either side, or when the server closes its side of TCP, the connection
    has `close_timeout` seconds to close; then it is aborted.

    Args:
        on_closing: Called once, when an open connection begins to close and takes no more frames.
            Called by the event loop, never from within a method of this class.
        on_lost: Called when it is lost, before `recv()` or any other waiter learns of that.
    """

    # A dictionary of more than 30 attributes shares no keys with others, and takes a kB more.
    # The last two are the library's, which sets them late: the shared keys take no more when there
    # are hundreds of new connections.
    __slots__ = (
        *("_end_timer", "_limited", "_on_closing", "_on_lost", "_outlet"),
        *("recv_messages", "transport"),
    )

    def __init__(
        self,
        outlet: Outlet,
        on_closing: Hear,
        on_lost: Hear,
        protocol: LimitedProtocol,
        **options: Any,
    ) -> None:
        # No queue limit: when a full queue empties, the library resumes reading, even from a
        # server that has been given up. Only the limits here may pause and resume reading.
        super().__init__(protocol, max_queue=None, **options)
        self.drain_waiters = _NOBODY
        self._outlet = outlet
        self._limited = protocol
        self._on_closing = on_closing
        self._on_lost = on_lost
        self._end_timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether frames may be sent: it is open, and no close frame was sent or received."""
        return self.protocol.state is OPEN

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        limit_ms = int(UNACKNOWLEDGED_S * 1000)
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        if records := transport.get_extra_info("tls_records"):
            records.on_costly = self._on_costly

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._on_lost(self)
        super().connection_lost(exc)

    def hand_messages_to(self, take: Callable[[bytes | str], None] | None) -> None:
        """Call `take` with each message from now on, unless one waits for `recv()`; None: stop."""
        waits = self.recv_messages.frames or self.protocol.current_size is not None
        if take is None or not waits:
            self._limited.take = take

    def data_received(self, data: bytes) -> None:
        if self._limited.takes_at_once(data):
            return
        super().data_received(data)
        if self._limited.costs_too_much:
            self.transport.pause_reading()

    def give_up(self, reason: str) -> None:
        """Begin to close a connection to a server that does not do what it has to."""
        self.protocol.fail(POLICY_VIOLATION, reason)
        self.send_data()

    def _on_costly(self) -> None:
        self._limited.give_up(WORK)
        self.send_data()
        self.transport.pause_reading()

    def send_data(self) -> None:
        """Send what the library writes, and count it in the outlet: pings, pongs, the close."""
        for data in filter(None, self.protocol.writes):
            self._outlet.note_control(len(data))
        super().send_data()
        if self.protocol.state not in (CONNECTING, OPEN):
            self._begin_to_end()

    def _begin_to_end(self) -> None:
        self._outlet.shut()
        if self._end_timer is None:
            assert self.close_timeout is not None
            self._end_timer = self.loop.call_later(self.close_timeout, self.transport.abort)
            self.loop.call_soon(self._on_closing, self)

    async def drain(self) -> None:
        """Return at once: the time limit of a ping must run even if the server reads nothing."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._outlet.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._outlet.resume()


class Connector:
    """Opens connections to one server, one after the other.

    Args:
        url: The requested URL; ws or wss.
        tls: The TLS context for a wss server.
        config: Time limits, and the proxy.
        allow_private: Whether the server may have a private address.
        handshake: What is added to the request of the handshake.
        proxy_tls: The TLS context for an https proxy.
        max_bytes: Longest message of the server.
    """

    def __init__(
        self,
        url: str,
        tls: TlsContext,
        config: WebSocketConfig,
        *,
        allow_private: bool,
        handshake: Handshake = PLAIN_HANDSHAKE,
        proxy_tls: ssl.SSLContext | None = None,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._url = url
        self._tls: TlsContext | None = tls if url.lower().startswith("wss:") else None
        self._config = config
        self._allow_private = allow_private
        self._handshake = handshake
        self._proxy_tls = proxy_tls
        self._max_bytes = max_bytes
        self._timeout: asyncio.Timeout | None = None
        self._step = _TCP  # what `open()` waits for
        self._proxy = Proxy()  # what it connects through; none before its first call

    @property
    def tried(self) -> str:
        """What is tried, for people: scheme://host:port, without path and query."""
        scheme, _, rest = self._url.partition("://")
        authority = re.split("[/?#]", rest, maxsplit=1)[0]
        through = f" (by the proxy {self._proxy})" if self._proxy else ""
        return f"{scheme.lower()}://{authority}{through}"

    async def open(
        self, outlet: Outlet, on_closing: Hear, on_lost: Hear, *, close_timeout_s: float
    ) -> Connection:
        """Return a connection that the server has accepted.

        The library's own `connect` is not used: it does TLS in the event loop, and follows
        redirects, which could lead to a server that allow_urls forbids.

        Args:
            outlet: Counts what the connection writes; the caller attaches it later.
            on_closing: See `Connection`.
            on_lost: See `Connection`.
            close_timeout_s: How long the connection's close may take, in seconds.

        Raises:
            TimeoutError: It took too long, or `give_up()` was called; NotInTime is a subclass.
            Exception: Any failure that `retry.connect_failure` can turn into a SinkError.
        """
        uri = parse_uri(uri_of(self._url))
        self._proxy = proxy_for(uri.host, self._config)
        try:
            async with asyncio.timeout(self._config.connect_timeout) as self._timeout:
                if isinstance(self._tls, asyncio.Future):
                    self._tls = await asyncio.shield(self._tls)
                self._step = _TCP
                connected, outer = await self._connect(uri.host, uri.port)
                connection = Connection(
                    outlet,
                    on_closing,
                    on_lost,
                    LimitedProtocol(
                        uri,
                        subprotocols=self._handshake.subprotocols,
                        max_message_bytes=self._max_bytes,
                    ),
                    ping_interval=self._config.ping_interval,
                    ping_timeout=self._config.ping_interval,
                    close_timeout=close_timeout_s,
                    write_limit=outlet.budget_bytes,
                )
                await self._shake_hands(connection, connected, outer, uri.host)
                return connection
        except TimeoutError as exc:
            raise NotInTime(self._why_late(uri.host)) from exc
        finally:
            self._timeout = None

    async def _connect(self, host: str, port: int) -> tuple[socket.socket, Records | None]:
        """Return a connected socket; and the TLS with the proxy, if it is an https proxy."""
        if not self._proxy:
            return await open_socket(host, port, allow_private=self._allow_private), None
        if not self._allow_private:
            check_public(host)
        try:
            return await self._connect_by_proxy(self._proxy, host, port)
        except TimeoutError:
            raise
        except Exception as exc:
            raise failure(exc, self.tried) from exc

    async def _connect_by_proxy(
        self, proxy: Proxy, host: str, port: int
    ) -> tuple[socket.socket, Records | None]:
        self._step = _PROXY_TCP
        # The administrator names the proxy, not who starts forks.
        connected = await open_socket(proxy.host, proxy.port, allow_private=True)
        try:
            self._step = _PROXY
            return connected, await open_tunnel(proxy, connected, host, port, self._proxy_tls)
        except BaseException:
            connected.close()
            raise

    def _why_late(self, host: str) -> str:
        """Return what was still waited for when the time was over."""
        if isinstance(self._tls, asyncio.Future):
            return "the files of option T are still being read"
        host = self._proxy.host or host
        if lookups().is_under_way(host):
            return f"the name {host} is still being looked up"
        limit_s = self._config.connect_timeout
        return f"{self._step} within {limit_s:g} s{_MAY_BE[self._step]}"

    async def _shake_hands(
        self,
        connection: Connection,
        connected: socket.socket,
        outer: Records | None,
        host: str,
    ) -> None:
        if self._tls is not None:
            assert isinstance(self._tls, ssl.SSLContext), "its files have been read"
            await self._begin_tls(connection, connected, outer, host, self._tls)
        elif outer is not None:
            run_over(connected, outer, connection)
        else:
            TcpTransport(connected, connection).begin()
        self._step = _HANDSHAKE
        try:
            await connection.handshake(self._handshake.headers, USER_AGENT)
        except BaseException:
            connection.transport.abort()
            raise
        for message in (connection.request, connection.response):
            if message is not None:
                message.headers.clear()  # 2 kB, which nobody reads any more
        connection.start_keepalive()

    async def _begin_tls(
        self,
        connection: Connection,
        connected: socket.socket,
        outer: Records | None,
        host: str,
        tls: ssl.SSLContext,
    ) -> None:
        self._step = _TURN
        try:
            async with handshake_turns():
                self._step = _TLS
                await open_tls(connected, tls, host, connection, outer)
        finally:
            if self._step == _TURN:  # it was not given one; else `open_tls` closes the socket
                connected.close()

    def give_up(self) -> None:
        """Make a running `open()` raise TimeoutError now."""
        timeout = self._timeout
        if timeout is not None and not timeout.expired():  # an expired one cannot be rescheduled
            timeout.reschedule(asyncio.get_running_loop().time())
