"""Binary messages of slin, and nothing else."""

from __future__ import annotations

import pytest

from audiofork.relay.formats.base import Audio, Dtmf, Event, Mark, Text
from audiofork.relay.formats.raw import RawFormat


@pytest.mark.parametrize("frames", [[b"ab"], [b"ab", b"cd", b"ef"]], ids=["one", "several"])
def test_audio_is_the_frames_as_they_are(frames: list[bytes]) -> None:
    assert RawFormat().audio(frames, 7) == (b"".join(frames),)


def test_nothing_goes_beside_audio() -> None:
    raw = RawFormat()
    events: list[Event] = [Dtmf("5"), Mark("end")]
    messages = [
        raw.opening(0, 0),
        raw.closing("hangup", 9, 1),
        *(raw.event(event, 0) for event in events),
    ]
    assert not any(messages)


@pytest.mark.parametrize("text", ["", "clear", '{"event": "media"}'])
def test_text_of_the_server_is_a_text(text: str) -> None:
    assert RawFormat().meaning(text) == Text(text)


def test_binary_message_of_the_server_is_audio() -> None:
    assert RawFormat().meaning(bytes(320)) == Audio(bytes(320), 8000)


def test_frame_is_as_long_as_its_message() -> None:
    assert RawFormat().payload_bytes(640) == 640
