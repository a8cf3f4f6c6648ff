"""When the target's party hears beeps of a fork, on a clock that the test owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from audiofork.link.messages import (
    Beeps,
    Direction,
    EndReason,
    ForkStats,
    LegLost,
    LegPart,
    Streaming,
)
from audiofork.relay.beep import tone
from tests.relay.peers import FakeLoop, numbered
from tests.relay.pipeline_stage import BOTH_LEGS, IN, OUT, mono_of
from tests.relay.session_stage import Begin, SessionStage

pytestmark = pytest.mark.usefixtures("nothing_left")


# --- Beeps over the only leg ----------------------------------------------------------------------


async def test_beep_at_the_start_waits_for_the_first_frame_that_is_sent(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(beeps=Beeps(at_start=True))
    stage.attach()
    stage.audio(numbered(1)[0])
    clock.advance(1)
    assert stage.leg.spoken == []
    stage.sink.open()
    clock.advance(1)
    assert stage.leg.spoken == tone(8000)
    stage.audio(numbered(1)[0])
    clock.advance(60)
    assert stage.leg.spoken == tone(8000)


async def test_beeps_come_at_the_interval_from_streaming_on(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(beeps=Beeps(interval_s=15))
    stage.attach()
    clock.advance(60)
    stage.stream()
    clock.advance(14.9)
    assert stage.leg.spoken == []
    clock.advance(45.3)
    assert stage.leg.spoken == tone(8000) * 4
    stage.session.end(EndReason.STOPPED)
    assert stage.leg.hang_ups == 1
    assert clock.armed == 0


async def test_beep_at_the_end_delays_the_hang_up_and_not_the_close(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(beeps=Beeps(interval_s=1, at_end=True))
    stage.stream()
    clock.advance(0.95)
    stage.session.end(EndReason.STOPPED)
    assert (await stage.ended()).stats == ForkStats(1, 1, 0)
    assert stage.sink.closes == [(1000, "stopped")]
    clock.advance(0.2)
    stage.audio(numbered(1)[0])
    assert (stage.leg.spoken, stage.leg.hang_ups) == (tone(8000), 0)
    clock.advance(0.2)
    assert (stage.leg.hang_ups, clock.armed) == (1, 0)
    assert stage.session.stats() == ForkStats(1, 1, 0)


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason != EndReason.STOPPED])
async def test_beep_at_the_end_is_only_for_a_fork_that_is_stopped(
    begin: Begin, clock: FakeLoop, reason: EndReason
) -> None:
    stage = begin(beeps=Beeps(at_end=True))
    stage.stream()
    stage.session.end(reason)
    assert (stage.leg.hang_ups, stage.leg.spoken, clock.armed) == (1, [], 0)


async def test_fork_without_a_beep_at_the_end_hangs_up_at_once(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(beeps=Beeps(interval_s=15, at_start=True))
    stage.stream()
    clock.advance(0.1)
    count = len(stage.leg.spoken)
    stage.session.end(EndReason.STOPPED)
    clock.advance(60)
    assert (stage.leg.hang_ups, len(stage.leg.spoken)) == (1, count)


async def test_leg_that_closes_during_the_last_beep_is_left_alone(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(beeps=Beeps(at_end=True))
    stage.stream()
    stage.session.end(EndReason.STOPPED)
    clock.advance(0.1)
    count = len(stage.leg.spoken)
    stage.close_leg()
    clock.advance(60)
    assert (stage.leg.hang_ups, len(stage.leg.spoken), clock.armed) == (0, count, 0)
    assert stage.count(LegLost) == 0


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_no_beeps_when_streaming_begins_after_the_leg_is_gone(
    begin: Begin, clock: FakeLoop, hangs_up: bool
) -> None:
    stage = begin(beeps=Beeps(interval_s=15, at_start=True))
    stage.attach()
    stage.audio(numbered(1)[0])
    if hangs_up:
        stage.session.end(EndReason.HANGUP)
    else:
        stage.close_leg()
    stage.sink.open()
    assert stage.count(Streaming) == 1
    assert clock.armed == 0


async def test_beep_at_the_end_is_alone_when_streaming_begins_meanwhile(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(beeps=Beeps(interval_s=0.1, at_start=True, at_end=True))
    stage.attach()
    stage.audio(numbered(1)[0])
    stage.session.end(EndReason.STOPPED)
    stage.sink.open()
    clock.advance(60)
    assert (stage.leg.spoken, stage.leg.hang_ups, clock.armed) == (tone(8000), 1, 0)


@pytest.mark.parametrize(
    ("spoken_rate", "frame_bytes"), [(8000, 320), (16_000, 640), (48_000, 1920)]
)
async def test_beeps_are_at_the_rate_that_asterisk_takes_the_leg_for(
    begin: Begin, clock: FakeLoop, spoken_rate: int, frame_bytes: int
) -> None:
    """A version that brings all rates under one kind takes what it gets for 8000 Hz."""
    stage = begin(Direction.OUT, legs=(OUT,), sample_rate=16_000, beeps=Beeps(at_start=True))
    stage.leg.spoken_rate = spoken_rate
    stage.attach()
    stage.sink.open()
    stage.audio(bytes(640))
    clock.advance(1)
    assert stage.leg.spoken == tone(spoken_rate)
    assert {len(frame) for frame in stage.leg.spoken} == {frame_bytes}


async def test_each_beep_is_at_the_rate_of_the_leg_that_is_there(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(Direction.IN, sample_rate=16_000, beeps=Beeps(interval_s=15))
    stage.attach()
    stage.sink.open()
    stage.audio(bytes(640))
    clock.advance(15.5)
    stage.close_leg()
    stage.leg.spoken_rate = 8000
    stage.attach()
    clock.advance(15.5)
    assert stage.leg.spoken == tone(16_000) + tone(8000)


# --- Beeps over one of two legs ------------------------------------------------------------------

TONE = tone(16_000)


@pytest.fixture
def wide(begin: Begin) -> Callable[..., SessionStage]:
    """Begin forks of two wide legs."""

    def begin_wide(**beeps: Any) -> SessionStage:
        wishes: dict[str, Any] = {"legs": BOTH_LEGS, "sample_rate": 16_000}
        return begin(Direction.STEREO, beeps=Beeps(**beeps), **wishes)

    return begin_wide


def stream_wide(stage: SessionStage, *parts: LegPart) -> None:
    """Connect both ends, and send a frame of these parts."""
    stage.attach(*parts)
    stage.sink.open()
    for part in parts:
        stage.audio(mono_of(5, 16_000), part)


async def test_beeps_at_another_rate_go_over_the_first_leg_alone(
    wide: Callable[..., SessionStage], clock: FakeLoop
) -> None:
    stage = wide(interval_s=15, at_start=True, at_end=True)
    stream_wide(stage, IN, OUT)
    clock.advance(16)
    assert stage.legs[IN].spoken == TONE * 2
    assert {len(frame) for frame in stage.legs[IN].spoken} == {640}
    stage.session.end(EndReason.STOPPED)
    assert [leg.hang_ups for leg in stage.legs.values()] == [0, 0]
    clock.advance(0.4)
    assert [leg.hang_ups for leg in stage.legs.values()] == [1, 1]
    assert stage.legs[IN].spoken == TONE * 3
    assert (stage.legs[OUT].spoken, clock.armed) == ([], 0)


async def test_beeps_wait_for_the_first_leg_if_the_other_streams_before(
    wide: Callable[..., SessionStage], clock: FakeLoop
) -> None:
    stage = wide(interval_s=15, at_start=True)
    stream_wide(stage, OUT)
    assert stage.count(Streaming) == 1
    clock.advance(7)
    stage.attach(IN)
    clock.advance(0.002)
    assert stage.legs[IN].spoken == TONE[:1]
    clock.advance(14.898)
    assert stage.legs[IN].spoken == TONE
    clock.advance(45.3)
    assert stage.legs[IN].spoken == TONE * 5


async def test_beep_at_the_start_is_heard_once_though_the_first_leg_comes_anew(
    wide: Callable[..., SessionStage], clock: FakeLoop
) -> None:
    stage = wide(interval_s=15, at_start=True)
    stream_wide(stage, IN, OUT)
    clock.advance(1)
    stage.close_leg(IN)
    assert clock.armed == 0
    stage.attach(IN)
    clock.advance(14)
    assert stage.legs[IN].spoken == TONE
    clock.advance(2)
    assert stage.legs[IN].spoken == TONE * 2


async def test_beeps_go_on_when_the_other_leg_is_lost(
    wide: Callable[..., SessionStage], clock: FakeLoop
) -> None:
    stage = wide(interval_s=15)
    stream_wide(stage, IN, OUT)
    stage.close_leg(OUT)
    clock.advance(7)
    stage.attach(OUT)
    clock.advance(30)
    assert stage.legs[IN].spoken == TONE * 2


async def test_first_leg_that_closes_during_the_last_beep_lets_the_other_go(
    wide: Callable[..., SessionStage], clock: FakeLoop
) -> None:
    stage = wide(at_end=True)
    stream_wide(stage, IN, OUT)
    stage.session.end(EndReason.STOPPED)
    clock.advance(0.1)
    stage.close_leg(IN)
    assert (stage.legs[IN].hang_ups, stage.legs[OUT].hang_ups) == (0, 1)
    assert clock.armed == 0
    assert stage.count(LegLost) == 0


async def test_other_leg_that_closes_during_the_last_beep_does_not_cut_it_short(
    wide: Callable[..., SessionStage], clock: FakeLoop
) -> None:
    stage = wide(at_end=True)
    stream_wide(stage, IN, OUT)
    stage.session.end(EndReason.STOPPED)
    clock.advance(0.1)
    stage.close_leg(OUT)
    clock.advance(0.4)
    assert stage.legs[IN].spoken == TONE
    assert (stage.legs[IN].hang_ups, stage.legs[OUT].hang_ups) == (1, 0)


async def test_without_the_first_leg_the_end_has_no_beep(
    wide: Callable[..., SessionStage], clock: FakeLoop
) -> None:
    stage = wide(at_end=True)
    stream_wide(stage, OUT)
    stage.session.end(EndReason.STOPPED)
    assert (stage.legs[OUT].hang_ups, stage.legs[OUT].spoken, clock.armed) == (1, [], 0)
