"""Runs the AMI front, which lets clients of app_audiofork work unchanged.

It listens in place of Asterisk, and opens a connection to Asterisk for each client. All bytes pass
unchanged, except the actions of app_audiofork. Those are answered here, after Asterisk has
confirmed that the client's session has the permission. As in Asterisk, the actions of a client are
executed one after the other: during an action of app_audiofork the next ones wait, and events pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from audiofork.config import Address, AsteriskConfig, FrontConfig
from audiofork.doors.ami_front_protocol import AsteriskStream, ClientStream, OwnAction
from audiofork.errors import AmiError, ConfigError, RequestRefused
from audiofork.forks.requests import Origin, Request, parse_request
from audiofork.log import Refusals
from audiofork.text import A_BUG, why
from audiofork.tls_contexts import client_context, server_context

log = logging.getLogger(__name__)

Ask = Callable[[Request], Awaitable[list[str]]]

CONNECT_TIMEOUT_S = 5.0
# With these and HELD_BYTES of ami_front_protocol.py a client takes 64 KiB of memory at most. (With
# TLS asyncio's buffers are added, which have limits of their own.)
READ_BYTES = 4 * 1024
FULL_BYTES = 12 * 1024
# A client that does not read FULL_BYTES within this time is disconnected. Asterisk itself waits
# less: by default it disconnects one that reads nothing for 0.1 s (writetimeout), once the kernel's
# buffers are full.
STALL_S = 5.0
LINGER_S = 30.0  # for Asterisk to execute what a client sent before it disconnected
CLOSE_S = 0.2
TLS_TIMEOUT_S = 5.0


class Front:
    """Listens for AMI clients, and keeps a session for each.

    Owned by the daemon; call `start` once, `close` any number of times.

    Args:
        config: Where to listen, and the certificate.
        asterisk: Where Asterisk's AMI is.
        ask: Executes a request and returns the ids of its forks; raises RequestRefused or AmiError.

    Attributes:
        refusals: Counts the refused actions of all sessions.
    """

    def __init__(self, config: FrontConfig, asterisk: AsteriskConfig, ask: Ask) -> None:
        self._config = config
        self._asterisk = asterisk
        self._ask = ask
        self._server: asyncio.Server | None = None
        self._sessions: set[_Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asterisk_tls: ssl.SSLContext | None = None
        self._trouble = ""
        self.refusals = Refusals(log, "actions of AMI clients refused")

    async def start(self) -> Address:
        """Listen; return the address. The kernel chooses the port if that is 0.

        Raises:
            OSError: The address cannot be used.
            ConfigError: A certificate cannot be used, or no address is configured.
        """
        if self._config.listen is None:
            raise ConfigError("[front] listen: missing")
        tls = _server_tls(self._config)
        self._asterisk_tls = _asterisk_tls(self._asterisk)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Session(self).client,
            self._config.listen.host,
            self._config.listen.port,
            ssl=tls,
            ssl_handshake_timeout=TLS_TIMEOUT_S if tls else None,
            ssl_shutdown_timeout=TLS_TIMEOUT_S if tls else None,
        )
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    async def close(self) -> None:
        """Stop listening and close every session; takes at most three times CLOSE_S."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for session in list(self._sessions):
            session.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._wait_over()
        for session in list(self._sessions):
            session.abort()
        await self._wait_over()
        with contextlib.suppress(TimeoutError):  # a client that is shaking hands keeps it open
            async with asyncio.timeout(CLOSE_S):
                await server.wait_closed()

    async def _wait_over(self) -> None:
        waits = [session.over.wait() for session in self._sessions]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*waits)

    # --- For the sessions ---

    def add(self, session: _Session) -> None:
        """Add a session, to be closed with the front."""
        self._sessions.add(session)

    def remove(self, session: _Session) -> None:
        """Forget a session that is over."""
        self._sessions.discard(session)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task, which is cancelled when the front closes."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def connect(self, end: _End) -> bool:
        """Connect an end to Asterisk; return whether that worked. Logs each failure only once."""
        config, tls = self._asterisk, self._asterisk_tls
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: end,
                    config.host,
                    config.port,
                    ssl=tls,
                    ssl_shutdown_timeout=TLS_TIMEOUT_S if tls else None,
                )
        except (OSError, TimeoutError, ValueError) as exc:  # ValueError: an invalid host name
            text = why(exc, "[asterisk] ca_file")
            if text != self._trouble:
                where = Address(config.host, config.port)
                log.warning("AMI front: no connection to Asterisk at %s: %s", where, text)
            self._trouble = text
            return False
        self._trouble = ""
        return True

    async def answer(self, client: str, action: OwnAction) -> bytes:
        """Execute an action of app_audiofork; return the answer for the client.

        Args:
            client: The address of the client.
            action: The action.
        """
        try:
            request = parse_request(action.request, Origin("front", client))
            return action.success(await self._ask(request))
        except (RequestRefused, AmiError) as exc:
            channel = action.fields.get("channel", "")
            if self.refusals.count():
                text = "%s of AMI client %s for %r: %s"
                log.warning(text, action.name, client, channel, exc)
            return action.error(str(exc))
        except Exception:
            log.exception("%s of AMI client %s could not be handled", action.name, client)
            return action.error(A_BUG)


class _Session:
    """A client and its connection to Asterisk. Owned by the front until both ends are closed.

    Attributes:
        client: The connection to the client.
        asterisk: The connection to Asterisk.
        over: Set when both are closed.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self.client = _End(self._on_client_bytes, self._on_client_eof, self._on_client_lost)
        self.asterisk = _End(self._on_asterisk_bytes, lambda: False, self._on_asterisk_lost)
        self.client.peer, self.asterisk.peer = self.asterisk, self.client
        self.client.on_made = self._on_client
        self.client.on_stalled = self._on_client_stalled
        self.over = asyncio.Event()
        self._client_stream = ClientStream()
        self._asterisk_stream = AsteriskStream()
        self._parts: deque[bytes | OwnAction] = deque()
        self._own: OwnAction | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connected = False
        self._client_done = False
        self._last_call: asyncio.TimerHandle | None = None
        # Random: to each client Asterisk sends events with the ActionIDs of other sessions, too.
        self._probe_ids = (f"audiofork-{secrets.token_hex(8)}-{n}" for n in itertools.count(1))

    # --- From the client to Asterisk ---

    def _on_client(self) -> None:
        self._front.add(self)
        self._connecting = self._front.spawn(self._connect())

    async def _connect(self) -> None:
        if await self._front.connect(self.asterisk):
            log.debug("AMI client %s connected", self.client.name)
            self._connected = True
            self.client.release("connecting")
            self._pump()
        else:
            self.client.abort()

    def _on_client_bytes(self, chunk: bytes) -> None:
        if not self._connected:
            # Not in connection_made: uvloop ignores it there.
            self.client.hold("connecting")
        self._parts.extend(self._client_stream.feed(chunk))
        self._pump()

    def _on_client_eof(self) -> bool:
        if not self._client_done:
            self._client_done = True
            self._parts.append(self._client_stream.end())
            self._pump()
            self._end_within(LINGER_S)
        return True  # keeps the connection open for the answers to its last actions

    def _pump(self) -> None:
        """Forward what the client has sent, up to the next action of app_audiofork."""
        while self._parts and self._connected and self._own is None:
            part = self._parts.popleft()
            if isinstance(part, bytes):
                self.asterisk.write(part)
            else:
                self._begin(part)
        if self._client_done and self._connected and self._own is None:
            self.asterisk.finish()

    def _begin(self, action: OwnAction) -> None:
        """Ask Asterisk whether the client has the permission; the answer goes to `_decide`."""
        self._own = action
        self.client.hold("own action")
        probe_id = next(self._probe_ids)
        self._asterisk_stream.expect(probe_id)
        self.asterisk.write(action.probe(probe_id))

    def _decide(self, refusal: str) -> None:
        """Execute or refuse the action, now that the client has the answers to all earlier ones."""
        assert self._own is not None
        refusal = self._own.fault or refusal
        if refusal:
            if self._front.refusals.count():
                whose = (self._own.name, self.client.name)
                log.warning("%s of AMI client %s: %s", *whose, refusal)
            self._answer(self._own.refusal(refusal))
        else:
            # Not cancelled when the client disconnects: Asterisk, too, finishes what it has begun.
            self._front.spawn(self._grant(self._own))

    async def _grant(self, action: OwnAction) -> None:
        self._answer(await self._front.answer(self.client.name, action))

    def _answer(self, message: bytes) -> None:
        self.client.write(self._asterisk_stream.insert(message))
        self._own = None
        self.client.release("own action")
        self._pump()

    # --- From Asterisk to the client ---

    def _on_asterisk_bytes(self, chunk: bytes) -> None:
        passed, refusal = self._asterisk_stream.feed(chunk)
        self.client.write(passed)
        if refusal is not None:
            self._decide(refusal)

    # --- The end ---

    def _on_client_stalled(self) -> None:
        log.warning("AMI client %s disconnected: it reads nothing", self.client.name)
        self.abort()

    def _on_client_lost(self) -> None:
        log.debug("AMI client %s is gone", self.client.name)
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        self._on_client_eof()
        self._check_over()

    def _on_asterisk_lost(self) -> None:
        self.client.close()
        self._end_within(STALL_S)
        self._check_over()

    def _end_within(self, limit_s: float) -> None:
        """Abort the session if both ends are not closed within this time, in seconds."""
        if self._last_call is not None:
            self._last_call.cancel()
        self._last_call = asyncio.get_running_loop().call_later(limit_s, self.abort)

    def _check_over(self) -> None:
        if self.client.closed and self.asterisk.closed:
            if self._last_call is not None:
                self._last_call.cancel()
            self._front.remove(self)
            self.over.set()

    def close(self) -> None:
        """Close both ends after what was written has been sent."""
        self.asterisk.close()
        self.client.close()

    def abort(self) -> None:
        """Close both ends now."""
        self.asterisk.abort()
        self.client.abort()


class _End(asyncio.BufferedProtocol):
    """One of the two connections of a session; stops reading while the other one is full.

    Args:
        on_bytes: Called with the bytes that were read.
        on_eof: Called when the far side sends no more; returns whether to stay open for writing.
        on_lost: Called when the connection is closed.

    Attributes:
        peer: The other connection.
        on_made: Called when the connection is open.
        on_stalled: Called when the far side has not read for STALL_S.
        closed: Whether there is no connection, before it is open or after it was closed.
        name: The address of the far side, for the log.
    """

    peer: _End

    def __init__(
        self,
        on_bytes: Callable[[bytes], None],
        on_eof: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self._on_bytes = on_bytes
        self._on_eof = on_eof
        self._on_lost = on_lost
        self.on_made: Callable[[], None] = lambda: None
        self.on_stalled: Callable[[], None] = lambda: None
        self.closed = True
        self.name = ""
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._holds: set[str] = set()
        self._stall_timer: asyncio.TimerHandle | None = None

    # --- Called by the loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.closed = False
        peer = transport.get_extra_info("peername") or ("(gone)", 0)
        self.name = str(Address(*peer[:2]))
        self._transport.set_write_buffer_limits(high=FULL_BYTES)
        self.on_made()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self._on_bytes(bytes(self._buffer[:count]))

    def eof_received(self) -> bool:
        assert self._transport is not None
        return self._on_eof() and self._transport.can_write_eof()  # TLS has no half-open state

    def connection_lost(self, _exc: Exception | None) -> None:
        self.closed = True
        self.resume_writing()
        self._on_lost()

    def pause_writing(self) -> None:
        self.peer.hold("full")
        loop = asyncio.get_running_loop()
        self._stall_timer = loop.call_later(STALL_S, lambda: self.on_stalled())

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self.peer.release("full")

    # --- Called by the session ---

    def hold(self, reason: str) -> None:
        """Stop reading, for a reason that `release` names."""
        self._holds.add(reason)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self, reason: str) -> None:
        """Drop a reason to stop reading; read again if it was the last one."""
        self._holds.discard(reason)
        if self._transport is not None and not self._holds and not self._transport.is_closing():
            self._transport.resume_reading()

    def write(self, piece: bytes) -> None:
        """Send bytes; they are dropped if there is no connection."""
        if piece and self._transport is not None and not self._transport.is_closing():
            self._transport.write(piece)

    def finish(self) -> None:
        """Send no more, and read on until the far side closes; with TLS, close."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def close(self) -> None:
        """Close after what was written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()


# --- TLS -----------------------------------------------------------------------------------------


def _server_tls(config: FrontConfig) -> ssl.SSLContext | None:
    if not config.tls_cert_file:
        if config.tls_key_file:
            raise ConfigError("[front] tls_key_file: needs tls_cert_file")
        return None
    try:
        return server_context(config.tls_cert_file, config.tls_key_file)
    except OSError as exc:
        raise ConfigError(f"[front] tls_cert_file, tls_key_file: {why(exc)}") from exc


def _asterisk_tls(config: AsteriskConfig) -> ssl.SSLContext | None:
    if not config.tls:
        return None
    try:
        return client_context(config.ca_file)
    except OSError as exc:
        raise ConfigError(f"[asterisk] ca_file: {why(exc)}") from exc
