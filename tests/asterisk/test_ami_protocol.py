"""What goes over AMI: which bytes are which events, and what is left out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audiofork.asterisk import ami_protocol, reconnecting
from audiofork.asterisk.ami_protocol import (
    BridgeChanged,
    ChannelHangup,
    CheckRaised,
    Event,
    ForgedMessage,
    HoldChanged,
    KeyPressed,
    OriginateFailed,
    RequestReceived,
)
from audiofork.asterisk.snapshots import CHANNEL, Forged
from audiofork.config import AsteriskConfig
from audiofork.errors import AmiUnavailable
from tests.control_plane import AmiRun, FakeAsterisk, block, raw_block


@pytest.fixture(autouse=True)
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnecting, "FIRST_RETRY_S", 0.01)


# --- Typed events --------------------------------------------------------------------------------

SNAPSHOT = (
    "Event: UserEvent",
    "Privilege: user,all",
    "Channel: PJSIP/100-0000002a",
    "ChannelState: 6",
    "CallerIDName: Zoë",
    "Uniqueid: 1700000000.1",
    "Linkedid: 1700000000.0",
    "UserEvent: AudioFork",
)
CALLER_DATA = ("PJSIP/100-0000002a", "Zoë")
OWN_CHANNEL = {"channel": "PJSIP/100-0000002a", "uniqueid": "1700000000.1"}
BODY_ALONE = ("Event: UserEvent", "Privilege: user,all", "UserEvent: AudioFork")


def typed_of(*lines: str) -> Event | None:
    return ami_protocol.typed("UserEvent", ami_protocol.parse("\r\n".join(lines)))


CHECK = ("Command: AudioForkCheck", "AudioForkID: t", "LegUUID: u")


@pytest.mark.parametrize(
    ("lines", "event"),
    [
        (CHECK[:1], CheckRaised("")),
        (CHECK, CheckRaised("t", "u")),
        ((*CHECK[:2], "Answer: came", "Run: r"), CheckRaised("t", "", "came", "r")),
    ],
)
def test_event_of_a_check_is_whole_from_ami_and_has_no_more_than_its_token_from_a_dialplan(
    lines: tuple[str, ...], event: Event
) -> None:
    """What a dialplan raises may hold what a caller has chosen."""
    assert typed_of(*BODY_ALONE, *lines) == event
    snapshot = (f"{name}: x" for name in CHANNEL)
    dialplan = typed_of("Event: UserEvent", *snapshot, "UserEvent: AudioFork", *lines)
    assert isinstance(event, CheckRaised)
    assert dialplan == CheckRaised(event.token)


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        pytest.param([*SNAPSHOT], OWN_CHANNEL, id="dialplan-empty-body"),
        pytest.param(
            [*SNAPSHOT, "WsServer: ws://a:80/b: c"],
            {**OWN_CHANNEL, "wsserver": "ws://a:80/b: c"},
            id="dialplan",
        ),
        pytest.param(
            [*SNAPSHOT, "Channel: PJSIP/2"], {"channel": "PJSIP/2"}, id="dialplan-other-channel"
        ),
        pytest.param(
            [*SNAPSHOT, "UNIQUEID: 2.2"], {"uniqueid": "2.2"}, id="dialplan-other-uniqueid"
        ),
        pytest.param([*SNAPSHOT, "Channel: "], {"channel": ""}, id="dialplan-empty-channel"),
        pytest.param(
            [*BODY_ALONE, "ActionID: 7", "Channel: PJSIP/2", "WsServer: ws://a"],
            {"actionid": "7", "channel": "PJSIP/2", "wsserver": "ws://a"},
            id="ami",
        ),
        pytest.param([*BODY_ALONE], {"channel": "", "uniqueid": ""}, id="ami-empty-body"),
        pytest.param(
            [*BODY_ALONE, "Channel: a", "Event: Hangup", "Uniqueid: 1"],
            {"channel": "a", "event": "Hangup", "uniqueid": "1"},
            id="second-event-header",
        ),
        pytest.param(
            [*BODY_ALONE, "Channel: a", "event: Shutdown"],
            {"channel": "a", "event": "Shutdown"},
            id="event-shutdown",
        ),
        pytest.param(
            [*BODY_ALONE, "Channel: a", "Response: Error"],
            {"channel": "a", "response": "Error"},
            id="response-header",
        ),
        pytest.param(
            [*BODY_ALONE, "Channel:a", "WsServer:ws://b"],
            {"channel": "a", "wsserver": "ws://b"},
            id="no-space-after-colon",
        ),
        pytest.param(
            [*BODY_ALONE, "Channel: a", "Options:", "Foo: "],
            {"channel": "a", "options": "", "foo": ""},
            id="empty-values",
        ),
        pytest.param([*BODY_ALONE, "Channel: a", "foo"], {"channel": "a"}, id="no-colon"),
        pytest.param(
            [*BODY_ALONE, "Channel: a", "Options: \x01\n\x85\u2028b"],
            {"channel": "a", "options": "\x01\n\x85\u2028b"},
            id="control-characters-come-as-they-are",
        ),
    ],
)
async def test_user_event_is_a_request_with_the_fields_of_its_body(
    asterisk: FakeAsterisk, link: AmiRun, lines: list[str], fields: dict[str, str]
) -> None:
    asterisk.send(block(*lines))
    caller_data = CALLER_DATA if lines[2].startswith("Channel") else ()
    assert await link.settled() == [RequestReceived(fields, caller_data=caller_data)]


async def test_field_that_comes_twice_is_told(asterisk: FakeAsterisk, link: AmiRun) -> None:
    asterisk.send(block(*BODY_ALONE, "Channel: a", "CHANNEL: b"))
    assert await link.settled() == [RequestReceived({"channel": "b"}, repeated="CHANNEL")]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([*BODY_ALONE, "Channel: a", "UserEvent: Other"], id="second-name"),
        pytest.param([*BODY_ALONE, "Channel: a", "userevent: AudioFork"], id="in-lower-case"),
        pytest.param([*SNAPSHOT[:-1], "Uniqueid: 6.6", SNAPSHOT[-1]], id="uniqueid-in-snapshot"),
        pytest.param([SNAPSHOT[0], "Channel: a", "UserEvent: AudioFork"], id="half-a-snapshot"),
    ],
)
async def test_user_event_with_forged_lines_is_dropped_and_told(
    asterisk: FakeAsterisk, link: AmiRun, lines: list[str]
) -> None:
    asterisk.send(raw_block(*lines))
    (event,) = await link.settled()
    assert isinstance(event, ForgedMessage)
    assert event.detail.startswith("UserEvent of ")


@pytest.mark.parametrize(
    ("lines", "event"),
    [
        pytest.param(
            ["Event: Hangup", "Channel: a", "Uniqueid: 1.1", "Cause: 16"],
            ChannelHangup("1.1"),
            id="hangup",
        ),
        pytest.param(
            ["Event: HangupRequest", "Channel: a", "Uniqueid: 1.1"],
            ChannelHangup("1.1", is_gone=False),
            id="hangup-request",
        ),
        pytest.param(
            ["Event: Hold", "Channel: PJSIP/100-1", "Uniqueid: 1.1", "MusicClass: default"],
            HoldChanged("1.1", "PJSIP/100-1", True),
            id="hold",
        ),
        pytest.param(
            ["Event: Unhold", "Channel: PJSIP/100-1", "Uniqueid: 1.1"],
            HoldChanged("1.1", "PJSIP/100-1", False),
            id="unhold",
        ),
        pytest.param(
            [
                *("Event: DTMFEnd", "Channel: PJSIP/100-1", "Uniqueid: 1.1", "Digit: #"),
                *("DurationMs: 120", "Direction: Received"),
            ],
            KeyPressed("1.1", "#", 120),
            id="key",
        ),
        pytest.param(
            ["Event: BridgeEnter", "BridgeUniqueid: b", "Channel: a", "Uniqueid: 1.1"],
            BridgeChanged("1.1", True),
            id="bridge-enter",
        ),
        pytest.param(
            ["Event: BridgeLeave", "BridgeUniqueid: b", "Channel: a", "Uniqueid: 1.1"],
            BridgeChanged("1.1", False),
            id="bridge-leave",
        ),
        pytest.param(
            ["Event: OriginateResponse", "ActionID: x", "Response: Failure", "Reason: 8"],
            OriginateFailed("x", "8"),
            id="originate-failed",
        ),
    ],
)
async def test_event_is_typed(
    asterisk: FakeAsterisk, link: AmiRun, lines: list[str], event: Event
) -> None:
    asterisk.send(block(*lines))
    assert await link.settled() == [event]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Event: OriginateResponse", "Response: Success"], id="originate-success"),
        pytest.param(["Event: Newchannel", "Uniqueid: 1.1"], id="newchannel"),
        pytest.param(["Event: BridgeCreate", "BridgeUniqueid: b"], id="bridge-create"),
        pytest.param(["Event: Shutdown", "Shutdown: Cleanly"], id="shutdown"),
        pytest.param(["Event: UserEvent", "UserEvent: Other", "UserEvent: AudioFork"], id="other"),
        pytest.param(["Event: UserEvent", "UserEvent: AudioForkStarted"], id="our-own"),
        pytest.param(["Event: UserEvent", "UserEvent: audiofork"], id="lower-case"),
        pytest.param(["Event: UserEvent", "Foo: bar"], id="without-name"),
        pytest.param(["Event: FullyBooted"], id="fully-booted"),
        pytest.param(["Response: Success", "ActionID: unknown"], id="stray-response"),
        pytest.param(["Response: Success", "ActionID: a", "ActionID: b"], id="two-ids"),
        pytest.param(["garbage"], id="garbage"),
        pytest.param(["\x00\x01: \x02", ": x", ":"], id="binary"),
        pytest.param([""], id="empty"),
    ],
)
async def test_other_messages_are_nothing_and_harm_nothing(
    asterisk: FakeAsterisk, link: AmiRun, lines: list[str]
) -> None:
    asterisk.send(block(*lines))
    asterisk.send(block("Event: Hangup", "Uniqueid: 1.1"))
    events = [one for one in await link.settled() if not isinstance(one, ForgedMessage)]
    assert events == [ChannelHangup("1.1")]
    assert len(asterisk.connections) == 1


async def test_bytes_that_are_not_utf_8_are_replaced(asterisk: FakeAsterisk, link: AmiRun) -> None:
    asterisk.send(block("Event: Hangup", "Uniqueid: X").replace(b"X", b"a\xffb\xc3"))
    assert await link.settled() == [ChannelHangup("a\ufffdb\ufffd")]


@pytest.mark.slow
def test_what_is_dropped_unread_would_have_been_nothing() -> None:
    """Whatever a message holds, it is dropped only if parsing it yields no event and no answer."""
    piece = st.sampled_from(
        [b"Event: ", b"Event:", b"UserEvent", b"UserEvent: ", b"AudioFork", b"Hangup", b"\r\n"]
        + [b"\n", b"\r", b" ", b":", b"ActionID: 1", b"Status", b"Response: Success", b"\xff\xe2"]
    )

    @settings(max_examples=2000)
    @given(st.lists(piece, max_size=12))
    @example([b"Event: ", b"UserEvent", b"\r\n", b"UserEvent: ", b"AudioFork"])
    def check(pieces: list[bytes]) -> None:
        data = b"Event: " + b"".join(pieces)
        if not ami_protocol.is_foreign(data):
            return
        headers = ami_protocol.parse(data.decode("utf-8", "replace"))
        name, value = headers[0]
        assert name == "Event"
        assert value == "UserEvent" or not any(name == "ActionID" for name, _ in headers)
        with contextlib.suppress(Forged):
            assert ami_protocol.typed(value, headers) is None

    check()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Event: RTCPSent", "Privilege: reporting,all"], id="other-event"),
        pytest.param(["Event: UserEvent", "UserEvent: Other", "ActionID: 1"], id="user-event"),
        pytest.param(["Event: UserEvent", "Foo: UserEvent: AudioFork"], id="user-event-in-value"),
    ],
)
def test_foreign_event_is_dropped_unread(lines: list[str]) -> None:
    assert ami_protocol.is_foreign("\r\n".join(lines).encode())


async def test_message_without_end_breaks_the_link_which_comes_back(
    asterisk: FakeAsterisk, link: AmiRun, caplog: pytest.LogCaptureFixture
) -> None:
    asterisk.send(b"Event: UserEvent\r\nFoo: " + b"x" * 1_100_000)
    await link.up()
    assert "did not end within" in caplog.text
    assert len(asterisk.connections) == 2


async def test_message_of_a_megabyte_with_an_end_is_read(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    asterisk.send(block(*BODY_ALONE, "Channel: a", "Foo: " + "x" * 1_000_000))
    (event,) = await link.settled()
    assert isinstance(event, RequestReceived)
    assert len(event.fields["foo"]) == 1_000_000


# --- Bytes ---------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport in memory: actions are answered, and chunks arrive exactly as fed."""

    def __init__(self, factory: Callable[[], asyncio.Protocol]) -> None:
        super().__init__()
        self.writes = 0
        self.protocol = factory()
        self.protocol.connection_made(self)
        asyncio.get_running_loop().call_soon(
            self.protocol.data_received, b"Asterisk Call Manager/1\r\n"
        )

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        lines = bytes(data).decode().split("\r\n")
        action_id = next(line for line in lines if line.startswith("ActionID"))
        asyncio.get_running_loop().call_soon(
            self.protocol.data_received, block("Response: Success", action_id)
        )

    def abort(self) -> None:
        self.protocol.connection_lost(None)


@pytest.fixture
async def wire(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A link whose reads the test chooses: (transport, run)."""
    wires: list[Wire] = []

    async def create_connection(factory: Callable[[], asyncio.Protocol], *_: Any, **__: Any) -> Any:
        wires.append(Wire(factory))
        return wires[0], wires[0].protocol

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
    run = AmiRun(AsteriskConfig(secret="x"))
    await run.up()
    yield wires[0], run
    await run.cancel()


async def test_request_of_a_dialplan_tells_its_channel_and_one_of_ami_tells_none(
    asterisk: FakeAsterisk, link: AmiRun
) -> None:
    asterisk.send(block(*SNAPSHOT, "Uniqueid: 2.2"))
    asterisk.send(block(*BODY_ALONE, "Uniqueid: 2.2"))
    events = await link.settled()
    assert [event.raised_by for event in events if isinstance(event, RequestReceived)] == [
        "1700000000.1",
        "",
    ]


STREAM = (
    block(*SNAPSHOT, "WsServer: ws://a/", "Note: Zoë 🎧")
    + block("Event: Hangup", "Uniqueid: Zoë")
    + block("Event: OriginateResponse", "ActionID: 1", "Response: Failure", "Reason: 0")
)
STREAM_EVENTS = [
    RequestReceived(
        {**OWN_CHANNEL, "wsserver": "ws://a/", "note": "Zoë 🎧"}, caller_data=CALLER_DATA
    ),
    ChannelHangup("Zoë"),
    OriginateFailed("1", "0"),
]


async def test_stream_split_at_any_byte_gives_the_same_events(wire: Any) -> None:
    protocol, run = wire[0].protocol, wire[1]
    for position in range(len(STREAM) + 1):
        protocol.data_received(STREAM[:position])
        protocol.data_received(STREAM[position:])
        assert run.events == STREAM_EVENTS, position
        run.events.clear()


async def test_stream_byte_by_byte_gives_the_same_events(wire: Any) -> None:
    protocol, run = wire[0].protocol, wire[1]
    for position in range(len(STREAM)):
        protocol.data_received(STREAM[position : position + 1])
    assert run.events == STREAM_EVENTS


async def test_link_just_lost_takes_nothing_more(wire: Any) -> None:
    transport, run = wire
    writes = transport.writes
    transport.abort()
    with pytest.raises(AmiUnavailable, match="the connection to Asterisk is lost"):
        await run.ami.action("Ping", [])
    transport.protocol.connection_lost(None)  # as after a close from both sides
    assert transport.writes == writes


async def test_event_raised_on_a_link_just_lost_is_not_written(wire: Any) -> None:
    transport, run = wire
    writes = transport.writes
    transport.abort()
    run.ami.raise_event("AudioForkStarted", [])
    assert transport.writes == writes
