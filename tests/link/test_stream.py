"""The messages of the link as bytes and back, and what each end does about a bad peer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import traceback
import typing
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.config import (
    Address,
    AsteriskConfig,
    AudioSocketConfig,
    Config,
    LogConfig,
    Proxy,
    SecurityConfig,
    WebSocketConfig,
)
from audiofork.link import messages as model
from audiofork.link import stream as link_module
from audiofork.link.messages import (
    Beeps,
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HeardAudio,
    LegLost,
    LegPart,
    Levels,
    LevelsTaken,
    SetMute,
    SinkMessage,
    StatsTaken,
    TakeStats,
    Tls,
)
from audiofork.link.stream import (
    Close,
    Configure,
    Down,
    Link,
    Listening,
    NotListening,
    Ping,
    Pong,
    Up,
    decode_down,
    decode_up,
    encode,
)

ID = "3f2a91c0-1111-4222-8333-444455556666"
STATS = ForkStats(5, 4, 1, 2, 3)
# What a line that is no message is refused with.
REFUSED = (
    "^no JSON$|^no message$|^[A-Za-z]* is not known here$"
    "| has (another type|a value that is not known)$| lacks [a-z_, ]*$"
)
SPEC = ForkSpec(
    fork_id=ID,
    channel="PJSIP/100-0000002a",
    url="wss://example.org/ü?token=\n\u2028\ud800",
    direction=Direction.STEREO,
    legs=(LegPart.IN, LegPart.OUT),
    sample_rate=16_000,
    gain_in=-4,
    keep_time=True,
    gate_open=False,
    beeps=Beeps(2.5, at_end=True),
    tls=Tls(ca_file="/ca.pem", insecure=True),
    reconnect_interval_s=0.25,
    reconnect_attempts=0,
    proxy=Proxy("socks5", "::1", 1080, "pbx:s3cret"),
    frame_ms=100,
)
CONFIG = Config(
    asterisk=AsteriskConfig(secret="hunter2"),
    audiosocket=AudioSocketConfig(
        listen=Address("::1", 9093),
        allow=(IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/32")),
    ),
    websocket=WebSocketConfig(backlog=3, ca_list_file="/ca.pem"),
    security=SecurityConfig(allow_urls=("ws://a/", "wss://b/"), allow_private=False),
    log=LogConfig(level="debug", format="json"),
)


def values_of(hint: object) -> st.SearchStrategy[object]:
    """Return any value that a type hint of a message allows."""
    return st.from_type(hint)  # type: ignore[arg-type]


ANY_DOWN = st.one_of(*(values_of(one) for one in typing.get_args(model.Command)))
ANY_UP = st.one_of(
    *(values_of(one) for one in typing.get_args(model.ForkReport)),
    values_of(StatsTaken),
    *(values_of(one) for one in typing.get_args(model.WatchReport)),
)


@pytest.mark.slow
@given(ANY_DOWN)
def test_any_command_comes_back_as_it_was(command: model.Command) -> None:
    assert repr(decode_down(encode(command))) == repr(command)  # not a number equals nothing


@given(ANY_UP)
def test_any_report_comes_back_as_it_was(report: model.ForkReport) -> None:
    assert repr(decode_up(encode(report))) == repr(report)


@pytest.mark.parametrize(
    "message", [SPEC, ForkSpec(ID, "", "", Direction.IN), Configure.of(CONFIG), Ping(), Close()]
)
def test_message_down_is_one_line_and_comes_back_equal(message: Down) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_down(line) == message


@pytest.mark.parametrize(
    "message",
    [
        StatsTaken(7, {ID: STATS, "other": ForkStats()}),
        ForkEnded(ID, EndReason.HANGUP, "", STATS),
        Listening(Address("127.0.0.1", 1)),
        NotListening(98, "Address already in use"),
        Pong(),
        HeardAudio(ID, 5, 8000, (LegPart.IN, LegPart.OUT), bytes(range(256))),
        LevelsTaken.of([ID, "other"], [1, 2, -1, -1, 1, 32767, 0, 5, 6, 0]),
    ],
)
def test_message_up_comes_back_equal(message: Up) -> None:
    assert decode_up(encode(message)) == message


def test_values_come_back_as_what_they_were() -> None:
    spec = decode_down(encode(SPEC))
    assert isinstance(spec, ForkSpec)
    assert type(spec.direction) is Direction
    assert type(spec.beeps) is Beeps
    assert type(spec.legs) is tuple
    assert type(spec.legs[0]) is LegPart
    config = decode_down(encode(Configure.of(CONFIG)))
    assert isinstance(config, Configure)
    assert type(config.audiosocket.allow[0]) is IPv4Network
    assert type(config.audiosocket.allow[1]) is IPv6Network


def test_configure_carries_nothing_of_the_control_plane() -> None:
    line = encode(Configure.of(CONFIG))
    assert b"hunter2" not in line
    config = Configure.of(CONFIG).config
    assert config.asterisk == AsteriskConfig()
    for section in ("audiosocket", "websocket", "security", "log"):
        assert getattr(config, section) == getattr(CONFIG, section)


def test_every_report_of_the_relay_can_travel() -> None:
    """Except for those that say what becomes of the links."""
    reports = set(typing.get_args(model.Report)) - set(typing.get_args(model.RelaysReport))
    assert reports <= set(typing.get_args(Up))


HEARD = HeardAudio(ID, 0, 8000, (LegPart.IN,), b"secret")


@pytest.mark.parametrize("samples", ['"c2Vjc"', '"sec ret"', '"sécret"', "7", "[115]", "null"])
def test_bytes_that_are_none_are_refused(samples: str) -> None:
    line = encode(HEARD).replace(b'"c2VjcmV0"', samples.encode())
    with pytest.raises(ValueError, match=REFUSED):
        decode_up(line)


def test_levels_are_packed_and_come_back_by_fork() -> None:
    taken = LevelsTaken.of([ID, "other"], [1, 2, -1, -1, 1, 32767, 0, 5, 6, 0])
    assert taken.levels == {
        ID: Levels(1, 2, -1, -1, mixed=True),
        "other": Levels(32767, 0, 5, 6, mixed=False),
    }
    assert LevelsTaken.of([], []).levels == {}


MUTE = json.loads(encode(SetMute(ID)))[1]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"[",
        b"[" * 100_000,
        b"null",
        b"{}",
        b'["EndFork"]',
        b'["Nonsense",{}]',
        b'[["EndFork"],{}]',
        b'["LegLost",{"fork_id":"a","part":"in","frames_in":1}]',  # a report
        b'["TakeStats",{}]',
        b'["TakeStats",[]]',
        b'["TakeStats",{"ticket":"1"}]',
        b'["TakeStats",{"ticket":1.5}]',
        b'["TakeStats",{"ticket":true}]',
        b'["TakeStats",{"ticket":null}]',
        b'["EndFork",{"fork_id":"a","reason":"whim","detail":""}]',
        b'["EndFork",{"fork_id":7,"reason":"hangup","detail":""}]',
        b'["SetGate",{"fork_id":"a","is_open":0}]',
        b'["ExpectLeg",{"fork_id":"a","part":"in"}]',
        b'["ExpectLeg",{"fork_id":"a","part":"all","leg_uuid":"b"}]',
        b'["ExpectLeg",{"fork_id":"a","part":["in"],"leg_uuid":"b"}]',
        encode(SPEC).replace(b'"legs":["in","out"]', b'"legs":["in","secret-value"]'),
        encode(SPEC).replace(b'"legs":["in","out"]', b'"legs":"in"'),
        encode(SPEC).replace(b'"insecure":true', b'"insecure":"secret-value"'),
        encode(SPEC).replace(b'"stereo"', b'"secret-value"'),
        encode(Configure.of(CONFIG)).replace(b"192.0.2.0/24", b"secret-value"),
    ],
)
def test_line_that_is_no_command_is_refused_without_its_values(line: bytes) -> None:
    with pytest.raises(ValueError, match=REFUSED) as caught:
        decode_down(line)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert decode_down(b'["TakeStats",{"ticket":1,"more":1}]') == TakeStats(1)
    assert decode_down(encode(SPEC).replace(b'"beeps":{', b'"beeps":{"x":1,')) == SPEC


def test_fields_that_an_earlier_version_does_not_have_get_their_defaults() -> None:
    line = b'["ExpectLeg",{"fork_id":"a","part":"in","leg_uuid":"b"}]'
    assert decode_down(line) == ExpectLeg("a", LegPart.IN, "b", "")
    name, fields = json.loads(encode(Configure.of(CONFIG)))
    del fields["websocket"]["playout_buffer"], fields["relay"]
    assert decode_down(json.dumps([name, fields]).encode()) == Configure.of(CONFIG)


def test_command_is_no_report() -> None:
    with pytest.raises(ValueError, match="^TakeStats is not known here$"):
        decode_up(encode(TakeStats(1)))


@given(st.binary())
def test_bytes_are_decoded_or_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        decode_down(line)


@pytest.mark.slow
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_fields_of_any_type_are_decoded_or_refused(value: object) -> None:
    for name in MUTE:
        line = json.dumps(["SetMute", {**MUTE, name: value}]).encode()
        try:
            command = decode_down(line)
        except ValueError:
            continue
        assert isinstance(command, SetMute)
        fits = str if name == "fork_id" else (bool, type(None))
        assert isinstance(getattr(command, name), fits)


# --- The socket ---


class End:
    """One end of a link, with what it heard; `peer` is the other end of the socket."""

    def __init__(self, peer: socket.socket) -> None:
        self.link = Link(decode_down, self.on_message, lambda: self.closed.set())
        self.peer = peer
        self.heard: list[Down] = []
        self.closed = asyncio.Event()
        self.fault: Exception | None = None

    def on_message(self, message: Down) -> None:
        self.heard.append(message)
        if self.fault is not None:
            raise self.fault

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.peer, data)

    async def hears(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.heard) < count:  # noqa: ASYNC110 (there is no event for it)
                await asyncio.sleep(0)


@pytest.fixture
async def end() -> AsyncIterator[End]:
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    one = End(peer)
    await one.link.open(ours)
    yield one
    one.link.close()
    peer.close()
    async with asyncio.timeout(5):
        await one.closed.wait()


async def test_messages_arrive_in_order_however_they_are_cut(end: End) -> None:
    messages = [TakeStats(number) for number in range(5)]
    data = b"".join(encode(message) for message in messages)
    for position in range(len(data)):
        await end.send(data[position : position + 1])
        await asyncio.sleep(0)
    await end.send(data)
    await end.hears(10)
    assert end.heard == messages * 2


async def test_message_longer_than_a_read_arrives(end: End) -> None:
    message = EndFork(ID, EndReason.FAULT, "x" * 3_000_000)
    await end.send(encode(message))
    await end.hears(1)
    assert end.heard == [message]


@pytest.mark.parametrize(
    "line",
    [
        b'["Later",{"secret":1}]',
        b'["EndFork",{"fork_id":"a","reason":"secret","detail":""}]',
        b'["LegLost",{"fork_id":"secret","part":"in","frames_in":1}]',
    ],
    ids=["unknown", "unknown value", "for the other end"],
)
async def test_message_that_is_not_understood_is_logged_and_the_link_goes_on(
    end: End, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    await end.send(line + b"\n" + encode(TakeStats(1)))
    await end.hears(1)
    assert end.heard == [TakeStats(1)]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "has no effect" in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_line_that_is_no_message_closes_the_link_and_is_logged(
    end: End, caplog: pytest.LogCaptureFixture
) -> None:
    good = encode(TakeStats(1))
    await end.send(good + b"nonsense secret\n" + good)
    async with asyncio.timeout(5):
        await end.closed.wait()
    assert end.heard == [TakeStats(1)]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "no JSON" in record.message
    assert "secret" not in record.message


async def test_message_without_an_end_closes_the_link(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MAX_LINE_BYTES", 1000)
    await end.send(b"x" * 1001)
    async with asyncio.timeout(5):
        await end.closed.wait()


async def test_fault_of_a_message_is_logged_and_the_link_goes_on(
    end: End, caplog: pytest.LogCaptureFixture
) -> None:
    end.fault = RuntimeError("a bug")
    await end.send(encode(TakeStats(1)) + encode(TakeStats(2)))
    await end.hears(2)
    assert [record.message for record in caplog.records] == ["TakeStats could not be handled"] * 2
    assert not end.closed.is_set()


async def test_peer_that_does_not_read_loses_the_link_and_nobody_waits(
    end: End, caplog: pytest.LogCaptureFixture
) -> None:
    message = SinkMessage(ID, "x" * 1_000_000)
    for _ in range(20):
        end.link.send(message)
    async with asyncio.timeout(5):
        await end.closed.wait()
    (record,) = caplog.records
    assert "does not read" in record.message
    end.link.send(message)  # is no error


async def test_close_lets_what_was_sent_arrive(end: End) -> None:
    message = encode(LegLost(ID, LegPart.OUT, 7))
    for _ in range(1000):
        end.link.send(LegLost(ID, LegPart.OUT, 7))
    end.link.close()
    got = b""
    async with asyncio.timeout(5):
        while chunk := await asyncio.get_running_loop().sock_recv(end.peer, 65536):
            got += chunk
    assert got == message * 1000


async def test_end_of_the_peer_is_told_after_its_last_message(end: End) -> None:
    await end.send(encode(TakeStats(1)))
    end.peer.close()
    async with asyncio.timeout(5):
        await end.closed.wait()
    assert end.heard == [TakeStats(1)]


def test_all_fields_travel() -> None:
    """No default stands in for a field that a peer leaves out: both are of one version."""
    name, fields = json.loads(encode(SPEC))
    assert name == "ForkSpec"
    assert fields.keys() == {field.name for field in dataclasses.fields(ForkSpec)}
