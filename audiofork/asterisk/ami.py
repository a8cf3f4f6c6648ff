"""The link to Asterisk's manager interface (AMI): typed events in, actions with limits out.

The only module that knows panoramisk. It uses panoramisk's protocol and its matching of answers
to actions, with a manager of its own for each connection, because a panoramisk manager that
reconnects sends unanswered actions again: a late Originate or Setvar would hit another call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from panoramisk.actions import Action
from panoramisk.ami_protocol import AMIProtocol
from panoramisk.manager import Manager
from panoramisk.message import Message

from audiofork.asterisk.reconnecting import KeptLink
from audiofork.asterisk.versions import UNKNOWN, Version
from audiofork.config import AsteriskConfig
from audiofork.errors import (
    AmiActionFailed,
    AmiError,
    AmiLoginRefused,
    AmiTimeout,
    AmiUnavailable,
)
from audiofork.text import why

log = logging.getLogger(__name__)

ACTION_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
# Each refused login is a line in Asterisk's security log, which may feed a ban of our address.
LOGIN_RETRY_S = 60.0
MAX_LINE_BYTES = 1024  # longer lines are discarded by Asterisk (main/manager.c)
CHECK_COMMAND = "AudioForkCheck"
_MAX_BLOCK_BYTES = 1_048_576
_END_OF_BLOCK = b"\r\n\r\n"
# The events that `_typed` makes something of, besides UserEvent.
_WANTED = {
    *(b"Hangup", b"HangupRequest", b"BridgeEnter", b"BridgeLeave", b"OriginateResponse"),
    *(b"Hold", b"Unhold"),
}

Headers = list[tuple[str, str]]
OnError = Callable[[AmiError], None]


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A UserEvent named AudioFork, from the dialplan or from AMI."""

    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class ChannelHangup:
    """A channel was hung up, or is about to be.

    Attributes:
        is_gone: It does not exist any more.
    """

    uniqueid: str
    is_gone: bool = True


@dataclass(frozen=True, slots=True)
class OriginateFailed:
    """A leg did not come about."""

    action_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class BridgeChanged:
    """A channel has entered a bridge, or left it."""

    uniqueid: str
    entered: bool


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """A channel's party has put its call on hold, or has taken it back."""

    uniqueid: str
    channel: str
    on_hold: bool


@dataclass(frozen=True, slots=True)
class CheckRaised:
    """A UserEvent that `audiofork check` raised, to see whether requests come through."""

    token: str


Event = (
    RequestReceived | ChannelHangup | OriginateFailed | BridgeChanged | HoldChanged | CheckRaised
)


class Ami(KeptLink):
    """The link, kept up for as long as `run()` runs.

    Owned by the daemon. Events go to `on_event`; `on_up` is awaited after each login, before
    events that came meanwhile are the application's to see. An exception in either is logged and
    harms neither the link nor other events.

    Attributes:
        version: Asterisk's, or that of the last link.
        asterisk_started: Which run of Asterisk the link is to, or was to last: the local time of
            its start. Empty from a login until it is known, which is before `on_up`, and where
            Asterisk does not say.
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
        self._link: _Link | None = None
        self.version = UNKNOWN
        self.asterisk_started = ""

    def _is_up(self) -> bool:
        return self._link is not None

    # --- Actions ---

    async def action(
        self, name: str, headers: Iterable[tuple[str, str]], *, action_id: str = ""
    ) -> dict[str, str]:
        """Send an action and return the headers of its answer, names in lower case.

        Raises:
            ValueError: A name or value holds control characters, or a line is too long.
            AmiUnavailable: There is no link, or it was lost before the answer.
            AmiTimeout: No answer within ACTION_TIMEOUT_S.
            AmiActionFailed: The answer is an error.
        """
        answer = await self._send(name, headers, action_id=action_id, as_list=False)
        return {key.lower(): str(value) for key, value in answer.items()}

    async def list(
        self, name: str, headers: Iterable[tuple[str, str]] = ()
    ) -> list[dict[str, str]]:
        """Send an action that answers with a list, and return the list's events.

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
        if self._link is None:
            raise AmiUnavailable(self.status)
        return await self._link.send(name, headers, as_list=as_list, action_id=action_id)

    async def ask_version(self) -> Version:
        """Ask which Asterisk there is; UNKNOWN: it does not tell this user.

        Raises: as `action`, but for AmiActionFailed.
        """
        try:
            answer = await self.action("CoreSettings", [])
        except AmiActionFailed:
            return UNKNOWN
        return Version.parse(answer.get("asteriskversion", ""))

    def post(self, name: str, headers: Iterable[tuple[str, str]], on_error: OnError) -> None:
        """Send an action now, without waiting; `on_error` hears why it failed, if it does."""
        try:
            if self._link is None:
                raise AmiUnavailable(self.status)
            answered = self._link.start(name, headers)
        except AmiError as exc:
            on_error(exc)
            return
        answered.add_done_callback(functools.partial(_tell_error, name, on_error))

    def raise_event(self, name: str, headers: Iterable[tuple[str, str]]) -> None:
        """Raise a UserEvent now, without waiting; without a link it is lost, and the log says so.

        The event carries an ActionID only if `headers` has one: it is the requester's, so no
        answer can be matched to it. An error in the answer is logged.
        """
        if self._link is None:
            log.warning("event %s is lost: %s", name, self.status)
            return
        self._link.write([("Action", "UserEvent"), ("UserEvent", name), *headers])

    async def log_off(self) -> None:
        """Say goodbye; when this returns, Asterisk has done all that was asked before.

        Raises: as `action`.
        """
        await self.action("Logoff", [])

    # --- The link's life ---

    async def run(self) -> None:
        """Connect, log in, watch the link, and begin anew when it is lost; until cancelled."""
        while True:
            try:
                await self._connect_once()
            except AmiLoginRefused as exc:
                self._say(logging.ERROR, f"{exc}; next try in {LOGIN_RETRY_S:g} s")
                await self._pause(LOGIN_RETRY_S)
            # ValueError: the configured host is no name, or the secret does not fit a line.
            except (OSError, TimeoutError, AmiError, ValueError) as exc:
                where = f"{self._config.host}:{self._config.port}"
                self._say(logging.WARNING, f"no link to Asterisk at {where}: {why(exc)}")
                await self._pause_longer()

    async def _connect_once(self) -> None:
        """Serve one connection; ends with the exception that says why it is over."""
        self._begin_attempt()
        link = _Link(self._config, self._guarded_event)
        try:
            await link.open()
            self.asterisk_started = ""  # requests may come before the answer
            self._link = link
            self._on_success()
            self.version = await self.ask_version()
            self.asterisk_started = await self._started(link)
            self._say(logging.INFO, f"connected to Asterisk {self.version}")
            try:
                await self._on_up()
            except AmiError as exc:
                log.warning("after the login to Asterisk: %s", exc)
            except Exception:
                log.exception("a fault after the login to Asterisk")
            await link.watch()
        finally:
            self._link = None
            link.close()

    async def _started(self, link: _Link) -> str:
        try:
            answer = await link.send("CoreStatus", [])
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
    """Connect and log in once, for a caller that has a few questions and wants no second try.

    Raises:
        OSError, TimeoutError: No connection came about.
        ValueError: The configured host is no name, or the secret does not fit a line.
        AmiError: AmiLoginRefused, or Asterisk broke the link off.
    """

    async def nothing_to_do() -> None: ...

    ami = Ami(config, on_event, nothing_to_do)
    link = _Link(config, ami._guarded_event)
    try:
        await link.open()
        ami._link = link
        yield ami
    finally:
        ami._link = None
        link.close()


def _tell_error(name: str, on_error: OnError, answered: asyncio.Future[Any]) -> None:
    """Look at the answer to an action that nobody waits for."""
    if answered.cancelled():
        return
    exc = answered.exception()
    if isinstance(exc, AmiError):
        on_error(exc)
    elif exc is None and not answered.result().success:
        on_error(AmiActionFailed(name, str(answered.result().message)))


class _Link:
    """One connection to AMI, from connect to close; never used again after it is lost."""

    def __init__(self, config: AsteriskConfig, on_event: Callable[[Event], None]) -> None:
        self._config = config
        self._manager = _Manager(encoding="utf8", on_lost=self._on_lost)
        self._on_event = on_event
        self._protocol: _Protocol | None = None
        self._lost = asyncio.Event()

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            OSError, TimeoutError: The connect failed.
            AmiLoginRefused: Asterisk does not accept the username or the secret.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        tls = ssl.create_default_context(cafile=config.ca_file or None) if config.tls else None
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, protocol = await loop.create_connection(
                lambda: _Protocol(self._manager, self._on_event), config.host, config.port, ssl=tls
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
        """Ping until the link is lost.

        Raises:
            AmiError: Always: how it was lost.
        """
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(self._config.ping_interval):
                    await self._lost.wait()
            except TimeoutError:
                async with asyncio.timeout(self._config.ping_interval):
                    await self.send("Ping", [])
        raise AmiUnavailable("Asterisk closed the link")

    def start(
        self,
        name: str,
        headers: Iterable[tuple[str, str]],
        *,
        as_list: bool = False,
        action_id: str = "",
    ) -> asyncio.Future[Any]:
        """Send an action; its answer will be a panoramisk message, or a list of them.

        Raises:
            ValueError: A name or value holds control characters, or a line is too long.
            AmiUnavailable: The link is lost.
        """
        pairs = [("Action", name), *headers]
        if action_id:
            pairs.append(("ActionID", action_id))
        _check(pairs)
        action = Action(_grouped(pairs))
        if self._protocol is None or self._lost.is_set():
            raise AmiUnavailable("the link to Asterisk is lost")
        responses = self._protocol.responses
        answered: asyncio.Future[Any] = self._protocol.send(action, as_list=as_list)
        # Also when nobody waits any more: panoramisk forgets only what has its answer.
        answered.add_done_callback(lambda _: responses.pop(action.id, None))
        return answered

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
        """Send an action whose answer is not awaited."""
        _check(headers)
        if self._protocol is not None and not self._lost.is_set():
            lines = [f"{name}: {value}\r\n" for name, value in headers]
            self._protocol.transport.write("".join([*lines, "\r\n"]).encode())

    def _on_lost(self) -> None:
        """Wake those who wait for answers: none will come."""
        self._lost.set()
        if self._protocol is not None:
            for action in self._protocol.take_unanswered():
                if not action.future.done():
                    action.future.set_exception(AmiUnavailable("the link to Asterisk was lost"))

    def close(self) -> None:
        if self._protocol is not None:
            self._protocol.transport.abort()
        self._on_lost()


def _check(headers: Headers) -> None:
    """Refuse what would break out of its line, whoever let it come this far."""
    for name, value in headers:
        line = f"{name}: {value}"
        if any(character < " " or character == "\x7f" for character in line):
            raise ValueError(f"control characters in the AMI header {name!r}")
        if len(line.encode()) >= MAX_LINE_BYTES:
            raise ValueError(f"the AMI header {name} is longer than {MAX_LINE_BYTES} bytes")


def _grouped(headers: Headers) -> dict[str, str | list[str]]:
    """Return headers as panoramisk takes them: several of one name become a list."""
    grouped: dict[str, str | list[str]] = {}
    for name, value in headers:
        present = grouped.get(name)
        if present is None:
            grouped[name] = value
        elif isinstance(present, list):
            present.append(value)
        else:
            grouped[name] = [present, value]
    return grouped


class _Manager(Manager):  # type: ignore[misc]
    """A manager that neither reconnects nor keeps actions for later."""

    def __init__(self, *, encoding: str, on_lost: Callable[[], None]) -> None:
        super().__init__(encoding=encoding)
        self._on_lost = on_lost

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


class _Protocol(AMIProtocol):  # type: ignore[misc]
    """Hands panoramisk whole, decoded answers, and turns events into typed ones itself.

    panoramisk would decode each read alone (a character split over two reads is lost), let a
    UserEvent that carries a second `Event` header end the link, and route by that header.
    """

    def __init__(self, manager: _Manager, on_event: Callable[[Event], None]) -> None:
        self._manager = manager
        self._on_event = on_event
        self._rest = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.factory = self._manager
        self.encoding = "utf8"

    def data_received(self, chunk: bytes) -> None:
        # The end may have begun in the last read; what was before that is not searched again.
        unsearched = max(0, len(self._rest) - len(_END_OF_BLOCK) + 1)
        self._rest += chunk
        if self._rest.find(_END_OF_BLOCK, unsearched) < 0:
            self._limit_rest()
            return
        *blocks, rest = bytes(self._rest).split(_END_OF_BLOCK)
        self._rest = bytearray(rest)
        for block in blocks:
            if _is_foreign(block):
                continue
            try:
                self._on_block(block.decode("utf-8", "replace"))
            except Exception:
                log.exception("a message from Asterisk could not be read")  # it may hold a token
        self._limit_rest()

    def _limit_rest(self) -> None:
        if len(self._rest) > _MAX_BLOCK_BYTES:
            log.error("a message from Asterisk has no end after %d bytes", len(self._rest))
            self.transport.abort()

    def _on_block(self, block: str) -> None:
        if block.startswith("Asterisk Call Manager/"):
            block = block.partition("\r\n")[2]
        headers = _parse(block)
        if not headers:
            return
        name, value = headers[0]
        if name == "Event" and not self._is_answer(value, headers):
            event = _typed(value, headers)
            if event is not None:
                self._on_event(event)
            return
        message = Message.from_line(block)
        if message is None:
            return
        pending = self.responses.get(message.id)
        if not message.success and pending is None:
            log.warning("Asterisk refused to raise an event: %s", message.message)
        elif not message.success:
            pending.as_list = False  # else panoramisk waits for a list that does not come
        self.handle_message(message)

    def _is_answer(self, event: str, headers: Headers) -> bool:
        """Tell whether an event belongs to the answer of an action; a UserEvent never does."""
        pending = self.responses.get(_last(headers, "ActionID"))
        return pending is not None and bool(pending.as_list) and event != "UserEvent"

    def take_unanswered(self) -> list[Action]:
        """Return the actions that wait for an answer, and forget them."""
        unanswered = list(self.responses.values())
        self.responses.clear()
        return unanswered

    def connection_lost(self, exc: Exception | None) -> None:
        self._manager.connection_lost(exc)


def _is_foreign(block: bytes) -> bool:
    """Tell, without parsing it, that a message is an event that nobody here needs.

    A busy Asterisk tells of thousands of events a second where no filter holds them back. An
    event with an ActionID may be part of an answer. The first `UserEvent` header is Asterisk's
    own; what follows it may be anything.
    """
    if not block.startswith(b"Event: "):
        return False
    name = block[len(b"Event: ") :].partition(b"\r\n")[0]
    if name == b"UserEvent":
        value = block.partition(b"\r\nUserEvent:")[2].partition(b"\r\n")[0]
        return value.removeprefix(b" ") != b"AudioFork"
    return name not in _WANTED and b"ActionID" not in block


def _parse(block: str) -> Headers:
    pairs = (line.partition(":") for line in block.split("\r\n"))
    return [(name, value.removeprefix(" ")) for name, colon, value in pairs if colon]


def _last(headers: Headers, name: str) -> str:
    return next((value for key, value in reversed(headers) if key == name), "")


def _first(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key == name), "")


def _typed(name: str, headers: Headers) -> Event | None:
    """Return the event that a block is, or None for those that nobody here needs."""
    if name == "UserEvent":
        return _request(headers)
    if name in ("Hangup", "HangupRequest"):
        return ChannelHangup(_first(headers, "Uniqueid"), name == "Hangup")
    if name in ("Hold", "Unhold"):
        channel, uniqueid = _first(headers, "Channel"), _first(headers, "Uniqueid")
        return HoldChanged(uniqueid, channel, name == "Hold")
    if name in ("BridgeEnter", "BridgeLeave"):
        return BridgeChanged(_first(headers, "Uniqueid"), name == "BridgeEnter")
    if name == "OriginateResponse" and _first(headers, "Response") == "Failure":
        return OriginateFailed(_first(headers, "ActionID"), _first(headers, "Reason"))
    return None


def _request(headers: Headers) -> RequestReceived | CheckRaised | None:
    """Take a UserEvent apart: the snapshot of the channel comes before it, the body after.

    An event from the dialplan has a snapshot; one from an AMI action has only a body. The body
    may name another channel than the one that runs the dialplan.
    """
    position = next(i for i, (name, _) in enumerate(headers) if name == "UserEvent")
    if headers[position][1] != "AudioFork":
        return None
    fields = {name.lower(): value for name, value in headers[position + 1 :]}
    if fields.get("command") == CHECK_COMMAND:
        return CheckRaised(fields.get("audioforkid", ""))
    if "channel" not in fields and "uniqueid" not in fields:
        snapshot = headers[:position]
        fields["channel"] = _first(snapshot, "Channel")
        fields["uniqueid"] = _first(snapshot, "Uniqueid")
    return RequestReceived(fields)
