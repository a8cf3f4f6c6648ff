import json
from typing import Any

import pytest

from audiofork.link.messages import Direction, ForkSpec, Metadata
from audiofork.relay.formats.description import Description
from audiofork.relay.formats.raw import RawFormat

CALL = {"channel": "PJSIP/1", "caller_name": '"Zoë"\r\n'}


def raw(direction: Direction = Direction.IN, **wishes: Any) -> RawFormat:
    metadata = Metadata(CALL, {"a": "1"})
    spec = ForkSpec("id", "PJSIP/1", "ws://h/", direction, metadata=metadata, **wishes)
    return RawFormat(description=Description(spec, 100))


def test_opening_tells_of_the_call_and_of_the_audio() -> None:
    (text,) = raw(sample_rate=16000).opening(0, 0)
    assert json.loads(text) == {
        "event": "start",
        "version": 1,
        "reconnects": 0,
        "position_ms": 0,
        "dropped_ms": 0,
        "fork_id": "id",
        "resumed": False,
        "direction": "in",
        "tracks": ["in"],
        "audio": {
            "encoding": "slin",
            "bits": 16,
            "byte_order": "little",
            "sample_rate": 16000,
            "channels": 1,
            "message_ms": 100,
        },
        "call": CALL,
        "params": {"a": "1"},
    }


@pytest.mark.parametrize(
    ("direction", "tracks"),
    [(Direction.OUT, ["out"]), (Direction.BOTH, ["mixed"]), (Direction.STEREO, ["in", "out"])],
)
def test_opening_names_the_tracks_in_their_order(direction: Direction, tracks: list[str]) -> None:
    (text,) = raw(direction).opening(0, 0)
    told = json.loads(text)
    assert told["tracks"] == tracks
    assert told["audio"]["channels"] == len(tracks)


def test_each_opening_tells_where_its_audio_begins_and_what_is_lost() -> None:
    one = raw()
    one.opening(0, 0)
    (text,) = one.opening(500, 20)
    told = json.loads(text)
    assert (told["reconnects"], told["position_ms"], told["dropped_ms"]) == (1, 10_000, 400)


def test_closing_tells_the_reason_and_the_totals() -> None:
    (text,) = raw().closing("hangup", 500, 20)
    assert json.loads(text) == {
        "event": "stop",
        "reason": "hangup",
        "position_ms": 10_000,
        "dropped_ms": 400,
    }
