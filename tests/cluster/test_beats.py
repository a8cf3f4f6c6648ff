"""Who relays, as the beats of the relay hosts tell."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiofork.cluster.beats import Beat, Seen, beat_of
from audiofork.config import Address
from audiofork.errors import NoMessage

BEAT = Beat("r1", "run", "192.0.2.1:9092", "north", 500, 12, 0.25, "1.0", is_draining=True)


def test_beat_comes_back_as_it_was() -> None:
    beat = beat_of("audiofork.beat.r1", BEAT.encode())
    assert beat == BEAT
    assert beat.address == Address("192.0.2.1", 9092)


def test_field_of_a_later_version_is_passed_over_and_one_that_is_missing_has_its_default() -> None:
    fields = {**json.loads(BEAT.encode()), "new": [1]}
    del fields["zone"]
    assert beat_of("audiofork.beat.r1", json.dumps(fields).encode()).zone == ""


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"forks": "many"}, "forks has another type"),
        ({"listen": "nowhere"}, "host:port"),
        ({"listen": None}, "listen has another type"),
        ({"is_draining": 1}, "is_draining has another type"),
        ({"capacity": True}, "capacity has another type"),
        ({"forks": 10**400}, "forks has another type, or is too long or too great"),
        ({"forks": -1}, "forks has another type, or is too long or too great"),
        ({"capacity": 2**63}, "capacity has another type, or is too long or too great"),
        ({"cpu": 10**400}, None),
        ({"cpu": float("inf")}, "cpu has another type, or is too long or too great"),
        ({"cpu": float("nan")}, "cpu has another type, or is too long or too great"),
        ({"version": "\x1b[2J"}, "version has another type, or is too long or too great"),
        ({"listen": "a" * 1000 + ":1"}, "listen has another type, or is too long or too great"),
    ],
)
def test_wrong_field_is_named(change: dict[str, Any], why: str | None) -> None:
    fields = {**json.loads(BEAT.encode()), **change}
    if why is None:
        assert beat_of("audiofork.beat.r1", json.dumps(fields).encode())
        return
    with pytest.raises(ValueError, match=why):
        beat_of("audiofork.beat.r1", json.dumps(fields).encode())


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[" * 100_000, b"\xff" * 1000, b"9" * 5000], ids=range(5)
)
def test_what_is_no_beat_is_no_message(payload: bytes) -> None:
    with pytest.raises(NoMessage):
        beat_of("audiofork.beat.r1", payload)


@pytest.mark.parametrize("name", ["", "r 1", "r1.x", "\x1b[2J", "r" * 64])
def test_name_that_is_none_is_refused(name: str) -> None:
    beat = replace(BEAT, name=name)
    with pytest.raises(NoMessage, match="cannot be one|has another type"):
        beat_of(f"audiofork.beat.{name}", beat.encode())


def test_beat_of_another_host_is_refused() -> None:
    with pytest.raises(ValueError, match="says that it is of r1"):
        beat_of("audiofork.beat.r2", BEAT.encode())


@given(st.binary(max_size=200) | st.from_type(type(None)).map(lambda _: b'{"name": "r1"}'))
def test_what_is_no_beat_raises(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each has another text)
        beat_of("audiofork.beat.r1", payload)


class Clock:
    def __init__(self) -> None:
        self.now = self.heard_at = 100.0

    def pass_(self, seconds: float, *, broker: bool = True) -> None:
        self.now += seconds
        if broker:
            self.heard_at = self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def seen(clock: Clock) -> Seen:
    return Seen(0.7, lambda: clock.heard_at, lambda: clock.now)


def test_host_that_is_silent_is_dead_once(seen: Seen, clock: Clock) -> None:
    seen.note("r1")
    clock.pass_(0.4)
    seen.note("r2")
    clock.pass_(0.35)
    assert seen.dead() == ["r1"]
    assert seen.dead() == []
    clock.pass_(0.4)
    assert seen.dead() == ["r2"]


def test_host_is_not_dead_while_the_broker_hears_nobody(seen: Seen, clock: Clock) -> None:
    seen.note("r1")
    clock.pass_(60, broker=False)
    assert seen.dead() == []
    clock.pass_(0)
    assert seen.dead() == ["r1"]


def test_hosts_have_their_time_again_when_the_broker_is_back(seen: Seen, clock: Clock) -> None:
    seen.note("r1")
    clock.pass_(60)
    seen.forget_times()
    assert seen.dead() == []
    clock.pass_(0.8)
    assert seen.dead() == ["r1"]
