"""The AudioSocket codec: literal bytes in, messages out, and the reverse."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.audiosocket import (
    HANGUP_MESSAGE,
    MAX_PAYLOAD_BYTES,
    SAMPLE_RATES,
    Decoder,
    Kind,
    Message,
    encode,
    frame_bytes,
)
from audiofork.errors import AudioSocketProtocolError, BadLength, MessageTooBig

UUID_BYTES = bytes.fromhex("3f2a91c0d1e84c529a7b0123456789ab")
FRAME = bytes(range(160)) * 2

# What is on the wire, and what it means.
WIRE = {
    "hangup": (b"\x00\x00\x00", [Message(0x00, b"")]),
    "uuid": (b"\x01\x00\x10" + UUID_BYTES, [Message(0x01, UUID_BYTES)]),
    "silence": (b"\x02\x00\x00", [Message(0x02, b"")]),
    "dtmf": (b"\x03\x00\x015", [Message(0x03, b"5")]),
    "unknown low kind": (b"\x04\x00\x03abc", [Message(0x04, b"abc")]),
    "last before audio": (b"\x0f\x00\x01x", [Message(0x0F, b"x")]),
    "slin": (b"\x10\x01\x40" + FRAME, [Message(0x10, FRAME)]),
    "slin pairs": (b"\x10\x02\x80" + FRAME * 2, [Message(0x10, FRAME * 2)]),
    "slin one sample": (b"\x10\x00\x02\x34\x12", [Message(0x10, b"\x34\x12")]),
    "slin12": (b"\x11\x00\x02\x01\x02", [Message(0x11, b"\x01\x02")]),
    "slin16": (b"\x12\x00\x02\x01\x02", [Message(0x12, b"\x01\x02")]),
    "slin24": (b"\x13\x00\x02\x01\x02", [Message(0x13, b"\x01\x02")]),
    "slin32": (b"\x14\x00\x02\x01\x02", [Message(0x14, b"\x01\x02")]),
    "slin44": (b"\x15\x00\x02\x01\x02", [Message(0x15, b"\x01\x02")]),
    "slin48": (b"\x16\x00\x02\x01\x02", [Message(0x16, b"\x01\x02")]),
    "slin96": (b"\x17\x00\x02\x01\x02", [Message(0x17, b"\x01\x02")]),
    "slin192 largest": (b"\x18\x3c\x00" + bytes(15_360), [Message(0x18, bytes(15_360))]),
    "unknown kind after audio": (b"\x19\x00\x01z", [Message(0x19, b"z")]),
    "unknown high kind": (b"\xfe\x00\x00", [Message(0xFE, b"")]),
    "error without text": (b"\xff\x00\x00", [Message(0xFF, b"")]),
    "error with code": (b"\xff\x00\x01\x04", [Message(0xFF, b"\x04")]),
    "unknown kind, largest": (b"\x80\x3c\x00" + bytes(15_360), [Message(0x80, bytes(15_360))]),
    "nothing": (b"", []),
    "half a header": (b"\x10\x01", []),
    "header alone": (b"\x10\x01\x40", []),
    "one byte short": (b"\x10\x01\x40" + FRAME[:-1], []),
    "a leg's beginning": (
        b"\x01\x00\x10" + UUID_BYTES + (b"\x10\x01\x40" + FRAME) * 2 + b"\x03\x00\x01#\x10\x01",
        [Message(1, UUID_BYTES), Message(0x10, FRAME), Message(0x10, FRAME), Message(3, b"#")],
    ),
}

# Headers that no peer may send, and the error they get.
BROKEN = {
    "hangup with payload": (b"\x00\x00\x01", BadLength, "0x00 has 1 bytes, expected 0"),
    "uuid empty": (b"\x01\x00\x00", BadLength, "0x01 has 0 bytes, expected 16"),
    "uuid short": (b"\x01\x00\x0f", BadLength, "0x01 has 15 bytes, expected 16"),
    "uuid as text": (b"\x01\x00\x24", BadLength, "0x01 has 36 bytes, expected 16"),
    "dtmf empty": (b"\x03\x00\x00", BadLength, "0x03 has 0 bytes, expected 1"),
    "dtmf of two digits": (b"\x03\x00\x02", BadLength, "0x03 has 2 bytes, expected 1"),
    "audio empty": (b"\x10\x00\x00", BadLength, "0x10 has 0 bytes, expected a positive even"),
    "audio of half samples": (b"\x10\x01\x41", BadLength, "0x10 has 321 bytes, expected a posi"),
    "slin192 empty": (b"\x18\x00\x00", BadLength, "0x18 has 0 bytes, expected a positive even"),
    "slin48 odd": (b"\x16\x00\x01", BadLength, "0x16 has 1 bytes, expected a positive even"),
    "one byte too big": (b"\x19\x3c\x01", MessageTooBig, "announces 15361 bytes, expected no mo"),
    "audio too big": (b"\x10\x3c\x02", MessageTooBig, "announces 15362 bytes, expected no more"),
    "as big as it gets": (b"\xff\xff\xff", MessageTooBig, "announces 65535 bytes, expected no"),
    "an HTTP request": (b"GET / HTTP/1.1\r\n", MessageTooBig, "0x47 announces 17748 bytes"),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01", BadLength, "0x16 has 769 bytes"),
}


def decode(chunks: Iterable[bytes]) -> tuple[list[Message], str | None]:
    """Return the messages of a connection, and the error that ended it."""
    decoder = Decoder()
    messages: list[Message] = []
    for chunk in [*chunks, b""]:
        try:
            messages += decoder.feed(chunk)
        except AudioSocketProtocolError as exc:
            return messages, f"{type(exc).__name__}: {exc}"
    return messages, None


def single_bytes(wire: bytes) -> list[bytes]:
    return [wire[i : i + 1] for i in range(len(wire))]


@pytest.mark.parametrize(("wire", "messages"), WIRE.values(), ids=WIRE)
def test_feed_whole_gives_messages(wire: bytes, messages: list[Message]) -> None:
    assert Decoder().feed(wire) == messages


@pytest.mark.parametrize(("wire", "messages"), WIRE.values(), ids=WIRE)
def test_feed_byte_by_byte_gives_the_same_messages(wire: bytes, messages: list[Message]) -> None:
    assert decode(single_bytes(wire)) == (messages, None)


def test_every_known_kind_is_among_the_examples() -> None:
    seen = {message.kind for _, messages in WIRE.values() for message in messages}
    assert {int(kind) for kind in Kind} <= seen
    assert set(SAMPLE_RATES) == {Kind(number) for number in range(0x10, 0x19)}


def test_feed_half_a_message_gives_it_when_the_rest_comes() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\x10\x00") == []
    assert decoder.error is None
    assert decoder.feed(b"\x04\x01\x02\x03") == []
    assert decoder.feed(b"\x04\x03") == [Message(0x10, b"\x01\x02\x03\x04")]
    assert decoder.feed(b"\x00\x01*") == [Message(0x03, b"*")]


@pytest.mark.parametrize(("wire", "error", "text"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("cut", [lambda wire: [wire], single_bytes], ids=["whole", "by byte"])
def test_feed_broken_header_raises_before_the_payload_comes(
    cut: Callable[[bytes], list[bytes]],
    wire: bytes,
    error: type[AudioSocketProtocolError],
    text: str,
) -> None:
    decoder = Decoder()
    *before, last = cut(wire[:3])
    assert [decoder.feed(chunk) for chunk in before] == [[]] * len(before)
    with pytest.raises(error) as raised:
        decoder.feed(last)
    assert text in str(raised.value)
    assert isinstance(raised.value, AudioSocketProtocolError)


def test_feed_messages_before_a_broken_header_come_first_then_the_error() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\x03\x00\x015" + b"\x10\x01\x40" + FRAME + b"\x10\x00\x03abc") == [
        Message(0x03, b"5"),
        Message(0x10, FRAME),
    ]
    assert str(decoder.error) == "message 0x10 has 3 bytes, expected a positive even number"
    for chunk in (b"", b"\x03\x00\x015"):
        with pytest.raises(BadLength, match="0x10 has 3 bytes"):
            decoder.feed(chunk)


def test_feed_after_an_error_refuses_what_would_be_good() -> None:
    decoder = Decoder()
    with pytest.raises(BadLength):
        decoder.feed(b"\x00\x00\x01")
    for chunk in (b"\x03\x00\x015", b"", b"\x00\x00\x00"):
        with pytest.raises(BadLength, match="0x00 has 1 bytes"):
            decoder.feed(chunk)


@pytest.mark.parametrize(
    ("kind", "payload", "wire"),
    [
        (Kind.HANGUP, b"", b"\x00\x00\x00"),
        (Kind.UUID, UUID_BYTES, b"\x01\x00\x10" + UUID_BYTES),
        (Kind.DTMF, b"5", b"\x03\x00\x015"),
        (Kind.SLIN, FRAME, b"\x10\x01\x40" + FRAME),
        (Kind.SLIN16, FRAME * 2, b"\x12\x02\x80" + FRAME * 2),
        (0x77, b"?", b"\x77\x00\x01?"),
    ],
)
def test_encode_gives_literal_bytes(kind: int, payload: bytes, wire: bytes) -> None:
    assert encode(kind, payload) == wire


def test_hangup_message_is_three_zero_bytes() -> None:
    assert HANGUP_MESSAGE == b"\x00\x00\x00" == encode(Kind.HANGUP)


@pytest.mark.parametrize(
    ("kind", "length", "error"),
    [
        (Kind.HANGUP, 1, BadLength),
        (Kind.UUID, 15, BadLength),
        (Kind.DTMF, 0, BadLength),
        (Kind.SLIN, 0, BadLength),
        (Kind.SLIN192, 3, BadLength),
        (Kind.SLIN, MAX_PAYLOAD_BYTES + 2, MessageTooBig),
        (Kind.ERROR, 70_000, MessageTooBig),
    ],
)
def test_encode_what_no_peer_accepts_raises(
    kind: Kind, length: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        encode(kind, bytes(length))


def allowed_payloads(kind: int) -> st.SearchStrategy[bytes]:
    fixed = {Kind.HANGUP: 0, Kind.UUID: 16, Kind.DTMF: 1}.get(Kind(kind)) if kind < 4 else None
    if fixed is not None:
        return st.binary(min_size=fixed, max_size=fixed)
    if kind in SAMPLE_RATES:
        return st.binary(min_size=1, max_size=40).map(lambda half: half * 2)
    return st.binary(max_size=40)


allowed_messages = st.integers(0, 255).flatmap(
    lambda kind: st.builds(Message, st.just(kind), allowed_payloads(kind))
)


def cut(wire: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(point % (len(wire) + 1) for point in points), len(wire)]
    return [wire[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@pytest.mark.slow
@given(st.lists(allowed_messages, max_size=8), st.lists(st.integers(0, 10_000), max_size=8))
def test_decode_of_encoded_messages_gives_them_back(
    messages: list[Message], points: list[int]
) -> None:
    wire = b"".join(encode(kind, payload) for kind, payload in messages)
    assert decode(cut(wire, points)) == (messages, None)


# Headers that are likely to be allowed, so that the bytes get past the first of them.
likely_wire = st.lists(
    st.one_of(
        allowed_messages.map(lambda message: encode(*message)),
        st.binary(max_size=8),
        st.tuples(st.sampled_from([0, 1, 2, 3, 0x10, 0x18, 0x40, 0xFF]), st.integers(0, 20)).map(
            lambda header: bytes([header[0], 0, header[1]])
        ),
    ),
    max_size=8,
).map(b"".join)


@pytest.mark.slow
@given(likely_wire, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_bytes_in_any_split_mean_the_same(wire: bytes, points: list[int]) -> None:
    whole, error = decode([wire])
    by_byte, error_by_byte = decode(single_bytes(wire))
    split, error_split = decode(cut(wire, points))
    assert error == error_by_byte == error_split
    assert whole == split == by_byte


# --- A chunk that is one message -----------------------------------------------------------------

ONE_MESSAGE = b"\x10\x01\x40" + bytes(range(160)) * 2


def is_usual(decoder: Decoder, chunk: bytes) -> bool:
    """Tell whether a chunk need not be fed, as a leg does."""
    return len(chunk) == decoder.usual_bytes and chunk[:3] == decoder.usual_header


def test_chunk_like_the_last_audio_is_usual_once_there_was_some() -> None:
    decoder = Decoder()
    assert not is_usual(decoder, ONE_MESSAGE)
    decoder.feed(ONE_MESSAGE)
    assert is_usual(decoder, ONE_MESSAGE)
    assert (decoder.usual_header, decoder.usual_bytes) == (b"\x10\x01\x40", 323)


@pytest.mark.parametrize(
    "chunk",
    [
        b"",
        ONE_MESSAGE[:-1],
        ONE_MESSAGE + b"\0",
        b"\x11" + ONE_MESSAGE[1:],
        b"\x10\x01\x41" + ONE_MESSAGE[3:],
    ],
    ids=["nothing", "short", "long", "another kind", "another length"],
)
def test_any_other_chunk_is_not_usual(chunk: bytes) -> None:
    decoder = Decoder()
    assert not is_usual(decoder, chunk)
    decoder.feed(ONE_MESSAGE)
    assert not is_usual(decoder, chunk)


def test_no_chunk_is_usual_in_the_middle_of_a_message_or_after_an_error() -> None:
    decoder = Decoder()
    decoder.feed(ONE_MESSAGE + ONE_MESSAGE[:5])
    assert not is_usual(decoder, ONE_MESSAGE)
    decoder.feed(ONE_MESSAGE[5:])
    assert is_usual(decoder, ONE_MESSAGE)
    broken = Decoder()
    broken.feed(ONE_MESSAGE)
    with pytest.raises(AudioSocketProtocolError):
        broken.feed(b"\x10\xff\xff")
    assert not is_usual(broken, ONE_MESSAGE)
    assert not is_usual(broken, b"")


def test_no_chunk_is_usual_after_an_error_behind_good_audio() -> None:
    decoder = Decoder()
    decoder.feed(ONE_MESSAGE)
    assert decoder.feed(ONE_MESSAGE + b"\x10\xff\xff") == [Message(0x10, ONE_MESSAGE[3:])]
    assert not is_usual(decoder, ONE_MESSAGE)


@pytest.mark.parametrize("kind", SAMPLE_RATES)
def test_audio_of_any_kind_is_usual_by_its_own_header(kind: Kind) -> None:
    decoder = Decoder()
    decoder.feed(ONE_MESSAGE)
    wide = bytes([kind]) + b"\x02\x80" + bytes(640)
    decoder.feed(wide)
    assert is_usual(decoder, wide)
    assert not is_usual(decoder, ONE_MESSAGE)


@pytest.mark.parametrize(
    "other", [b"\x03\x00\x015", b"\x02\x00\x00", b"\x77\x00\x02ab"], ids=["dtmf", "silence", "new"]
)
def test_audio_stays_usual_after_messages_of_another_kind(other: bytes) -> None:
    decoder = Decoder()
    decoder.feed(ONE_MESSAGE)
    decoder.feed(other)
    assert is_usual(decoder, ONE_MESSAGE)
    assert not is_usual(decoder, other)


@pytest.mark.parametrize(
    ("rate", "size"), [(8000, 320), (12_000, 480), (16_000, 640), (44_100, 1764), (192_000, 7680)]
)
def test_frame_of_20_ms_has_the_bytes_of_its_rate(rate: int, size: int) -> None:
    assert frame_bytes(rate) == size


@given(st.lists(st.sampled_from([ONE_MESSAGE, b"\x12\x00\x02ab", b"\x03\x00\x015"]), max_size=12))
def test_usual_chunks_that_are_not_fed_leave_the_decoder_where_it_is(chunks: list[bytes]) -> None:
    fed, spared = Decoder(), Decoder()
    for chunk in chunks:
        messages = fed.feed(chunk)
        if is_usual(spared, chunk):
            assert messages == [Message(chunk[0], chunk[3:])]
        else:
            assert spared.feed(chunk) == messages
        assert (fed.usual_header, fed.usual_bytes) == (spared.usual_header, spared.usual_bytes)
