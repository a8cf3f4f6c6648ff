"""What a server may cost, to the frame and the byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets import utils
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import CLOSED, CONNECTING, OPEN
from websockets.uri import parse_uri

from audiofork.rate_limit import Allowance, Limit
from audiofork.relay.server_limits import (
    BYTES,
    CONTROL_FRAMES,
    COUNTED_TOGETHER,
    LEAST_BYTES,
    MAX_HEAD_BYTES,
    MESSAGES,
    LimitedProtocol,
)
from tests.told_clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def protocol(clock: Clock) -> LimitedProtocol:
    return opened(clock)


def opened(clock: Clock | None = None) -> LimitedProtocol:
    """Return a protocol whose handshake is over."""
    clock = clock or Clock()
    protocol = LimitedProtocol(parse_uri("ws://example.org/"), clock)
    accept = b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    protocol.receive_data(accept + b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_key(protocol))
    assert protocol.state is OPEN
    protocol.events_received()
    clock.now_s += 1  # what the handshake took is there again
    return protocol


def accept_key(protocol: LimitedProtocol) -> bytes:
    return utils.accept_key(protocol.key).encode()


def wire(opcode: Opcode, payload: bytes = b"", fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=False)


# --- The allowance -------------------------------------------------------------------------------


def test_allowance_gives_so_much_at_once_and_so_much_a_second(clock: Clock) -> None:
    allowance = Allowance(Limit("drops", 10, 25), clock)
    assert [allowance.take(5) for _ in range(6)] == [True] * 5 + [False]
    allowance = Allowance(Limit("drops", 10, 25), clock)
    assert allowance.take(25)
    for _ in range(100):
        clock.now_s += 0.1
        assert allowance.take(1)
    assert not allowance.take(1)


def test_allowance_does_not_grow_beyond_what_is_given_at_once(clock: Clock) -> None:
    allowance = Allowance(Limit("drops", 10, 25), clock)
    clock.now_s += 3600
    assert allowance.take(25)
    assert not allowance.take(1)


# --- Frames --------------------------------------------------------------------------------------


FLOODS = [
    (MESSAGES, wire(Opcode.TEXT)),
    (MESSAGES, wire(Opcode.TEXT, b"hello")),
    (MESSAGES, wire(Opcode.BINARY)),
    (MESSAGES, wire(Opcode.CONT, fin=False)),
    (CONTROL_FRAMES, wire(Opcode.PING)),
    (CONTROL_FRAMES, wire(Opcode.PING, b"p" * 125)),
    (CONTROL_FRAMES, wire(Opcode.PONG)),
]
IDS = ["text", "short text", "binary", "part", "ping", "long ping", "pong"]


@pytest.mark.parametrize(("limit", "frame"), FLOODS, ids=IDS)
def test_server_that_sends_more_frames_at_once_is_given_up_with_1008(
    protocol: LimitedProtocol, limit: Limit, frame: bytes
) -> None:
    first = 0
    if frame[0] & 0x0F == Opcode.CONT:
        protocol.receive_data(wire(Opcode.TEXT, fin=False))
        first = 1
    protocol.receive_data(frame * (limit.at_once - first))
    assert protocol.state is OPEN
    protocol.receive_data(frame * 1000)
    assert protocol.costs_too_much
    assert protocol.close_sent == Close(1008, f"more than {limit.a_second} {limit.what} a second")
    assert len(protocol.events_received()) == limit.at_once


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "frame"), FLOODS, ids=IDS)
def test_server_may_send_so_many_a_second_for_ever(
    protocol: LimitedProtocol, clock: Clock, limit: Limit, frame: bytes
) -> None:
    protocol.receive_data(wire(Opcode.TEXT, fin=False) if frame[0] & 0x0F == 0 else b"")
    for _ in range(100):
        clock.now_s += 1
        protocol.receive_data(frame * limit.a_second)
    assert protocol.state is OPEN


def test_pongs_are_bounded_by_the_pings_that_are_taken(protocol: LimitedProtocol) -> None:
    protocol.receive_data(wire(Opcode.PING, b"p" * 125) * 10_000)
    pongs = [data for data in protocol.data_to_send() if data[0] & 0x0F == Opcode.PONG]
    assert len(pongs) == CONTROL_FRAMES.at_once


def test_nothing_of_a_server_that_is_given_up_is_taken_any_more(
    protocol: LimitedProtocol,
) -> None:
    protocol.receive_data(wire(Opcode.PONG) * 1000 + wire(Opcode.TEXT, b"late"))
    protocol.receive_data(wire(Opcode.TEXT, b"later"))
    assert all(frame.opcode is Opcode.PONG for frame in frames(protocol))


def frames(protocol: LimitedProtocol) -> list[Frame]:
    return [event for event in protocol.events_received() if isinstance(event, Frame)]


# --- Messages that are handed on at once ----------------------------------------------------------

STREAM: list[tuple[bytes, list[bytes | str]]] = [
    (wire(Opcode.BINARY, bytes(range(256)) + bytes(64)), [bytes(range(256)) + bytes(64)]),
    (wire(Opcode.BINARY, b"ab"), [b"ab"]),
    (wire(Opcode.TEXT, "Zoë".encode()), ["Zoë"]),
    (wire(Opcode.TEXT, b"x" * 125), ["x" * 125]),
    (wire(Opcode.TEXT, b"x" * 126), ["x" * 126]),
    (wire(Opcode.BINARY, bytes(65_535)), [bytes(65_535)]),
    (wire(Opcode.BINARY, bytes(65_536)), [bytes(65_536)]),
    (wire(Opcode.BINARY), [b""]),
    (wire(Opcode.TEXT), [""]),
    (wire(Opcode.TEXT, b"o"), ["o"]),
    (wire(Opcode.PING, b"p"), []),
    (
        wire(Opcode.TEXT, b"Zo\xc3", fin=False) + wire(Opcode.PING) + wire(Opcode.CONT, b"\xab"),
        ["Zo\u00eb"],
    ),
    (wire(Opcode.BINARY, b"a", fin=False) + wire(Opcode.CONT, b"b", fin=False), []),
    (wire(Opcode.CONT, b"c"), [b"abc"]),
]


@pytest.mark.slow
@given(
    order=st.lists(st.integers(0, len(STREAM) - 3), max_size=8),
    sizes=st.lists(st.sampled_from([1, 3, 100, 5000, 10**6]), min_size=1, max_size=4),
)
def test_messages_are_handed_on_in_order_however_they_are_cut(
    order: list[int], sizes: list[int]
) -> None:
    protocol = opened()
    taken: list[bytes | str] = []
    protocol.take = taken.append
    data = b"".join(STREAM[index][0] for index in order)
    for number in range(100_000):
        chunk, data = data[: sizes[number % len(sizes)]], data[sizes[number % len(sizes)] :]
        if not chunk:
            break
        if not protocol.takes_at_once(chunk):
            protocol.receive_data(chunk)
        if len(data) > 1000:  # bytes one by one would only cost time
            chunk, data = data[:-1000], data[-1000:]
            protocol.receive_data(chunk)
    assert taken == [message for index in order for message in STREAM[index][1]]
    assert all(frame.opcode is Opcode.PING for frame in frames(protocol))
    assert protocol.state is OPEN


@pytest.mark.parametrize(("data", "messages"), STREAM)
def test_each_message_is_handed_on_once(
    protocol: LimitedProtocol, data: bytes, messages: list[bytes | str]
) -> None:
    taken: list[bytes | str] = []
    protocol.take = taken.append
    if not protocol.takes_at_once(data):
        protocol.receive_data(data)
    if data == STREAM[-1][0]:
        assert protocol.close_sent == Close(1002, "unexpected continuation frame")
    else:
        assert taken == messages


@pytest.mark.parametrize(
    "data",
    [
        wire(Opcode.BINARY, b"abc") + wire(Opcode.BINARY, b"abc"),
        wire(Opcode.BINARY, b"abc")[:-1],
        wire(Opcode.BINARY, bytes(300))[:-1],
        wire(Opcode.BINARY, bytes(65_536))[: 2 + 127],  # as if the length were 127
        wire(Opcode.BINARY, b"abc", fin=False),
        wire(Opcode.CLOSE, b"\x03\xe8"),
        Frame(Opcode.BINARY, b"abcd").serialize(mask=True),
        b"\xc2\x03abc",  # a bit that no extension gives a meaning to
        wire(Opcode.TEXT, b"\xff\xff"),
    ],
    ids=["two", "short", "short long", "64 bits", "part", "close", "masked", "reserved", "no text"],
)
def test_what_is_not_one_message_goes_the_long_way(protocol: LimitedProtocol, data: bytes) -> None:
    taken: list[bytes | str] = []
    protocol.take = taken.append
    assert not protocol.takes_at_once(data)
    assert taken == []


def test_nothing_is_handed_on_at_once_in_the_middle_of_another_message(
    protocol: LimitedProtocol,
) -> None:
    protocol.take = lambda _: None
    whole = wire(Opcode.BINARY, b"abc")
    protocol.receive_data(whole[:1])
    assert not protocol.takes_at_once(whole)
    protocol.receive_data(whole[1:] + wire(Opcode.TEXT, fin=False))
    assert not protocol.takes_at_once(whole)
    protocol.receive_data(wire(Opcode.CONT) + wire(Opcode.CLOSE))
    assert not protocol.takes_at_once(whole)


def test_text_that_is_none_closes_with_1007(protocol: LimitedProtocol) -> None:
    protocol.take = lambda _: None
    protocol.receive_data(wire(Opcode.TEXT, b"\xff\xff"))
    assert protocol.close_sent is not None
    assert protocol.close_sent.code == 1007


@pytest.mark.parametrize(("size", "limit"), [(2, MESSAGES), (16_000, BYTES)])
def test_messages_that_are_handed_on_at_once_count(
    protocol: LimitedProtocol, size: int, limit: Limit
) -> None:
    taken: list[bytes | str] = []
    protocol.take = taken.append
    data = wire(Opcode.BINARY, bytes(size))
    while protocol.takes_at_once(data):
        pass
    allowed = limit.at_once // (len(data) if limit is BYTES else 1)
    assert allowed - COUNTED_TOGETHER < len(taken) < allowed + COUNTED_TOGETHER
    protocol.receive_data(data)
    assert protocol.close_sent == Close(1008, f"more than {limit.a_second} {limit.what} a second")


# --- Bytes ---------------------------------------------------------------------------------------


def test_server_that_sends_more_bytes_is_given_up(protocol: LimitedProtocol) -> None:
    message = wire(Opcode.BINARY, bytes(60_000))
    taken = 0
    while not protocol.costs_too_much:
        protocol.receive_data(message)
        taken += len(message)
    assert BYTES.at_once < taken <= BYTES.at_once + len(message)
    assert protocol.close_sent == Close(1008, f"more than {BYTES.a_second} bytes a second")


def test_reads_of_next_to_nothing_count_as_more(protocol: LimitedProtocol) -> None:
    protocol.receive_data(wire(Opcode.TEXT, bytes(60_000))[:4])
    reads = 1
    while not protocol.costs_too_much:
        protocol.receive_data(b"x")
        reads += 1
    assert reads == BYTES.at_once // LEAST_BYTES + 1


def test_bytes_after_a_close_frame_count_too(protocol: LimitedProtocol) -> None:
    protocol.receive_data(wire(Opcode.CLOSE, b"\x03\xe9"))
    protocol.receive_data(bytes(BYTES.at_once))
    assert protocol.costs_too_much
    assert protocol.close_rcvd == Close(1001, "")


# --- The answer to the handshake -----------------------------------------------------------------

REFUSALS: list[tuple[str, Callable[[bytes], list[bytes]]]] = [
    ("whole", lambda answer: [answer]),
    ("byte by byte", lambda answer: [bytes((byte,)) for byte in answer]),
]


@pytest.mark.parametrize("body", ["Content-Length: 99999999", "Transfer-Encoding: chunked", "X: y"])
@pytest.mark.parametrize("cut", [cut for _, cut in REFUSALS], ids=[name for name, _ in REFUSALS])
def test_status_of_a_refusal_decides_whatever_its_body(
    clock: Clock, body: str, cut: Callable[[bytes], list[bytes]]
) -> None:
    protocol = LimitedProtocol(parse_uri("ws://example.org/"), clock)
    head = f"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n{body}\r\n\r\n".encode()
    for chunk in cut(head):
        protocol.receive_data(chunk)
    (response,) = protocol.events_received()
    assert isinstance(response, Response)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "7")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 403 Forbidden\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\nContent-Length: 8\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 403\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 403 Forbidden\r\nX: " + b"y" * MAX_HEAD_BYTES,
    ],
    ids=["1.0", "two lengths", "gzip", "no reason", "many headers", "long header"],
)
def test_status_of_a_refusal_decides_whatever_its_head(clock: Clock, answer: bytes) -> None:
    protocol = LimitedProtocol(parse_uri("ws://example.org/"), clock)
    protocol.receive_data(answer)
    (response,) = protocol.events_received()
    assert isinstance(response, Response)
    assert response.status_code == 403


def test_status_of_a_refusal_that_breaks_off_decides(clock: Clock) -> None:
    protocol = LimitedProtocol(parse_uri("ws://example.org/"), clock)
    protocol.receive_data(b"HTTP/1.1 403 Forbidden\r\nX: y")
    protocol.receive_eof()
    (response,) = protocol.events_received()
    assert isinstance(response, Response)
    assert response.status_code == 403


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 4", b"y" * 20_000])
def test_what_is_no_answer_is_garbage(clock: Clock, answer: bytes) -> None:
    protocol = LimitedProtocol(parse_uri("ws://example.org/"), clock)
    if answer:
        protocol.receive_data(answer)
    protocol.receive_eof()
    assert protocol.state is CLOSED
    assert protocol.handshake_exc is not None
    assert not protocol.events_received()


def test_refusal_that_never_ends_costs_no_more_than_others(clock: Clock) -> None:
    protocol = LimitedProtocol(parse_uri("ws://example.org/"), clock)
    protocol.receive_data(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    while not protocol.costs_too_much:
        protocol.receive_data(b"x" * 65_536)
    assert protocol.state is CONNECTING


# --- Whatever comes ------------------------------------------------------------------------------

CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.builds(
            lambda first, payload: bytes((first, len(payload))) + payload,
            st.one_of(
                st.sampled_from([0x00, 0x80, 0x01, 0x81, 0x82, 0x89, 0x8A]), st.integers(0, 255)
            ),
            st.binary(max_size=125),
        ),
        st.sampled_from([b"HTTP/1.1 403 No\r\n", b"HTTP/1.1 101 Go\r\n", b"\r\n", b"\r\n\r\n"]),
    ),
    max_size=30,
)


@pytest.mark.slow
@pytest.mark.parametrize("is_open", [False, True], ids=["handshake", "open"])
@given(chunks=CHUNKS)
def test_nothing_that_comes_raises(is_open: bool, chunks: list[bytes]) -> None:
    clock = Clock()
    protocol = LimitedProtocol(parse_uri("ws://example.org/"), clock)
    if is_open:
        accept = b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        protocol.receive_data(accept + b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_key(protocol))
    for chunk in chunks:
        protocol.receive_data(chunk)
        protocol.events_received()
        protocol.data_to_send()
    protocol.receive_eof()
    protocol.receive_eof()
    assert protocol.state is CLOSED
