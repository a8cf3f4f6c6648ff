"""Our own format: what its texts say, and that its page in the documentation says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from audiofork.link.messages import Direction, Format
from audiofork.relay.formats.base import Dtmf, Mark, Message, MessageFormat, Mute
from tests.relay.formats.formats import PARAMS, make

ONLY_IN, ONLY_OUT, ALL, NONE = (
    Mute(is_in=True, is_out=False),
    Mute(is_in=False, is_out=True),
    Mute(is_in=True, is_out=True),
    Mute(is_in=False, is_out=False),
)


def read(messages: Any) -> list[dict[str, Any]]:
    return [json.loads(text) for text in messages]


def opened(one: MessageFormat, number: int = 0) -> list[str]:
    """Open a connection that begins with this frame; return which sides `start` says are muted."""
    (start,) = read(one.opening(number, 0))
    muted: list[str] = start["muted"]
    return muted


def mutes(messages: list[Message]) -> list[tuple[int, list[str]]]:
    return [(one["position_ms"], one["muted"]) for one in read(messages) if one["event"] == "mute"]


def test_gaps_and_keys_are_told_where_they_are() -> None:
    one = make(Format.JSON)
    (start,) = read(one.opening(0, 0))
    assert (start["params"], start["muted"]) == (PARAMS, [])
    assert read((*one.gap(500, 20), *one.event(Dtmf("5", 90), 7))) == [
        {"event": "gap", "position_ms": 9600, "lost_ms": 400},
        {"event": "dtmf", "digit": "5", "duration_ms": 90, "position_ms": 140},
    ]
    assert read(one.event(Mark("x"), 7)) == [{"event": "mark", "name": "x", "position_ms": 140}]
    assert json.loads(one.closing("stopped", 9, 1)[0])["event"] == "stop"


@pytest.mark.parametrize(
    ("direction", "told"),
    [
        (Direction.IN, [(20, ["in"]), (80, [])]),
        (Direction.OUT, [(40, ["out"]), (80, [])]),
        (Direction.BOTH, [(20, ["in"]), (40, ["in", "out"]), (80, [])]),
        (Direction.STEREO, [(20, ["in"]), (40, ["in", "out"]), (80, [])]),
    ],
)
def test_mute_is_told_of_the_sides_that_the_audio_has(
    direction: Direction, told: list[tuple[int, list[str]]]
) -> None:
    one = make(Format.JSON, direction)
    opened(one)
    changes = ((ONLY_IN, 1), (ALL, 2), (ALL, 3), (NONE, 4), (NONE, 5))
    assert mutes([text for mute, at in changes for text in one.event(mute, at)]) == told


def test_next_connection_begins_with_the_sides_that_are_muted_where_it_begins() -> None:
    one = make(Format.JSON, Direction.STEREO)
    opened(one)
    for mute, at in ((ONLY_IN, 10), (ALL, 20), (ONLY_OUT, 30)):
        one.event(mute, at)
    assert opened(one, 25) == ["in", "out"]
    # What was not acknowledged is told again, as an outlet does.
    assert mutes(list(one.event(ONLY_OUT, 30))) == [(600, ["out"])]
    assert opened(one, 40) == ["out"]
    assert one.event(ONLY_OUT, 40) == ()


def test_last_of_several_mutes_before_one_frame_holds() -> None:
    one = make(Format.JSON)
    opened(one)
    again = [one.event(mute, 5) for mute in (ONLY_IN, NONE, ONLY_IN, NONE)]
    assert len(again) == 4
    assert opened(one, 5) == []
    one.event(ONLY_IN, 5)
    assert opened(one, 6) == ["in"]


def test_mutes_that_no_connection_follows_do_not_add_up() -> None:
    one = make(Format.JSON)
    opened(one)
    for number in range(1, 1001):
        one.event(ONLY_IN if number % 2 else NONE, number)
    assert len(vars(one)["_mutes"]) == 100
    assert (opened(one, 999), opened(one, 1000)) == (["in"], [])
