"""What messages of servers mean, in each format's own words, and what they are answered with."""

from __future__ import annotations

import audioop
import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.link.messages import Codec, Format, ServerCommand
from audiofork.relay.formats.base import (
    Audio,
    BufferLevel,
    Cleared,
    Command,
    Event,
    Mark,
    Meaning,
    MessageFormat,
    Text,
)
from tests.relay.formats.formats import CALL, make

CLEAR, HANGUP = Command(ServerCommand.CLEAR), Command(ServerCommand.HANGUP)
PAUSE, RESUME = Command(ServerCommand.PAUSE), Command(ServerCommand.RESUME)
SAMPLES = bytes(range(160))
IN_BASE64 = base64.b64encode(SAMPLES).decode()


def mark(name: str) -> Command:
    return Command(ServerCommand.MARK, name)


def play_audio(**data: object) -> str:
    whole = {"audioContentType": "raw", "sampleRate": "16000", "audioContent": IN_BASE64, **data}
    return json.dumps({"type": "playAudio", "data": whole})


MEANINGS: list[tuple[Format, str, Meaning]] = [
    (Format.RAW, '{"command": "clear"}', Text('{"command": "clear"}')),
    (Format.JSON, '{"command": "clear"}', CLEAR),
    (Format.JSON, '{"command": "mark", "name": "a b"}', mark("a b")),
    (Format.JSON, '{"command": "mark", "name": 7}', mark("")),
    (Format.JSON, '{"command": "hangup"}', HANGUP),
    (Format.JSON, '{"command": "pause"}', PAUSE),
    (Format.JSON, '{"command": "resume"}', RESUME),
    (Format.JSON, '{"command": "dtmf", "digits": "1#"}', Command(ServerCommand.DTMF, "1#")),
    (
        Format.JSON,
        '{"command": "transfer", "to": "a,b,1"}',
        Command(ServerCommand.TRANSFER, "a,b,1"),
    ),
    (Format.JSON, '{"command": "audio"}', Text('{"command": "audio"}')),
    (Format.JSON, '{"command": ["clear"]}', Text('{"command": ["clear"]}')),
    (
        Format.TWILIO,
        json.dumps({"event": "media", "media": {"payload": IN_BASE64}}),
        Audio(audioop.ulaw2lin(SAMPLES, 2), 8000),
    ),
    (Format.TWILIO, '{"event": "media", "media": {"payload": "%%%"}}', None),
    (Format.TWILIO, '{"event": "media", "media": {"payload": ""}}', None),
    (Format.TWILIO, '{"event": "media", "media": []}', None),
    (Format.TWILIO, '{"event": "mark", "mark": {"name": "x"}}', mark("x")),
    (Format.TWILIO, '{"event": "clear", "streamSid": "MZ"}', CLEAR),
    (Format.VONAGE, '{"action": "clear"}', CLEAR),
    (Format.VONAGE, '{"action": "notify", "payload": {"a": [1]}}', mark('{"a": [1]}')),
    (Format.VONAGE, '{"action": "other"}', Text('{"action": "other"}')),
    (Format.JAMBONZ, '{"type": "killAudio"}', CLEAR),
    (Format.JAMBONZ, '{"type": "mark", "data": {"name": "x"}}', mark("x")),
    (Format.JAMBONZ, '{"type": "disconnect"}', HANGUP),
    (Format.JAMBONZ, play_audio(), Audio(SAMPLES, 16000)),
    (Format.JAMBONZ, play_audio(sampleRate=8000), Audio(SAMPLES, 8000)),
    (Format.JAMBONZ, play_audio(sampleRate=[]), None),
    (Format.JAMBONZ, play_audio(audioContentType="wave"), None),
    (Format.CHAN_WEBSOCKET, '{"command": "FLUSH_MEDIA"}', CLEAR),
    (Format.CHAN_WEBSOCKET, "FLUSH_MEDIA", CLEAR),
    (Format.CHAN_WEBSOCKET, '{"command": "HANGUP"}', HANGUP),
    (
        Format.CHAN_WEBSOCKET,
        '{"command": "MARK_MEDIA", "correlation_id": "7"}',
        mark("MEDIA_MARK_PROCESSED 7"),
    ),
    (Format.CHAN_WEBSOCKET, "MARK_MEDIA 7", mark("MEDIA_MARK_PROCESSED 7")),
    (Format.CHAN_WEBSOCKET, '{"command": "MARK_MEDIA"}', mark("MEDIA_MARK_PROCESSED")),
    (Format.CHAN_WEBSOCKET, "STOP_MEDIA_BUFFERING x", mark("MEDIA_BUFFERING_COMPLETED x")),
    (Format.CHAN_WEBSOCKET, "REPORT_QUEUE_DRAINED", mark("QUEUE_DRAINED")),
    (Format.CHAN_WEBSOCKET, "START_MEDIA_BUFFERING", None),
    (Format.CHAN_WEBSOCKET, '{"command": "ANSWER"}', None),
    (Format.CHAN_WEBSOCKET, '{"command": "SET_MEDIA_DIRECTION", "direction": "out"}', PAUSE),
    (Format.CHAN_WEBSOCKET, "SET_MEDIA_DIRECTION both", RESUME),
    (Format.CHAN_WEBSOCKET, "hello", Text("hello")),
]


@pytest.mark.parametrize(("format_", "message", "means"), MEANINGS)
def test_text_of_a_server_means_what_its_format_says(
    format_: Format, message: str, means: Meaning
) -> None:
    assert make(format_).meaning(message) == means


ANSWERS: list[tuple[Format, Event, dict[str, object] | None]] = [
    (Format.RAW, Mark("x"), None),
    (Format.RAW, Cleared(), None),
    (Format.JSON, Mark("x"), {"event": "mark", "name": "x", "position_ms": 140}),
    (Format.JSON, Cleared(), {"event": "cleared"}),
    (Format.JSON, BufferLevel(is_high=True), {"event": "buffer", "state": "high"}),
    (Format.JSON, BufferLevel(is_high=False), {"event": "buffer", "state": "low"}),
    (Format.TWILIO, Cleared(), None),
    (Format.TWILIO, BufferLevel(is_high=True), None),
    (Format.VONAGE, Mark('{"a": [1]}'), {"event": "websocket:notify", "payload": {"a": [1]}}),
    (Format.VONAGE, Cleared(), {"event": "websocket:cleared"}),
    (Format.JAMBONZ, Mark("x"), {"type": "mark", "data": {"name": "x", "event": "playout"}}),
    (
        Format.CHAN_WEBSOCKET,
        Mark("MEDIA_MARK_PROCESSED 7"),
        {"event": "MEDIA_MARK_PROCESSED", "channel_id": CALL["uniqueid"], "correlation_id": "7"},
    ),
    (
        Format.CHAN_WEBSOCKET,
        Mark("QUEUE_DRAINED"),
        {"event": "QUEUE_DRAINED", "channel_id": CALL["uniqueid"]},
    ),
    (
        Format.CHAN_WEBSOCKET,
        BufferLevel(is_high=True),
        {"event": "MEDIA_XOFF", "channel_id": CALL["uniqueid"]},
    ),
    (
        Format.CHAN_WEBSOCKET,
        BufferLevel(is_high=False),
        {"event": "MEDIA_XON", "channel_id": CALL["uniqueid"]},
    ),
]


@pytest.mark.parametrize(("format_", "event", "told"), ANSWERS)
def test_what_comes_of_it_is_told_in_the_same_words(
    format_: Format, event: Event, told: dict[str, object] | None
) -> None:
    texts = [json.loads(text) for text in make(format_).event(event, 7)]
    assert texts == ([told] if told is not None else [])


def test_twilio_s_mark_comes_back_numbered() -> None:
    one = make(Format.TWILIO)
    one.opening(0, 0)
    (text,) = one.event(Mark("x"), 7)
    told = json.loads(text)
    assert (told["event"], told["mark"], told["sequenceNumber"]) == ("mark", {"name": "x"}, "2")
    assert told["streamSid"].startswith("MZ")


@pytest.mark.parametrize(
    ("codec", "encode"), [(Codec.ULAW, audioop.lin2ulaw), (Codec.ALAW, audioop.lin2alaw)]
)
@pytest.mark.parametrize("format_", [Format.RAW, Format.JSON])
def test_audio_of_a_server_is_in_the_codec_of_the_fork(
    format_: Format, codec: Codec, encode: object
) -> None:
    samples = audioop.ulaw2lin(SAMPLES, 2) if codec is Codec.ULAW else audioop.alaw2lin(SAMPLES, 2)
    assert callable(encode)
    assert make(format_, codec=codec).meaning(encode(samples, 2)) == Audio(samples, 8000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["event", "command", "type", "action", "data", "media", "mark", "payload"]
            ),
            inner
            | st.sampled_from(["media", "mark", "clear", "notify", "playAudio", "MARK_MEDIA"]),
        )
    ),
    max_leaves=8,
)
FORMATS: list[MessageFormat] = [make(one) for one in Format]


@given(st.sampled_from(FORMATS), JSON.map(json.dumps) | st.text() | st.binary())
def test_any_message_means_something_or_nothing_and_any_mark_of_it_is_told(
    one: MessageFormat, message: str | bytes
) -> None:
    means = one.meaning(message)
    if isinstance(means, Command) and means.command is ServerCommand.MARK:
        one.event(Mark(means.value), 1)


@pytest.mark.parametrize("format_", Format)
def test_deep_json_of_a_server_is_no_fault(format_: Format) -> None:
    deep = '{"action": "notify", "payload": ' + "[" * 30_000 + "]" * 30_000 + "}"
    make(format_).meaning(deep)
