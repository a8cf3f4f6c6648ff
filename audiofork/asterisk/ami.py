"""The connection to Asterisk's manager interface (AMI): reconnects, and limits actions in time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

from audiofork.asterisk.ami_protocol import Event, Protocol
from audiofork.asterisk.reconnecting import ReconnectingClient
from audiofork.asterisk.snapshots import Headers
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.config import AsteriskConfig
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiLoginRefused,
    AmiTimeout,
    AmiUnavailable,
)
from audiofork.text import NOT_TLS, why
from audiofork.tls_contexts import client_context

log = logging.getLogger(__name__)

ACTION_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
# Each refused login writes a line to Asterisk's security log, and tools may ban our address for it.
LOGIN_RETRY_S = 60.0
NO_SECRET = (
    "no secret for Asterisk's manager interface: set [asterisk] secret_file (`audiofork setup` "
    "does all of it), then systemctl restart audiofork"
)

OnError = Callable[[AmiError], None]


class Ami(ReconnectingClient):
    """The AMI connection; `run()` opens it, and opens it again when it is lost.

    Owned by the daemon. `on_event` is called with each event; `on_up` is awaited after each login.
    An exception in either is logged, and harms neither the connection nor other events.

    Args:
        config: Where Asterisk is, and how to log in.
        on_event: Called with each typed event.
        on_up: Awaited after each login.

    Attributes:
        version: The version of the connected Asterisk, or of the last one.
        asterisk_started: Identifies the run of the connected Asterisk, or of the last one: the
            local time of its start. Empty from a login until it is known, which is before `on_up`,
            and if Asterisk does not report it.
    """

    def __init__(
        self,
        config: AsteriskConfig,
        on_event: Callable[[Event], None],
        on_up: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__("not connected to Asterisk yet", log)
        self._config = config
        self._on_event = on_event
        self._on_up = on_up
        self._connection: _AmiConnection | None = None
        self.version = UNKNOWN
        self.asterisk_started = ""

    @property
    def is_up(self) -> bool:
        return self._connection is not None

    @property
    def rtt_s(self) -> float:
        """The round trip of the latest ping, in seconds; 0: none was answered yet."""
        return self._connection.rtt_s if self._connection is not None else 0.0

    def take_secret(self, secret: str) -> None:
        """Use another secret from the next login on; an open connection stays open."""
        self._config = dataclasses.replace(self._config, secret=secret)

    # --- Actions ---

    async def action(
        self, name: str, headers: Iterable[tuple[str, str]], *, action_id: str = ""
    ) -> dict[str, str]:
        """Send an action and return the headers of its answer, with names in lower case.

        Raises:
            ValueError: A name or value contains control characters, or a line is too long.
            AmiUnavailable: There is no connection, or it was lost before the answer.
            AmiTimeout: No answer within ACTION_TIMEOUT_S.
            AmiActionFailed: The answer is an error.
        """
        answer = await self._send(name, headers, action_id=action_id, as_list=False)
        return {key.lower(): str(value) for key, value in answer.items()}

    async def list(
        self, name: str, headers: Iterable[tuple[str, str]] = ()
    ) -> list[dict[str, str]]:
        """Send an action whose answer is a list, and return the events of the list.

        Raises: as `action`.
        """
        answer = await self._send(name, headers, as_list=True)
        return [
            {key.lower(): str(value) for key, value in event.items()}
            for event in answer[1:-1]  # without the response and the closing ...Complete event
        ]

    async def _send(
        self, name: str, headers: Iterable[tuple[str, str]], *, as_list: bool, action_id: str = ""
    ) -> Any:
        if self._connection is None:
            raise AmiUnavailable(self.status)
        return await self._connection.send(name, headers, as_list=as_list, action_id=action_id)

    async def ask_version(self) -> Version:
        """Return the version of Asterisk; UNKNOWN if this user may not ask.

        Raises: as `action`, except AmiActionFailed.
        """
        try:
            answer = await self.action("CoreSettings", [])
        except AmiActionFailed:
            return UNKNOWN
        return Version.parse(answer.get("asteriskversion", ""))

    def post(self, name: str, headers: Iterable[tuple[str, str]], on_error: OnError) -> None:
        """Send an action now, without waiting; call `on_error` if it fails."""
        try:
            if self._connection is None:
                raise AmiUnavailable(self.status)
            answered = self._connection.start(name, headers)
        except AmiError as exc:
            on_error(exc)
            return
        answered.add_done_callback(functools.partial(_tell_error, name, on_error))

    def raise_event(self, name: str, headers: Iterable[tuple[str, str]]) -> None:
        """Send a UserEvent now, without waiting; without a connection, log that it is lost.

        The event has an ActionID only if `headers` has one. That is the requester's ActionID, so
        the answer cannot be matched to this action. An error in the answer is logged.
        """
        if self._connection is None:
            log.warning("event %s is lost: %s", name, self.status)
            return
        self._connection.write([("Action", "UserEvent"), ("UserEvent", name), *headers])

    async def log_off(self) -> None:
        """Log off; when this returns, Asterisk has executed all earlier actions.

        Raises: as `action`.
        """
        await self.action("Logoff", [])

    def another(self) -> contextlib.AbstractAsyncContextManager[Ami]:
        """Return a further connection, for actions that keep one busy: see `connected`."""
        return connected(self._config, lambda _event: None)

    # --- Connecting ---

    async def run(self) -> None:
        """Connect, log in and watch the connection; reconnect when it is lost; until cancelled."""
        while True:
            try:
                await self._connect_once()
            except AmiLoginRefused as exc:
                self._say(logging.ERROR, f"{exc}; next try in {LOGIN_RETRY_S:g} s")
                await self._pause(LOGIN_RETRY_S)
            # ValueError: the configured host is not a valid name, or the secret is too long.
            except (OSError, TimeoutError, AmiError, ValueError) as exc:
                where = f"{self._config.host}:{self._config.port}"
                self._say(logging.WARNING, f"no connection to Asterisk at {where}: {_reason(exc)}")
                await self._pause_longer()

    async def _connect_once(self) -> None:
        """Open and serve one connection; raise the exception that says why it ended."""
        self._begin_attempt()
        connection = _AmiConnection(self._config, self._guarded_event)
        try:
            await connection.open()
            self.asterisk_started = ""  # requests may come before the answer to CoreStatus
            self._connection = connection
            self._on_success()
            self.version = await self.ask_version()
            self.asterisk_started = await self._started(connection)
            self._say(logging.INFO, f"connected to Asterisk {self.version}")
            try:
                await self._on_up()
            except AmiError as exc:
                log.warning("after the login to Asterisk: %s", exc)
            except Exception:
                log.exception("unexpected error after the login to Asterisk")
            await connection.watch()
        finally:
            self._connection = None
            connection.close()

    async def _started(self, connection: _AmiConnection) -> str:
        try:
            answer = await connection.send("CoreStatus", [])
        except AmiActionFailed:
            return ""
        return f"{answer.corestartupdate} {answer.corestartuptime}".strip()

    def _guarded_event(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            log.exception("an event could not be handled: %s", type(event).__name__)


@contextlib.asynccontextmanager
async def connected(
    config: AsteriskConfig, on_event: Callable[[Event], None]
) -> AsyncIterator[Ami]:
    """Connect and log in once, without reconnecting, for a caller that asks a few questions.

    Raises:
        OSError, TimeoutError: The connect failed.
        ValueError: The configured host is not a valid name, or the secret is too long.
        AmiError: AmiLoginRefused, or Asterisk closed the connection.
    """

    async def nothing_to_do() -> None: ...

    ami = Ami(config, on_event, nothing_to_do)
    connection = _AmiConnection(config, ami._guarded_event)
    try:
        await connection.open()
        ami._connection = connection
        yield ami
    finally:
        ami._connection = None
        connection.close()


def _tell_error(name: str, on_error: OnError, answered: asyncio.Future[Any]) -> None:
    """Check the answer to an action that no coroutine waits for; call `on_error` if it failed."""
    if answered.cancelled():
        return
    exc = answered.exception()
    if isinstance(exc, AmiError):
        on_error(exc)
    elif exc is None and not answered.result().success:
        on_error(AmiActionFailed(name, str(answered.result().message)))


def _reason(exc: Exception) -> str:
    reason = why(exc, "[asterisk] ca_file")
    if isinstance(exc, ssl.SSLError) and exc.reason in NOT_TLS:
        return f"{reason}; with tls = yes [asterisk] port is that of tlsbindaddr in manager.conf"
    if isinstance(exc, ConnectionRefusedError):
        return f"{reason}; is Asterisk running, and does manager.conf say enabled = yes?"
    return reason


def _tls_of(config: AsteriskConfig) -> ssl.SSLContext | None:
    if not config.tls:
        return None
    try:
        return client_context(config.ca_file)
    except OSError as exc:
        raise AmiUnavailable(f"[asterisk] ca_file: {why(exc)}") from exc


class _AmiConnection:
    """One AMI connection, from connect to close; never used again after it is lost.

    Attributes:
        rtt_s: The round trip of the latest ping, in seconds; 0: none was answered yet.
    """

    def __init__(self, config: AsteriskConfig, on_event: Callable[[Event], None]) -> None:
        self._config = config
        self._on_event = on_event
        self._protocol: Protocol | None = None
        self._lost = asyncio.Event()
        self.rtt_s = 0.0

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            OSError, TimeoutError: The connect failed.
            AmiLoginRefused: There is no secret, or Asterisk does not accept it or the username.
            AmiUnavailable: The authorities for TLS cannot be used.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        if not config.secret:
            raise AmiLoginRefused(NO_SECRET)
        tls = _tls_of(config)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, protocol = await loop.create_connection(
                lambda: Protocol(self._on_event, self._on_lost), config.host, config.port, ssl=tls
            )
        self._protocol = protocol
        try:
            await self.send("Login", [("Username", config.username), ("Secret", config.secret)])
        except AmiActionFailed as exc:
            raise AmiLoginRefused(
                f"Asterisk refused the login of {config.username}: {exc.message}; "
                "check [asterisk] username and secret against manager.conf"
            ) from exc

    async def watch(self) -> None:
        """Ping until the connection is lost.

        Raises:
            AmiError: Always; it says how the connection was lost.
            TimeoutError: A ping got no answer in time.
        """
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(self._config.ping_interval):
                    await self._lost.wait()
            except TimeoutError:
                sent = perf_counter()  # uvloop's clock has milliseconds
                async with asyncio.timeout(self._config.ping_interval):
                    await self.send("Ping", [])
                self.rtt_s = perf_counter() - sent
        raise AmiUnavailable("Asterisk closed the connection")

    def start(
        self,
        name: str,
        headers: Iterable[tuple[str, str]],
        *,
        as_list: bool = False,
        action_id: str = "",
    ) -> asyncio.Future[Any]:
        """Send an action; the result will be a panoramisk message, or a list of them.

        Raises:
            ValueError: A name or value contains control characters, or a line is too long.
            AmiUnavailable: The connection is lost.
        """
        pairs = [("Action", name), *headers]
        if action_id:
            pairs.append(("ActionID", action_id))
        if self._protocol is None or self._lost.is_set():
            raise AmiUnavailable("the connection to Asterisk is lost")
        return self._protocol.ask(pairs, as_list=as_list)

    async def send(
        self,
        name: str,
        headers: Iterable[tuple[str, str]],
        *,
        as_list: bool = False,
        action_id: str = "",
    ) -> Any:
        """Send an action and return its answer; see `start`.

        Raises: as `Ami.action`.
        """
        answered = self.start(name, headers, as_list=as_list, action_id=action_id)
        try:
            async with asyncio.timeout(ACTION_TIMEOUT_S):
                answer = await answered
        except TimeoutError:
            raise AmiTimeout(f"{name}: no answer within {ACTION_TIMEOUT_S:g} s") from None
        first = answer[0] if isinstance(answer, list) else answer
        if not first.success:
            raise AmiActionFailed(name, str(first.message))
        return answer

    def write(self, headers: Headers) -> None:
        """Send an action without waiting for its answer; no effect on a lost connection."""
        if self._protocol is not None and not self._lost.is_set():
            self._protocol.tell(headers)

    def _on_lost(self) -> None:
        self._lost.set()
        if self._protocol is not None:
            self._protocol.give_up()

    def close(self) -> None:
        if self._protocol is not None:
            self._protocol.transport.abort()
        self._on_lost()
