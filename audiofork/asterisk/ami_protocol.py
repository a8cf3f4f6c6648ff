"""What goes over the manager interface (AMI): headers out, answers and typed events in.

The only module that knows panoramisk, of which it uses the protocol and the matching of answers to
actions. A panoramisk manager that reconnects sends unanswered actions again, and a late Originate
or Setvar would hit another call: so each connection has a manager of its own.
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

MAX_LINE_BYTES = 1024  # longer lines are discarded by Asterisk (main/manager.c)
CHECK_COMMAND = "AudioForkCheck"
MAX_BLOCK_BYTES = 1_048_576
# The events that `typed` makes something of, besides UserEvent.
_WANTED = {
    *(b"Hangup", b"HangupRequest", b"BridgeEnter", b"BridgeLeave", b"OriginateResponse"),
    *(b"Hold", b"Unhold"),
}


# --- Events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A UserEvent named AudioFork, from the dialplan or from AMI.

    Attributes:
        fields: Names in lower case, and values; of several with one name the last.
        raised_by: The uniqueid of the channel whose dialplan raised it; empty: an AMI user did.
        repeated: The name of a field that comes more than once, or nothing.
        caller_data: What the caller may have chosen of the channel that runs the dialplan.
    """

    fields: dict[str, str]
    raised_by: str = field(default="", compare=False)
    repeated: str = ""
    caller_data: tuple[str, ...] = ()


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


@dataclass(frozen=True, slots=True)
class ForgedMessage:
    """A message was dropped, since it holds lines that Asterisk has not written, but a caller has.

    Attributes:
        detail: Which message, of which channel, and what is wrong with it.
    """

    detail: str


Event = (
    RequestReceived
    | ChannelHangup
    | OriginateFailed
    | BridgeChanged
    | HoldChanged
    | CheckRaised
    | ForgedMessage
)


def is_foreign(block: bytes) -> bool:
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


def parse(block: str) -> Headers:
    pairs = (line.partition(":") for line in block.split("\r\n"))
    return [(name, value.removeprefix(" ")) for name, colon, value in pairs if colon]


def _first(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key == name), "")


def typed(name: str, headers: Headers) -> Event | None:
    """Return the event that a block is, or None for those that nobody here needs.

    Raises:
        Forged: It holds lines that Asterisk has not written.
    """
    check(name, headers)
    if name == "UserEvent":
        return _request(headers)
    if name in ("Hangup", "HangupRequest"):
        return ChannelHangup(_first(headers, "Uniqueid"), name == "Hangup")
    if name in ("Hold", "Unhold"):
        channel, uniqueid = _first(headers, "Channel"), _first(headers, "Uniqueid")
        return HoldChanged(uniqueid, printable(channel, "?"), name == "Hold")
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
    position = next(i for i, (name, _) in enumerate(headers) if name.lower() == "userevent")
    if headers[position][1] != "AudioFork":
        return None
    snapshot, body = headers[:position], headers[position + 1 :]
    fields = {name.lower(): value for name, value in body}
    if fields.get("command") == CHECK_COMMAND:
        return CheckRaised(fields.get("audioforkid", ""))
    snapshot = headers[:position]
    if "channel" not in fields and "uniqueid" not in fields:
        fields["channel"] = printable(_first(snapshot, "Channel"), "?")
        fields["uniqueid"] = _first(snapshot, "Uniqueid")
    caller_data = tuple(value for name, value in snapshot if name in CALLER_DATA and value)
    twice = next(repeated(name for name, _ in body), "")
    return RequestReceived(fields, _first(snapshot, "Uniqueid"), twice, caller_data)


# --- Headers --------------------------------------------------------------------------------------


def _check(headers: Headers) -> None:
    """Refuse what would break out of its line, whoever let it come this far."""
    for name, value in headers:
        line = f"{name}: {value}"
        # A tab in a value does nothing.
        if any(one < " " or one == "\x7f" for one in name + value.replace("\t", " ")):
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


# --- The connection -------------------------------------------------------------------------------


class Protocol(AMIProtocol):  # type: ignore[misc]
    """One connection: sends actions, matches answers to them, and hands on typed events.

    panoramisk is handed whole, decoded answers alone. It would decode each read by itself (a
    character split over two reads is lost), let a UserEvent that carries a second `Event` header
    end the link, and route by that header.

    Args:
        on_event: Gets each event that somebody needs.
        on_lost: Called when the connection is over.
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
        self.factory = Manager(encoding="utf8")  # it is not told of the loss: it would reconnect
        self.encoding = "utf8"

    def connection_lost(self, _exc: Exception | None) -> None:
        self._on_lost()

    # --- Out ---

    def ask(self, headers: Headers, *, as_list: bool) -> asyncio.Future[Any]:
        """Send an action; its answer will be a panoramisk message, or a list of them.

        Raises:
            ValueError: A name or value holds control characters, or a line is too long.
        """
        _check(headers)
        # No caller can know it, who could write an answer of his own with it.
        action = Action({"ActionID": secrets.token_hex(16), **_grouped(headers)})
        responses = self.responses
        answered: asyncio.Future[Any] = self.send(action, as_list=as_list)
        # Also when nobody waits any more: panoramisk forgets only what has its answer.
        answered.add_done_callback(lambda _: responses.pop(action.id, None))
        return answered

    def tell(self, headers: Headers) -> None:
        """Send an action whose answer is not awaited; raises as `ask`."""
        _check(headers)
        lines = [f"{name}: {value}\r\n" for name, value in headers]
        self.transport.write("".join([*lines, "\r\n"]).encode())

    def give_up(self) -> None:
        """Wake those who wait for answers, with AmiUnavailable: none will come."""
        unanswered = list(self.responses.values())
        self.responses.clear()
        for action in unanswered:
            if not action.future.done():
                action.future.set_exception(AmiUnavailable("the link to Asterisk was lost"))

    # --- In ---

    def data_received(self, chunk: bytes) -> None:
        whole, cut = self._blocks.feed(chunk)
        for block in cut:
            self._drop(block, "an empty line in a value has cut it")
        for block in whole:
            if is_foreign(block):
                continue
            try:
                self._on_block(block.decode("utf-8", "replace"))
            except Forged as exc:
                self._drop(block, str(exc))
            except Exception:
                log.exception("a message from Asterisk could not be read")  # it may hold a token
        if self._blocks.waiting_bytes > MAX_BLOCK_BYTES:
            log.error("a message from Asterisk has no end after %d bytes", MAX_BLOCK_BYTES)
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
        # The first of several with one name is Asterisk's own: it was there before the value.
        message = Message({name.lower(): value for name, value in reversed(headers)})
        pending = self.responses.get(message.id)
        if not message.success and pending is None:
            log.warning("Asterisk refused to raise an event: %s", harmless(message.message))
        elif not message.success:
            pending.as_list = False  # else panoramisk waits for a list that does not come
        self.handle_message(message)

    def _is_answer(self, event: str, headers: Headers) -> bool:
        """Return whether an event belongs to the answer of an action; a UserEvent never does."""
        ids = (value for name, value in headers if name == "ActionID")
        pending = next((self.responses[one] for one in ids if one in self.responses), None)
        return pending is not None and bool(pending.as_list) and event != "UserEvent"


def _title(block: bytes) -> str:
    """Return what a message is and of which channel, as far as it says so itself."""
    headers = parse(block.decode("utf-8", "replace"))
    name = headers[0][1] if headers else "a message"
    return harmless(f"{name} of {_first(headers, 'Channel') or 'an unknown channel'}")
