"""Twilio's Media Streams: its messages to the letter."""

from __future__ import annotations

import audioop
import base64
import json
import re
from typing import Any

import pytest

from audiofork.link.messages import Direction, Format
from audiofork.relay.formats.base import Dtmf, Message, Text
from tests.relay.formats.formats import make

ULAW = bytes(range(127)) + bytes(range(128, 161))  # but for 127, the other zero
FRAME = audioop.ulaw2lin(ULAW, 2)
STREAM = "MZ3f2a91c0d1e84c529a7b0123456789ab"


def read(messages: Any) -> list[dict[str, Any]]:
    return [json.loads(one) for one in messages]


def payload(message: Message) -> bytes:
    return base64.b64decode(json.loads(message)["media"]["payload"])


def test_opening_is_connected_and_start() -> None:
    connected, start = read(make(Format.TWILIO).opening(0, 0))
    assert connected == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    sids = {name: start["start"].pop(name) for name in ("accountSid", "callSid")}
    assert re.fullmatch("AC[0-9a-f]{32}", sids["accountSid"])
    assert re.fullmatch("CA[0-9a-f]{32}", sids["callSid"])
    assert start == {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "streamSid": STREAM,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {
                "from_number": "+49301234",
                "to_number": "100",
                "ticket": "47 & 11",
            },
        },
        "streamSid": STREAM,
    }


def test_media_is_mu_law_in_base64_and_numbers_are_strings() -> None:
    twilio = make(Format.TWILIO)
    twilio.opening(0, 0)
    twilio.audio((FRAME,), 0)
    (text,) = twilio.audio((FRAME,), 7)
    assert isinstance(text, str)
    assert json.loads(text) == {
        "event": "media",
        "sequenceNumber": "3",
        "media": {
            "track": "inbound",
            "chunk": "2",
            "timestamp": "140",
            "payload": base64.b64encode(ULAW).decode(),
        },
        "streamSid": STREAM,
    }


@pytest.mark.parametrize(
    ("direction", "tracks"),
    [
        (Direction.IN, ["inbound"]),
        (Direction.OUT, ["outbound"]),
        (Direction.BOTH, ["inbound"]),
        (Direction.STEREO, ["inbound", "outbound"]),
    ],
)
def test_each_side_is_a_track_with_chunks_of_its_own(
    direction: Direction, tracks: list[str]
) -> None:
    twilio = make(Format.TWILIO, direction)
    _, start = read(twilio.opening(0, 0))
    assert start["start"]["tracks"] == tracks
    silent = bytes(320)
    is_stereo = direction is Direction.STEREO
    stereo = audioop.add(audioop.tostereo(FRAME, 2, 1, 0), audioop.tostereo(silent, 2, 0, 1), 2)
    messages = twilio.audio((stereo if is_stereo else FRAME,), 0)
    media = [one["media"] for one in read(messages)]
    assert [one["track"] for one in media] == tracks
    assert [one["chunk"] for one in media] == ["1"] * len(tracks)
    assert [payload(one) for one in messages] == [ULAW, b"\xff" * 160][: len(tracks)]


def test_several_frames_are_one_message() -> None:
    (text,) = make(Format.TWILIO).audio((FRAME, FRAME), 0)
    assert payload(text) == ULAW * 2


def test_next_connection_is_numbered_anew_and_keeps_the_clock() -> None:
    twilio = make(Format.TWILIO)
    twilio.opening(0, 0)
    twilio.audio((FRAME,), 0)
    _, start = read(twilio.opening(500, 20))
    (media,) = read(twilio.audio((FRAME,), 500))
    assert (start["sequenceNumber"], media["sequenceNumber"]) == ("1", "2")
    assert (media["media"]["chunk"], media["media"]["timestamp"]) == ("1", "10000")


def test_key_and_end_are_told() -> None:
    twilio = make(Format.TWILIO)
    twilio.opening(0, 0)
    (dtmf,) = read(twilio.event(Dtmf("#"), 9))
    (stop,) = read(twilio.closing("hangup", 9, 0))
    assert dtmf["dtmf"] == {"track": "inbound_track", "digit": "#"}
    assert (dtmf["sequenceNumber"], stop["sequenceNumber"]) == ("2", "3")
    assert sorted(stop["stop"]) == ["accountSid", "callSid"]


@pytest.mark.parametrize(
    ("message", "means"),
    [
        ('{"event":"media","media":{}}', None),
        (b"audio", None),
        ('{"event":"hello"}', Text('{"event":"hello"}')),
        ("hello", Text("hello")),
        ("[" * 100_000, Text("[" * 100_000)),
        ("[]", Text("[]")),
        ('{"event":[]}', Text('{"event":[]}')),
        ('{"event":{"a":1}}', Text('{"event":{"a":1}}')),
    ],
)
def test_messages_of_the_server(message: Message, means: object) -> None:
    assert make(Format.TWILIO).meaning(message) == means


def test_message_is_about_as_long_as_it_is_taken_for() -> None:
    for direction, frame in ((Direction.IN, FRAME), (Direction.STEREO, FRAME * 2)):
        twilio = make(Format.TWILIO, direction)
        size = sum(len(one) for one in twilio.audio((frame,), 12_345))
        assert abs(twilio.payload_bytes(len(frame)) - size) < 0.1 * size
