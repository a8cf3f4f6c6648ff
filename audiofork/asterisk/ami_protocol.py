"""The AMI protocol: sends actions, receives answers and typed events.

The only module that uses panoramisk: its protocol, and its matching of answers to actions. A
panoramisk manager that reconnects sends unanswered actions again, and a late Originate or Setvar
could affect another call. So each connection has a manager of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from panoramisk.actions import Action
from panoramisk.ami_protocol import AMIProtocol
from panoramisk.manager import Manager
from panoramisk.message import Message

from audiofork.asterisk.ami_blocks import Blocks
from audiofork.asterisk.snapshots import CALLER_DATA, Forged, Headers, check, repeated
from audiofork.errors import AmiUnavailable
from audiofork.text import harmless, printable

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1024  # Asterisk discards longer lines (main/manager.c)
CHECK_COMMAND = "AudioForkCheck"
MAX_BLOCK_BYTES = 1_048_576
# The events that `typed` converts, besides UserEvent.
_WANTED = {
    *(b"Hangup", b"HangupRequest", b"BridgeEnter", b"BridgeLeave", b"OriginateResponse"),
    *(b"Hold", b"Unhold", b"DTMFEnd"),
}


_DIGITS = "0123456789*#ABCD"
_LONGEST_KEY_MS = 3_600_000


# --- Events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A UserEvent named AudioFork, from the dialplan or from AMI.

    Attributes:
        fields: Names in lower case, and values; the last value if a name comes more than once.
        raised_by: The uniqueid of the channel whose dialplan sent it; empty for an AMI user.
        repeated: The name of a field that comes more than once; empty if there is none.
        caller_data: Values of the channel that runs the dialplan which the caller may have chosen.
    """

    fields: dict[str, str]
    raised_by: str = field(default="", compare=False)
    repeated: str = ""
    caller_data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChannelHangup:
    """A channel was hung up, or is about to be.

    Attributes:
        is_gone: Whether the channel does not exist any more.
    """

    uniqueid: str
    is_gone: bool = True


@dataclass(frozen=True, slots=True)
class OriginateFailed:
    """Asterisk could not make a leg."""

    action_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class BridgeChanged:
    """A channel has entered a bridge, or left it."""

    uniqueid: str
    entered: bool


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """A channel's party has put its call on hold, or has resumed it."""

    uniqueid: str
    channel: str
    on_hold: bool


@dataclass(frozen=True, slots=True)
class KeyPressed:
    """A channel's party has pressed a key, and released it.

    Attributes:
        digit: 0 to 9, *, #, A to D.
        duration_ms: How long it was pressed, in milliseconds.
    """

    uniqueid: str
    digit: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class CheckRaised:
    """A UserEvent that `audiofork check` sent, to see whether requests arrive; or an answer.

    Attributes:
        token: Identifies the check: its events and the answers to them have the same token.
        leg_uuid: The UUID of a leg that Asterisk will connect to the daemon; empty: none.
        answer: The answer of a daemon; empty: the check itself has sent this event.
        run: The id of that daemon's run.
    """

    token: str
    leg_uuid: str = field(default="", repr=False)
    answer: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class ForgedMessage:
    """A message was dropped, because it contains lines that a caller has injected.

    Attributes:
        detail: The message, its channel, and what is wrong with it, for people; any text.
    """

    detail: str


Event = (
    RequestReceived
    | ChannelHangup
    | OriginateFailed
    | BridgeChanged
    | HoldChanged
    | KeyPressed
    | CheckRaised
    | ForgedMessage
)


def is_foreign(block: bytes) -> bool:
    """Return whether a message is an event that this daemon does not need, without parsing it.

    Without an event filter, a busy Asterisk sends thousands of events a second. An event with an
    ActionID may be part of an answer. The first `UserEvent` header is Asterisk's own; the headers
    after it may be anything.
    """
    if not block.startswith(b"Event: "):
        return False
    name = block[len(b"Event: ") :].partition(b"\r\n")[0]
    if name == b"UserEvent":
        value = block.partition(b"\r\nUserEvent:")[2].partition(b"\r\n")[0]
        return value.removeprefix(b" ") != b"AudioFork"
    return name not in _WANTED and b"ActionID" not in block


def parse(block: str) -> Headers:
    pairs = (line.partition(":") for line in block.split("\r\n"))
    return [(name, value.removeprefix(" ")) for name, colon, value in pairs if colon]


def _first(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key == name), "")


def typed(name: str, headers: Headers) -> Event | None:
    """Return the typed event of a message; None if this daemon does not need it.

    Args:
        name: The name of the event.
        headers: All headers of the message.

    Raises:
        Forged: The message contains lines that Asterisk has not written.
    """
    check(name, headers)
    if name == "UserEvent":
        return _request(headers)
    if name in ("Hangup", "HangupRequest"):
        return ChannelHangup(_first(headers, "Uniqueid"), name == "Hangup")
    if name in ("Hold", "Unhold"):
        channel, uniqueid = _first(headers, "Channel"), _first(headers, "Uniqueid")
        return HoldChanged(uniqueid, printable(channel, "?"), name == "Hold")
    if name == "DTMFEnd":
        return _key(headers)
    if name in ("BridgeEnter", "BridgeLeave"):
        return BridgeChanged(_first(headers, "Uniqueid"), name == "BridgeEnter")
    if name == "OriginateResponse" and _first(headers, "Response") == "Failure":
        return OriginateFailed(_first(headers, "ActionID"), _first(headers, "Reason"))
    return None


def _key(headers: Headers) -> KeyPressed | None:
    """Return the key that a party has pressed; None for a key that is played to it.

    A key in a bridged call causes two events: it is received on the channel of the party that
    pressed it, and sent on the other one.
    """
    digit, duration = _first(headers, "Digit"), _first(headers, "DurationMs")
    if _first(headers, "Direction") != "Received" or digit not in _DIGITS or not digit:
        return None
    duration_ms = int(duration) if duration.isascii() and duration.isdigit() else 0
    return KeyPressed(_first(headers, "Uniqueid"), digit, min(duration_ms, _LONGEST_KEY_MS))


def _request(headers: Headers) -> RequestReceived | CheckRaised | None:
    """Return the request of a UserEvent; None if it is not one of ours.

    The snapshot of the channel comes before the UserEvent header, the body after it. An event from
    the dialplan has a snapshot; one from an AMI action has only a body. The body may name another
    channel than the one that runs the dialplan.
    """
    position = next(i for i, (name, _) in enumerate(headers) if name.lower() == "userevent")
    if headers[position][1] != "AudioFork":
        return None
    snapshot, body = headers[:position], headers[position + 1 :]
    raised_by = _first(snapshot, "Uniqueid")
    fields = {name.lower(): value for name, value in body}
    if fields.get("command") == CHECK_COMMAND:
        # Nothing else of a dialplan's event is used, because a caller may have written it.
        more = () if raised_by else ("leguuid", "answer", "run")
        return CheckRaised(*(fields.get(name, "") for name in ("audioforkid", *more)))
    if "channel" not in fields and "uniqueid" not in fields:
        fields["channel"] = printable(_first(snapshot, "Channel"), "?")
        fields["uniqueid"] = raised_by
    caller_data = tuple(value for name, value in snapshot if name in CALLER_DATA and value)
    twice = next(repeated(name for name, _ in body), "")
    return RequestReceived(fields, raised_by, twice, caller_data)


# --- Headers --------------------------------------------------------------------------------------


def _check(headers: Headers) -> None:
    """Raise ValueError for a header that would not stay in one line, or is too long."""
    for name, value in headers:
        line = f"{name}: {value}"
        # A tab in a value is harmless.
        if any(one < " " or one == "\x7f" for one in name + value.replace("\t", " ")):
            raise ValueError(f"control characters in the AMI header {name!r}")
        if len(line.encode()) >= MAX_LINE_BYTES:
            raise ValueError(f"the AMI header {name} is longer than {MAX_LINE_BYTES} bytes")


def _grouped(headers: Headers) -> dict[str, str | list[str]]:
    """Return headers as panoramisk expects them: several of one name become a list."""
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


# --- The connection -------------------------------------------------------------------------------


class Protocol(AMIProtocol):  # type: ignore[misc]
    """One connection: sends actions, matches answers to them, and passes on typed events.

    panoramisk gets only complete, decoded answers. Its own reader decodes each read separately, so
    a character that is split over two reads is lost. A UserEvent with a second `Event` header would
    be routed by that header, and end the connection.

    Args:
        on_event: Called with each event that this daemon needs.
        on_lost: Called when the connection is lost.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._on_event = on_event
        self._on_lost = on_lost
        self._blocks = Blocks()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # The manager never learns of the loss of the connection, because it would reconnect.
        self.factory = Manager(encoding="utf8")
        self.encoding = "utf8"

    def connection_lost(self, _exc: Exception | None) -> None:
        self._on_lost()

    # --- Out ---

    def ask(self, headers: Headers, *, as_list: bool) -> asyncio.Future[Any]:
        """Send an action; the result will be a panoramisk message, or a list of them.

        Raises:
            ValueError: A name or value contains control characters, or a line is too long.
        """
        _check(headers)
        # Random: a caller who knew the ActionID could inject an answer by a value of his channel.
        action = Action({"ActionID": secrets.token_hex(16), **_grouped(headers)})
        responses = self.responses
        answered: asyncio.Future[Any] = self.send(action, as_list=as_list)
        # Needed after a timeout: panoramisk itself removes only actions that were answered.
        answered.add_done_callback(lambda _: responses.pop(action.id, None))
        return answered

    def tell(self, headers: Headers) -> None:
        """Send an action without waiting for its answer; raises as `ask`."""
        _check(headers)
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        self.transport.write("".join([*lines, "\r\n"]).encode())

    def give_up(self) -> None:
        """Raise AmiUnavailable in all coroutines that wait for answers: the connection is lost."""
        unanswered = list(self.responses.values())
        self.responses.clear()
        for action in unanswered:
            if not action.future.done():
                action.future.set_exception(AmiUnavailable("the connection to Asterisk was lost"))

    # --- In ---

    def data_received(self, chunk: bytes) -> None:
        whole, cut = self._blocks.feed(chunk)
        for block in cut:
            self._drop(block, "an empty line in a value has split it")
        for block in whole:
            if is_foreign(block):
                continue
            try:
                self._on_block(block.decode("utf-8", "replace"))
            except Forged as exc:
                self._drop(block, str(exc))
            except Exception:
                # Without the message itself: it may contain a token.
                log.exception("a message from Asterisk could not be read")
        if self._blocks.waiting_bytes > MAX_BLOCK_BYTES:
            log.error("a message from Asterisk did not end within %d bytes", MAX_BLOCK_BYTES)
            self.transport.abort()

    def _drop(self, block: bytes, why: str) -> None:
        self._on_event(ForgedMessage(f"{_title(block)}: {why}"))

    def _on_block(self, block: str) -> None:
        if block.startswith("Asterisk Call Manager/"):
            block = block.partition("\r\n")[2]
        headers = parse(block)
        if not headers:
            return
        name, value = headers[0]
        if name == "Event" and not self._is_answer(value, headers):
            event = typed(value, headers)
            if event is not None:
                self._on_event(event)
        elif name == "Event":
            check(value, headers)
            self._on_answer(headers)
        elif name == "Response":
            self._on_answer(headers)

    def _on_answer(self, headers: Headers) -> None:
        # If a name comes twice, the first is Asterisk's own: it precedes an injected value.
        message = Message({name.lower(): value for name, value in reversed(headers)})
        pending = self.responses.get(message.id)
        if not message.success and pending is None:
            log.warning("Asterisk refused to raise an event: %s", harmless(message.message))
        elif not message.success:
            pending.as_list = False  # else panoramisk waits for a list that never comes
        self.handle_message(message)

    def _is_answer(self, event: str, headers: Headers) -> bool:
        """Return whether an event belongs to the answer of an action; a UserEvent never does."""
        ids = (value for name, value in headers if name == "ActionID")
        pending = next((self.responses[one] for one in ids if one in self.responses), None)
        return pending is not None and bool(pending.as_list) and event != "UserEvent"


def _title(block: bytes) -> str:
    """Return the name and channel of a message, as far as it contains them."""
    headers = parse(block.decode("utf-8", "replace"))
    name = headers[0][1] if headers else "a message"
    return harmless(f"{name} of {_first(headers, 'Channel') or 'an unknown channel'}")
