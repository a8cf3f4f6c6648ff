"""The formats whose audio is binary: what each says around it."""

from __future__ import annotations

import audioop
import json
from typing import Any

import pytest

from audiofork.link.dialogue import Dialogue
from audiofork.link.messages import Codec, Direction, Format
from audiofork.relay.formats.base import Audio, Dtmf, MessageFormat, Mute, Text
from tests.relay.formats.formats import CALL, FORK_ID, PARAMS, make

BINARY = [one for one in Format if one is not Format.TWILIO]
FRAME = audioop.ulaw2lin(bytes(range(160)), 2)


def opening(one: MessageFormat) -> dict[str, Any]:
    (text,) = one.opening(0, 0)
    told: dict[str, Any] = json.loads(text)
    return told


@pytest.mark.parametrize("format_", BINARY)
def test_audio_is_the_frames_as_they_are(format_: Format) -> None:
    one = make(format_)
    assert one.is_verbatim
    assert one.audio((FRAME, FRAME), 7) == (FRAME + FRAME,)
    assert one.payload_bytes(640) == 640


@pytest.mark.parametrize("format_", [Format.RAW, Format.JSON])
@pytest.mark.parametrize(
    ("codec", "decode"), [(Codec.ULAW, audioop.ulaw2lin), (Codec.ALAW, audioop.alaw2lin)]
)
def test_audio_in_another_codec_is_half_as_long(format_: Format, codec: Codec, decode: Any) -> None:
    one = make(format_, codec=codec)
    assert not one.is_verbatim
    ((encoded),) = one.audio((FRAME,), 0)
    assert len(encoded) == one.payload_bytes(320) == 160
    again = decode(encoded, 2)
    difference = audioop.add(FRAME, audioop.mul(again, 2, -1), 2)
    assert audioop.max(difference, 2) < 1024
    audio = opening(one)["audio"]
    assert (audio["encoding"], audio["bits"]) == (codec.value, 8)


def test_vonage_begins_with_the_call_and_the_content_type() -> None:
    told = opening(make(Format.VONAGE, sample_rate=16000))
    assert told["event"] == "websocket:connected"
    assert told["content-type"] == "audio/l16;rate=16000"
    assert (told["caller_number"], told["ticket"]) == ("+49301234", "47 & 11")


@pytest.mark.parametrize("name", ["content-type", "event"])
def test_vonage_keeps_its_own_fields_whatever_the_parameters_are(name: str) -> None:
    told = opening(make(Format.VONAGE, params={name: "mine"}))
    assert told[name] in ("audio/l16;rate=8000", "websocket:connected")


@pytest.mark.parametrize(
    ("direction", "mix"),
    [
        (Direction.IN, "mono"),
        (Direction.OUT, "mono"),
        (Direction.BOTH, "mixed"),
        (Direction.STEREO, "stereo"),
    ],
)
def test_jambonz_begins_with_the_attributes_of_the_call(direction: Direction, mix: str) -> None:
    told = opening(make(Format.JAMBONZ, direction))
    assert told["mixType"] == mix
    assert (told["callSid"], told["from"], told["to"]) == (CALL["uniqueid"], "+49301234", "100")
    assert (told["sampleRate"], told["metadata"]) == (8000, PARAMS)


@pytest.mark.parametrize(
    ("wishes", "name", "size"),
    [
        ({}, "slin", 320),
        ({"sample_rate": 16000}, "slin16", 640),
        ({"direction": Direction.STEREO}, "slin", 640),
    ],
)
def test_chan_websocket_begins_with_media_start(
    wishes: dict[str, Any], name: str, size: int
) -> None:
    assert opening(make(Format.CHAN_WEBSOCKET, **wishes)) == {
        "event": "MEDIA_START",
        "connection_id": FORK_ID,
        "channel": CALL["channel"],
        "channel_id": CALL["uniqueid"],
        "format": name,
        "optimal_frame_size": size,
        "ptime": 20,
        "channel_variables": PARAMS,
    }


@pytest.mark.parametrize(
    ("format_", "told"),
    [
        (Format.VONAGE, {"event": "websocket:dtmf", "digit": "5", "duration": 90}),
        (Format.JAMBONZ, {"event": "dtmf", "dtmf": "5", "duration": "90"}),
        (Format.CHAN_WEBSOCKET, {"event": "DTMF_END", "digit": "5"}),
    ],
)
def test_key_is_told(format_: Format, told: dict[str, object]) -> None:
    (text,) = make(format_).event(Dtmf("5", 90), 9)
    assert told.items() <= json.loads(text).items()


@pytest.mark.parametrize("format_", BINARY)
def test_text_of_the_server_is_a_text_and_audio_of_it_is_audio(format_: Format) -> None:
    one = make(format_, sample_rate=16000)
    assert one.meaning("hello") == Text("hello")
    assert one.meaning(bytes(320)) == Audio(bytes(320), 16000)
    if not format_.has_mute:
        assert one.event(Mute(is_in=True, is_out=True), 0) == ()


@pytest.mark.parametrize("format_", Format)
def test_texts_of_a_profile_come_after_the_opening_and_before_the_end(format_: Format) -> None:
    plain, one = make(format_), make(format_, dialogue=Dialogue(opening="hello", closing="bye"))
    assert list(one.opening(0, 0)) == [*plain.opening(0, 0), "hello"]
    assert list(one.audio((FRAME,), 0)) == list(plain.audio((FRAME,), 0))
    assert one.is_verbatim == plain.is_verbatim
    assert one.payload_bytes(320) == plain.payload_bytes(320)
    assert list(one.gap(9, 1)) == list(plain.gap(9, 1))
    assert list(one.event(Dtmf("5"), 0)) == list(plain.event(Dtmf("5"), 0))
    assert one.meaning("x") == plain.meaning("x")
    assert list(one.closing("hangup", 9, 0)) == ["bye", *plain.closing("hangup", 9, 0)]
