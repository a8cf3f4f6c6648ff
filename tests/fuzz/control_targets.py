"""What reads from Asterisk and from the control socket, up to what is written in answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from audiofork.asterisk.ami import Ami, connected
from audiofork.asterisk.ami_protocol import (
    ChannelHangup,
    CheckRaised,
    Event,
    ForgedMessage,
    RequestReceived,
)
from audiofork.asterisk.snapshots import CHANNEL, ORDERS
from audiofork.config import AsteriskConfig
from audiofork.doors.ami_events import MAX_RESPONSE_BYTES, AmiEvents
from audiofork.doors.control_answers import MAX_ERROR_CHARACTERS, ControlAnswers
from audiofork.doors.control_protocol import MAX_LINE_BYTES, Code
from audiofork.doors.control_socket import ControlSocket
from audiofork.errors import RequestRefused
from audiofork.forks.events import ForkInfo, MessageReceived, Reconnecting, Requested, Started
from audiofork.forks.fork import effective_url
from audiofork.forks.lifecycle import Away
from audiofork.forks.requests import Request, StartFork, parse_request
from audiofork.forks.urls import check_url

from .fuzzing import Check, Target, split
from .request_targets import (
    FIELD_TOKENS,
    FIELDS,
    UNUSUAL_TEXT,
    check_granted,
    check_refusal,
    fields_of,
)

_END = b"\r\n\r\n"
FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"

# --- The connection to Asterisk ------------------------------------------------------------------


class _Transport(asyncio.Transport):
    """Stands for the connection to Asterisk, which says yes to everything."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = b""
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.written += data
        if b"Action: Login\r\n" in data:
            asyncio.get_running_loop().call_soon(self.answer_all)

    def take_written(self) -> list[list[bytes]]:
        """Return the lines of each action since the last call."""
        written, self.written = self.written, b""
        assert written.endswith(_END) or not written
        return [block.split(b"\r\n") for block in written.split(_END)[:-1]]

    def answer_all(self) -> list[list[bytes]]:
        """Grant every action since the last call; return them."""
        actions = self.take_written()
        for lines in actions:
            for line in lines:
                if line.startswith(b"ActionID: "):
                    self.protocol.data_received(b"Response: Success\r\n" + line + _END)
        return actions

    def abort(self) -> None:
        self.is_aborted = True

    close = abort

    def is_closing(self) -> bool:
        return self.is_aborted

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


@dataclass
class _Link:
    """The real link, logged in, with everything above it that an event may reach."""

    ami: Ami
    transport: _Transport
    events: list[Event]

    def receive(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.transport.protocol.data_received(chunk)

    def take_events(self) -> list[Event]:
        """Return the events since the last call, but not those that tell what was dropped."""
        events: list[Event] = [
            event for event in self.events if not isinstance(event, ForgedMessage)
        ]
        self.events.clear()
        return events

    def check_written(self) -> None:
        """Check that what was written is actions of ours, each header in its line."""
        for lines in self.transport.answer_all():
            names = [line.partition(b": ")[0] for line in lines]
            assert set(names) <= _HEADERS, names
            assert names.count(b"Action") == 1
            assert lines[names.index(b"Action")] in _ACTIONS, lines
            for line in lines:
                assert len(line) < 1024
                assert not any(byte < 32 or byte == 127 for byte in line)


_ACTIONS = (b"Action: Setvar", b"Action: UserEvent")
_HEADERS = frozenset(
    {
        *(b"Action", b"ActionID", b"Channel", b"Uniqueid", b"WsServer", b"Variable", b"Value"),
        *(b"UserEvent", b"AudioForkID", b"Reason", b"Message", b"Attempt", b"TakenUp"),
        b"SampleRate",
    }
)


@contextmanager
def _linked(check: Callable[[_Link, bytes, Random], Any]) -> Iterator[Check]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        link = runner.run(_connect(stack))
        yield lambda data, rng: runner.run(check(link, data, rng))
        runner.run(stack.aclose())


async def _connect(stack: AsyncExitStack) -> _Link:
    transport = _Transport()

    async def create_connection(factory: Callable[[], Any], *_: Any, **__: Any) -> Any:
        transport.protocol = factory()
        transport.protocol.connection_made(transport)
        transport.protocol.data_received(b"Asterisk Call Manager/11.0.0\r\n")
        return transport, transport.protocol

    loop = asyncio.get_running_loop()
    setattr(loop, "create_connection", create_connection)  # noqa: B010
    events: list[Event] = []
    config = AsteriskConfig(username="audiofork", secret="hunter2")
    return _Link(
        await stack.enter_async_context(connected(config, events.append)), transport, events
    )


async def check_ami_stream(link: _Link, data: bytes, rng: Random) -> str:
    """Whatever Asterisk sends, later messages are read, however all of it is cut."""
    data += _missing_end(data)
    sentinel = _event("Hangup", _SENTINEL, b"")
    link.receive(data + sentinel)
    events = link.take_events()
    link.receive(*split(data + sentinel, rng))
    # Read in pieces, a message may be taken before it is seen that it was cut by its value.
    in_pieces = iter(link.take_events())
    assert all(event in in_pieces for event in events)
    assert events[-1] == ChannelHangup("sentinel")
    assert not link.transport.is_aborted
    assert not link.transport.written
    return "events" if len(events) > 1 else "no event"


def _missing_end(data: bytes) -> bytes:
    rest = data.split(_END)[-1]
    return b"" if not rest else b"\r\n" if rest.endswith(b"\r\n") else _END


async def check_user_event(link: _Link, data: bytes, rng: Random) -> str:
    """Whatever a user event holds, it is one request, and no answer to an action of ours."""
    listed = asyncio.ensure_future(link.ami.list("CoreShowChannels"))
    await asyncio.sleep(0)
    ((*_, action_id_line),) = (
        [line for line in lines if line.startswith(b"ActionID: ")]
        for lines in link.transport.take_written()
    )
    lines = data.replace(b"@ID@", action_id_line[10:]).replace(b"\r", b"\n").split(b"\n")
    body = b"".join(line + b"\r\n" for line in lines if line)
    snapshot = _snapshot({"Channel": b"SIP/9", "Uniqueid": b"9.9"}) * rng.randrange(2)
    event = b"Event: UserEvent\r\nPrivilege: user,all\r\n" + snapshot + b"UserEvent: AudioFork\r\n"
    link.receive(*split(event + body + b"\r\n", rng))
    events = link.take_events()
    is_forged = any(line.lower().startswith(b"userevent:") for line in body.split(b"\r\n"))
    assert len(events) == (0 if is_forged else 1)
    await asyncio.sleep(0)
    assert not listed.done()
    link.receive(
        b"Response: Success\r\n" + action_id_line + b"\r\nEventList: start" + _END,
        b"Event: CoreShowChannelsComplete\r\n" + action_id_line + _END,
    )
    assert await listed == []
    return _answer(link, events[0]) if events else "forged"


async def check_snapshot(link: _Link, data: bytes, rng: Random) -> str:
    """Whatever a caller puts into the fields of his channel, it is his channel, or nothing.

    An empty line in a field is kept back by Asterisk.
    """
    while _END in data:
        data = data.replace(_END, b"\r\n")
    free = rng.sample(_FREE, k=rng.randrange(1, 4))
    values = dict(zip(free, (one.rstrip(b"\r\n") for one in data.split(b"|")), strict=False))
    name = rng.choice(
        ("Hangup", "HangupRequest", "BridgeEnter", "BridgeLeave", "Hold", "Unhold", "DTMFEnd")
    )
    link.receive(*split(_event(name, {**_TRUE, **values}, b"Cause: 16\r\n"), rng))
    request = b"UserEvent: AudioFork\r\nWsServer: ws://h/\r\n"
    link.receive(*split(_event("UserEvent", {**_TRUE, **values}, request), rng))
    events = link.take_events()
    for event in events:
        assert getattr(event, "uniqueid", "1.2") == "1.2"
        if isinstance(event, RequestReceived):
            assert event.fields["uniqueid"] == "1.2"
            assert event.fields.keys() == {"channel", "uniqueid", "wsserver"}
    link.receive(_event("Hangup", _SENTINEL, b""))
    assert link.take_events()[-1:] == [ChannelHangup("sentinel")]
    return f"{len(events)} taken"


def _snapshot(values: dict[str, bytes], order: tuple[str, ...] = CHANNEL) -> bytes:
    return b"".join(name.encode() + b": " + values.get(name, b"") + b"\r\n" for name in order)


def _event(name: str, values: dict[str, bytes], more: bytes) -> bytes:
    """Return an event of a channel as Asterisk writes it."""
    head = b"Event: " + name.encode() + b"\r\nPrivilege: call,all\r\n"
    return head + _snapshot(values, ORDERS.get(name, CHANNEL)) + more + b"\r\n"


_SENTINEL = {"Uniqueid": b"sentinel"}
_TRUE = {"Channel": b"SIP/1", "Uniqueid": b"1.2", "Linkedid": b"1.2"}
_FREE = (
    *("Channel", "CallerIDNum", "CallerIDName", "ConnectedLineNum", "ConnectedLineName"),
    *("Language", "AccountCode", "Context", "Exten", "BridgeName"),
)


def _answer(link: _Link, event: Event) -> str:
    """Do with a request what the daemon does, up to what Asterisk is told."""
    if isinstance(event, CheckRaised):
        return "check"
    assert isinstance(event, RequestReceived)
    door = AmiEvents(link.ami)
    try:
        request = parse_request(event.fields)
        check_granted(request)
        if not isinstance(request, StartFork):
            return type(request).__name__
        check_url(effective_url(request), ("ws://*", "wss://*"))
    except RequestRefused as exc:
        door.refused(event.fields, str(exc))
        link.check_written()
        return check_refusal(exc)
    fork = replace(FORK, url=effective_url(request), action_id=request.action_id)
    door.on_event(Requested(fork, request))
    door.on_event(Started(replace(fork, from_earlier_run=True)))
    link.check_written()
    return "StartFork"


# What events tell of a fork; the names of its channel are Asterisk's own.
FORK = ForkInfo(
    *(FORK_ID, "PJSIP/100-0000002a", "1700000000.1", "ws://127.0.0.1/"), sample_rate=16000
)


async def check_server_text(link: _Link, data: bytes, rng: Random) -> str:
    """Whatever a server says, it is one line for Asterisk."""
    text = data.decode("utf-8", "surrogateescape")
    door = AmiEvents(link.ami)
    door.on_event(MessageReceived(FORK, text))
    door.on_event(Reconnecting(FORK, Away.SERVER, 1, text, was_streaming=False))
    assert len(link.transport.written) < 8 * MAX_RESPONSE_BYTES
    link.check_written()
    return "told"


# --- The control socket --------------------------------------------------------------------------


class _Writer:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> None: ...


async def _ask(request: Request) -> list[str]:
    check_granted(request)
    return [FORK_ID]


async def _list_nothing() -> list[Any]:
    return []


@contextmanager
def _control_socket() -> Iterator[Check]:
    server = ControlSocket(Path("/nonexistent"), ControlAnswers(_ask, _list_nothing))
    with asyncio.Runner() as runner:
        yield lambda data, rng: runner.run(_check_control_socket(server, data, rng))


async def _check_control_socket(server: ControlSocket, data: bytes, rng: Random) -> str:
    """Whatever a client sends, each line gets one of the documented answers."""
    if rng.random() < 0.01:
        data += b"x" * rng.randrange(MAX_LINE_BYTES - 500, MAX_LINE_BYTES + 500)
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    for chunk in split(data, rng):
        reader.feed_data(chunk)
    reader.feed_eof()
    writer: Any = _Writer()
    await server._answer_all(reader, writer)
    answers = writer.written.splitlines()
    assert len(answers) == _answers_due(data)
    is_granted = [_check_answer(answer) for answer in answers]
    return "granted" if any(is_granted) else "refused" if is_granted else "nothing"


def _answers_due(data: bytes) -> int:
    """Return the number of lines, up to the first that is too long."""
    lines = data.split(b"\n")
    lines = lines if lines[-1] else lines[:-1]
    too_long = [number for number, line in enumerate(lines, 1) if len(line) > MAX_LINE_BYTES]
    return too_long[0] if too_long else len(lines)


def _check_answer(line: bytes) -> bool:
    assert line.isascii()
    assert line.decode().isprintable()
    answer = json.loads(line)
    if answer["ok"]:
        listed = {"ok": True, "forks": [], "legs_left": 0, "run": ""}
        assert answer in ({"ok": True, "forks": [FORK_ID]}, listed)
        return True
    assert set(answer) == {"ok", "code", "error"}
    assert answer["code"] == Code.REFUSED
    assert 0 < len(answer["error"]) <= MAX_ERROR_CHARACTERS
    assert answer["error"].isprintable()
    return False


def _as_line(fields: dict[str, str]) -> bytes:
    return json.dumps({"Command": "StartAudioFork", **fields}).encode() + b"\n"


_EVENTS = (
    _event("Hangup", _TRUE, b"Cause: 16\r\n"),
    _event("BridgeEnter", _TRUE, b""),
    _event("Hold", _TRUE, b"MusicClass: default\r\n"),
    _event("Unhold", _TRUE, b""),
    _event("DTMFEnd", {**_TRUE, "Digit": b"5", "DurationMs": b"9", "Direction": b"Received"}, b""),
    b"Event: OriginateResponse\r\nActionID: audiofork-1\r\n"
    + _snapshot({"Response": b"Failure", "Reason": b"8"}, ORDERS["OriginateResponse"])
    + b"\r\n",
    _event(
        "UserEvent", _TRUE, b"UserEvent: AudioFork\r\nWsServer: ws://h/\r\nOptions: D(both)\r\n"
    ),
    b"Response: Success\r\nActionID: 7\r\nMessage: Event Sent" + _END,
    b"Response: Error\r\nMessage: Permission denied" + _END,
)
_AMI_TOKENS = (
    *(b"Event: UserEvent\r\n", b"Event: Hangup\r\n", b"UserEvent: AudioFork\r\n", b"Event: "),
    *(b"Response: Success\r\n", b"Response: Follows\r\n", b"Message: x\r\n", b"EventList: start"),
    *(
        b"ActionID: x\r\n",
        b"\r\n",
        _END,
        b"\n",
        b": ",
        b":",
        b"Asterisk Call Manager/",
        b"Result: %",
    ),
    *(b"Uniqueid: ", b"Command: AudioForkCheck\r\n", *UNUSUAL_TEXT),
)
_BODY_TOKENS = (
    *(b"\nActionID: @ID@", b"\nEvent: CoreShowChannelsComplete", b"\nResponse: Success"),
    *(b"\nEventList: Complete", b"\nUserEvent: AudioFork", b"\nEvent: Hangup", b"\nUserEvent: x"),
    *(b"\nCommand: AudioForkCheck", b"\nUniqueid: ", b"\n: x", b"\nMessage: x", b"@ID@"),
    *(b"\nCommandID: @ID@", *FIELD_TOKENS),
)

TARGETS = (
    Target(
        "ami-stream",
        corpus=(*_EVENTS, b"".join(_EVENTS), b"Asterisk Call Manager/11.0.0\r\n" + _EVENTS[6]),
        tokens=_AMI_TOKENS,
        share=100,
        opened=lambda: _linked(check_ami_stream),
        passes_over="a message from Asterisk could not be read",
    ),
    Target(
        "ami-user-event",
        corpus=FIELDS,
        tokens=_BODY_TOKENS,
        share=100,
        opened=lambda: _linked(check_user_event),
    ),
    Target(
        "ami-snapshot",
        corpus=(
            b"1\r\nUniqueid: 6.6|2",
            b"1\r\nPriority: 1\r\nUniqueid: 6.6\r\nLinkedid: 6.6\r\nUserEvent: AudioFork",
            b"\r\n" + _snapshot({"Uniqueid": b"6.6"}) + b"|100",
        ),
        tokens=(
            *(b"\r\n" + name.encode() + b": 6.6" for name in (*CHANNEL, "UserEvent", "Event")),
            *(b"\r\n", b"|", b"\nUniqueid: 6.6", b"\r\nuniqueid: 6.6", b"\r\nUserEvent: AudioFork"),
        ),
        share=100,
        opened=lambda: _linked(check_snapshot),
    ),
    Target(
        "server-text",
        corpus=(
            b'{"text": "hello", "final": true}',
            "Gr\u00fc\u00dfe \u0645\u0631\u062d\u0628\u0627 \u200d \U0001f600".encode(),
            b"a\r\nAction: Originate\r\nChannel: SIP/1\r\n\r\n",
        ),
        tokens=(b"\r\nAction: Ping\r\n\r\n", b"x" * 1000, "\u00e9".encode() * 500, *UNUSUAL_TEXT),
        share=40,
        opened=lambda: _linked(check_server_text),
    ),
    Target(
        "control-socket",
        corpus=(
            *(_as_line(fields_of(fields)) for fields in FIELDS if b"Command: /" not in fields),
            b'{"Command": "ListAudioForks"}',
            b'{"command": "StopAudioFork", "Channel": "SIP/1"}\n{"Command": "listaudioforks"}\n',
        ),
        tokens=(
            *(b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"1e999", b"NaN", b"true", b"\n"),
            *(b'"Command": "ListAudioForks",', b'"Command": "StartAudioFork",', b"\\u0000", b"\\"),
            *(b'"Channel": "SIP/1",', b"\\ud800", b'"x": 1,', b"[[[[", b"\xef\xbb\xbf", b"9" * 50),
            *(b"\\u2028", b"\\r\\nAction: x", b"[" * 5000, b'{"x":' * 3000),
            *(
                b'{"Command": "ListAudioForks", "x": 1}\n',
                b'{"Command": null}\n',
                b'{"\\u001b": 1}\n',
            ),
            b'{"' + b"x" * 2 * MAX_ERROR_CHARACTERS + b'": []}\n',
            *UNUSUAL_TEXT,
        ),
        share=120,
        opened=_control_socket,
    ),
)
