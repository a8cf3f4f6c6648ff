"""A fork's life between legs and a sink that do as the test says: reports, commands, ends."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from audiofork.errors import SinkLost, SinkRefused, SinkUnreachable
from audiofork.link.messages import (
    Beeps,
    Direction,
    EndReason,
    ForkEnded,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
    Report,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from audiofork.relay.session import NO_PAIRS
from audiofork.relay.shortfall import PATIENCE_FRAMES
from audiofork.text import A_BUG
from tests.relay.peers import FakeLoop, numbered
from tests.relay.pipeline_stage import BOTH_LEGS, FORK_ID, IN, MIX, OUT, mono_of, pairs_of
from tests.relay.session_stage import Begin, SessionStage

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def direction(request: pytest.FixtureRequest) -> Direction:
    return cast(Direction, getattr(request, "param", Direction.BOTH))


@pytest.fixture
async def stage(direction: Direction, begin: Begin) -> SessionStage:
    return begin(direction)


def in_direction(*directions: Direction) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("direction", directions, indirect=True)


# --- The beginning and the end ------------------------------------------------------------------


async def test_leg_sink_and_first_frame_are_reported_in_order(stage: SessionStage) -> None:
    stage.attach()
    stage.sink.open()
    assert stage.reports == [LegAttached(FORK_ID, MIX), SinkOpened(FORK_ID)]
    for frame in numbered(3):
        stage.audio(frame)
    assert stage.reports[2:] == [Streaming(FORK_ID)]
    assert stage.sink.frames == numbered(3)


async def test_streaming_is_reported_once_the_frames_that_waited_are_sent(
    stage: SessionStage,
) -> None:
    stage.attach()
    for frame in numbered(3):
        stage.audio(frame)
    assert stage.reports == [LegAttached(FORK_ID, MIX)]
    stage.sink.open()
    assert stage.reports[1:] == [SinkOpened(FORK_ID), Streaming(FORK_ID)]
    stage.audio(numbered(1)[0])
    assert stage.count(Streaming) == 1


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (EndReason.HANGUP, 1000),
        (EndReason.STOPPED, 1000),
        (EndReason.SHUTDOWN, 1001),
        (EndReason.FAULT, 1011),
        (EndReason.LEG_FAILED, 1011),
        (EndReason.NO_SUCH_CHANNEL, 1011),
    ],
)
async def test_end_hangs_up_at_once_and_closes_with_code_and_reason(
    stage: SessionStage, reason: EndReason, code: int
) -> None:
    stage.attach()
    stage.session.end(reason, "why")
    assert stage.leg.hang_ups == 1
    assert await stage.ended() == ForkEnded(FORK_ID, reason, "why", ForkStats())
    assert stage.sink.closes == [(code, reason.value)]


async def test_end_again_keeps_the_first_reason(stage: SessionStage) -> None:
    stage.attach()
    stage.session.end(EndReason.HANGUP, "first")
    stage.session.end(EndReason.STOPPED, "second")
    stage.sink.over.set_exception(SinkRefused("third"))
    ended = await stage.ended()
    assert (ended.reason, ended.detail) == (EndReason.HANGUP, "first")
    assert stage.sink.closes == [(1000, "hangup")]
    assert stage.leg.hang_ups == 1


async def test_end_after_the_end_does_nothing(stage: SessionStage) -> None:
    stage.session.end(EndReason.STOPPED)
    await stage.ended()
    stage.session.end(EndReason.FAULT)
    stage.close_leg()
    assert stage.count(ForkEnded) == 1
    assert stage.sink.closes == [(1000, "stopped")]


async def test_done_waits_for_the_sink_to_close(stage: SessionStage) -> None:
    stage.sink.may_close.clear()
    stage.session.end(EndReason.STOPPED)
    stage.sink.over.set_result(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stage.session.done.is_set()
    assert stage.count(ForkEnded) == 0
    stage.sink.may_close.set()
    await stage.ended()


@pytest.mark.parametrize(
    ("failure", "reason", "detail"),
    [
        (SinkRefused("HTTP 404"), EndReason.SINK_REFUSED, "HTTP 404"),
        (SinkUnreachable("no answer"), EndReason.SINK_GONE, "no answer"),
        (SinkLost("it broke"), EndReason.SINK_GONE, "it broke"),
        (ZeroDivisionError("by nothing"), EndReason.FAULT, A_BUG),
    ],
)
async def test_sink_that_fails_ends_the_fork_and_hangs_up(
    stage: SessionStage,
    failure: Exception,
    reason: EndReason,
    detail: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage.attach()
    stage.sink.over.set_exception(failure)
    ended = await stage.ended()
    assert (ended.reason, ended.detail) == (reason, detail)
    assert stage.leg.hang_ups == 1
    logged = [record for record in caplog.records if record.exc_info]
    assert bool(logged) == (reason is EndReason.FAULT)


async def test_leg_that_closes_is_reported_with_its_frames(stage: SessionStage) -> None:
    stage.attach()
    for frame in numbered(3):
        stage.audio(frame)
    stage.close_leg()
    assert stage.reports == [LegAttached(FORK_ID, MIX), LegLost(FORK_ID, MIX, 3)]
    stage.session.end(EndReason.HANGUP)
    assert stage.leg.hang_ups == 0
    assert (await stage.ended()).stats.frames_in == 3


async def test_leg_that_closes_while_the_fork_ends_is_not_reported(stage: SessionStage) -> None:
    stage.attach()
    stage.session.end(EndReason.STOPPED)
    stage.close_leg()
    await stage.ended()
    assert stage.count(LegLost) == 0


async def test_leg_that_comes_after_the_end_is_hung_up(stage: SessionStage) -> None:
    stage.session.end(EndReason.STOPPED)
    stage.attach()
    assert stage.leg.hang_ups == 1
    assert stage.count(LegAttached) == 0


async def test_stats_at_the_end_are_those_after_closing(stage: SessionStage) -> None:
    stage.attach()
    stage.sink.open()
    for frame in numbered(10):
        stage.audio(frame)
    stage.sink.may_close.clear()
    stage.session.end(EndReason.HANGUP)
    stage.sink.frames_sent, stage.sink.backlog.dropped = 7, 3
    stage.sink.may_close.set()
    assert (await stage.ended()).stats == ForkStats(10, 7, 3)


@in_direction(*Direction)
async def test_end_without_leg_or_sink_is_reported(stage: SessionStage) -> None:
    stage.session.end(EndReason.SHUTDOWN)
    assert await stage.ended() == ForkEnded(FORK_ID, EndReason.SHUTDOWN, "", ForkStats())


# --- Legs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "part"), [(Direction.OUT, OUT), (Direction.IN, IN)])
async def test_leg_of_one_side_is_reported_as_that_side(
    begin: Begin, direction: Direction, part: LegPart
) -> None:
    stage = begin(direction, legs=(part,))
    stage.attach()
    stage.sink.open()
    assert stage.reports == [LegAttached(FORK_ID, part), SinkOpened(FORK_ID)]
    stage.audio(mono_of(7))
    stage.mute(part is IN, part is OUT)
    stage.audio(mono_of(7))
    assert stage.sink.frames == [mono_of(7), mono_of(0)]
    stage.close_leg()
    assert stage.reports[2:] == [Streaming(FORK_ID), LegLost(FORK_ID, part, 2)]


@pytest.mark.parametrize("direction", [Direction.BOTH, Direction.STEREO])
async def test_two_legs_are_reported_each(begin: Begin, direction: Direction) -> None:
    stage = begin(direction, legs=BOTH_LEGS)
    stage.attach(OUT)
    stage.attach(IN)
    stage.sink.open()
    bring(stage)
    assert stage.reports == [
        LegAttached(FORK_ID, OUT),
        LegAttached(FORK_ID, IN),
        SinkOpened(FORK_ID),
        Streaming(FORK_ID),
    ]
    assert stage.session.stats() == ForkStats(1, 1, 0)


def bring(stage: SessionStage, sample_in: int = 5, sample_out: int = 7) -> bytes:
    """Bring a frame of each leg; return what comes of it."""
    stage.audio(mono_of(sample_in), IN)
    stage.audio(mono_of(sample_out), OUT)
    return stage.sink.frames[-1]


@pytest.mark.parametrize(("lost", "rest"), [(IN, mono_of(7)), (OUT, mono_of(5))])
async def test_leg_that_comes_in_place_of_a_lost_one_is_reported(
    begin: Begin, lost: LegPart, rest: bytes
) -> None:
    stage = begin(Direction.BOTH, legs=BOTH_LEGS)
    stage.attach()
    stage.sink.open()
    bring(stage)
    other, sample = (OUT, 7) if lost is IN else (IN, 5)
    stage.audio(mono_of(sample), other)
    stage.close_leg(lost)
    assert stage.reports[-1:] == [LegLost(FORK_ID, lost, 2)]
    stage.attach(lost)
    assert stage.reports[-1:] == [LegAttached(FORK_ID, lost)]
    assert bring(stage) == mono_of(12)
    assert stage.sink.frames == [mono_of(12), rest, mono_of(12)]
    stage.session.end(EndReason.STOPPED)
    assert [leg.hang_ups for leg in stage.legs.values()] == [1, 1]


async def test_both_legs_lost_are_reported_each(begin: Begin) -> None:
    stage = begin(Direction.BOTH, legs=BOTH_LEGS)
    stage.attach()
    bring(stage)
    stage.audio(mono_of(5), IN)
    stage.close_leg(IN)
    stage.close_leg(OUT)
    assert stage.reports[2:] == [LegLost(FORK_ID, IN, 1), LegLost(FORK_ID, OUT, 2)]
    assert stage.sink.frames == [mono_of(12), mono_of(5)]
    stage.session.end(EndReason.HANGUP)
    assert [leg.hang_ups for leg in stage.legs.values()] == [0, 0]


@pytest.mark.parametrize("direction", [Direction.BOTH, Direction.STEREO])
async def test_end_sends_what_waits_for_the_other_leg_and_hangs_both_up(
    begin: Begin, direction: Direction
) -> None:
    stage = begin(direction, legs=BOTH_LEGS)
    stage.attach()
    bring(stage)
    stage.audio(mono_of(5), IN)
    stage.session.end(EndReason.HANGUP)
    assert stage.sink.frames[1:] == [mono_of(5) if direction is Direction.BOTH else pairs_of(5, 0)]
    assert [leg.hang_ups for leg in stage.legs.values()] == [1, 1]
    for part in BOTH_LEGS:  # what was on its way
        stage.audio(mono_of(9), part)
    assert (await stage.ended()).stats.frames_in == 2


async def test_end_by_who_hears_of_streaming_is_the_second_one_and_changes_nothing(
    begin: Begin,
) -> None:
    """The frame that waits for the other leg can be the first that is sent at all."""
    stage = begin(Direction.BOTH, legs=BOTH_LEGS)
    stage.attach()
    stage.sink.open()
    stage.audio(mono_of(5), IN)

    def end_again(report: Report) -> None:
        if isinstance(report, Streaming):
            stage.session.end(EndReason.FAULT, "again")

    stage.on_report = end_again
    stage.session.end(EndReason.HANGUP, "first")
    ended = await stage.ended()
    assert ended == ForkEnded(FORK_ID, EndReason.HANGUP, "first", ForkStats(1, 1, 0))
    assert stage.sink.closes == [(1000, "hangup")]


async def test_leg_of_one_side_that_comes_after_the_end_is_hung_up(begin: Begin) -> None:
    stage = begin(Direction.BOTH, legs=BOTH_LEGS)
    stage.attach(IN)
    stage.session.end(EndReason.STOPPED)
    stage.attach(OUT)
    assert [leg.hang_ups for leg in stage.legs.values()] == [1, 1]
    assert stage.count(LegAttached) == 1


# --- Frames of an unexpected size -----------------------------------------------------------------


@in_direction(Direction.OUT, Direction.STEREO)
async def test_mono_frames_where_pairs_are_needed_fail_the_leg(stage: SessionStage) -> None:
    stage.attach()
    for frame in numbered(2):
        stage.audio(frame)
    assert stage.leg.hang_ups == 1
    ended = await stage.ended()
    assert (ended.reason, ended.detail) == (EndReason.LEG_FAILED, NO_PAIRS)
    assert "18.22, 20.7, 21.2" in NO_PAIRS
    assert ended.stats == ForkStats(1, 0, 1)
    assert stage.sink.frames == []


@pytest.mark.parametrize(
    ("direction", "frame_bytes"),
    [(Direction.IN, 640), (Direction.IN, 160), (Direction.BOTH, 2), (Direction.BOTH, 640)],
    indirect=["direction"],
)
async def test_first_frame_of_unexpected_size_fails_the_leg(
    stage: SessionStage, frame_bytes: int
) -> None:
    stage.attach()
    stage.audio(bytes(frame_bytes))
    ended = await stage.ended()
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == f"the leg sends frames of {frame_bytes} bytes, not 320 (8000 Hz)"
    assert stage.sink.frames == []


@in_direction(Direction.OUT, Direction.STEREO)
async def test_pairs_of_another_rate_fail_the_leg_by_their_size(stage: SessionStage) -> None:
    stage.attach()
    stage.audio(bytes(1280))
    ended = await stage.ended()
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == "the leg sends frames of 1280 bytes, not 640 (8000 Hz)"


async def test_frame_of_unexpected_size_after_a_good_one_is_counted_though_none_is_sent_yet(
    stage: SessionStage,
) -> None:
    stage.attach()
    stage.audio(numbered(1)[0])
    stage.audio(bytes(160))
    assert stage.leg.hang_ups == 0
    assert stage.session.stats() == ForkStats(2, 0, 1)


async def test_later_frame_of_unexpected_size_is_counted_and_passed_over(
    stage: SessionStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.attach()
    stage.sink.open()
    good = numbered(4)
    stage.audio(good[0])
    stage.audio(bytes(160))
    stage.audio(bytes(160))
    for frame in good[1:]:
        stage.audio(frame)
    assert stage.sink.frames == good
    assert stage.leg.hang_ups == 0
    assert caplog.messages == [
        "fork 3f2a91c0: frames of an unexpected size: 1 more, last: 160 bytes in place of 320"
    ]
    stage.session.end(EndReason.HANGUP)
    assert (await stage.ended()).stats == ForkStats(6, 4, 2)


@pytest.mark.parametrize("part", BOTH_LEGS)
async def test_frame_of_unexpected_size_of_one_of_two_legs_that_stream_is_counted_and_passed_over(
    begin: Begin, part: LegPart, caplog: pytest.LogCaptureFixture
) -> None:
    stage = begin(Direction.BOTH, legs=BOTH_LEGS)
    stage.attach()
    stage.sink.open()
    bring(stage)
    for _ in range(2):
        stage.audio(bytes(640), part)
    bring(stage)
    assert stage.sink.frames == [mono_of(12)] * 2
    assert [leg.hang_ups for leg in stage.legs.values()] == [0, 0]
    assert caplog.messages == [
        "fork 3f2a91c0: frames of an unexpected size: 1 more, last: 640 bytes in place of 320"
    ]
    assert stage.session.stats() == ForkStats(4, 2, 2)


# --- Kept time ------------------------------------------------------------------------------------


async def test_fork_whose_first_frames_go_with_the_close_has_streamed(stage: SessionStage) -> None:
    """A long message was not full when the fork was stopped."""
    stage.attach()
    stage.sink.open()
    stage.session.end(EndReason.STOPPED)
    stage.sink.frames_sent = 9
    await stage.ended()
    kinds = [type(report) for report in stage.reports]
    assert kinds[-2:] == [Streaming, ForkEnded]
    assert stage.count(Streaming) == 1


async def test_frames_that_steady_legs_do_not_bring_are_missing_while_there_is_a_leg(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(Direction.IN, steady=True)
    clock.advance(5)  # nothing has been brought yet
    stage.stream()
    for _ in range(4):
        stage.audio(bytes(320))
        clock.advance(1)
    missing = 4 * 49 - PATIENCE_FRAMES - 1
    assert stage.session.stats().frames_missing == missing
    stage.close_leg()
    clock.advance(5)
    stage.attach()
    stage.session.end(EndReason.STOPPED)
    clock.advance(5)
    assert (await stage.ended()).stats.frames_missing == missing


async def test_frames_are_not_missing_of_legs_that_may_fall_silent(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(Direction.IN)
    stage.stream()
    clock.advance(60)
    assert stage.session.stats().frames_missing == 0
    stage.session.end(EndReason.STOPPED)


async def test_silence_alone_makes_a_fork_stream(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(keep_time=True)
    stage.attach()
    stage.sink.open()
    clock.advance(1)
    count = len(stage.sink.frames)
    assert count >= 40
    assert stage.count(Streaming) == 1
    assert stage.session.stats() == ForkStats(count, count, 0)


async def test_frames_that_were_filled_in_are_not_said_to_have_been_brought_by_the_leg(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(Direction.BOTH, keep_time=True)
    stage.attach()
    clock.advance(1)
    assert stage.session.stats().frames_in >= 40
    stage.close_leg()
    assert stage.reports[-1] == LegLost(FORK_ID, MIX, 0)


@pytest.mark.parametrize("at_end", [False, True])
async def test_no_silence_after_the_end_not_even_during_the_last_beep(
    begin: Begin, clock: FakeLoop, at_end: bool
) -> None:
    stage = begin(keep_time=True, beeps=Beeps(at_end=at_end))
    stage.stream()
    stage.session.end(EndReason.STOPPED)
    clock.advance(0.25)
    assert stage.sink.frames == []
    clock.advance(1)
    assert (await stage.ended()).stats == ForkStats(1, 1, 0)
    assert clock.armed == 0


# --- What the sink tells --------------------------------------------------------------------------


async def test_retries_of_the_sink_are_reported(stage: SessionStage) -> None:
    stage.sink.on_retry(2, "no answer in time", 0.75)
    assert stage.reports == [SinkRetrying(FORK_ID, 2, "no answer in time", 0.75)]


async def test_sink_that_comes_back_is_reported_with_what_was_lost_meanwhile(
    stage: SessionStage,
) -> None:
    stage.sink.open()
    stage.sink.reconnects = 1
    stage.sink.backlog.dropped, stage.sink.dropped_in_gap = 12, 5
    stage.sink.open()
    assert stage.reports == [SinkOpened(FORK_ID), SinkResumed(FORK_ID, 5)]
    assert stage.session.stats() == ForkStats(12, 0, 12, reconnects=1)


async def test_beginning_of_a_long_text_is_passed_on(stage: SessionStage) -> None:
    """What is left out would travel to the control plane, and be searched there."""
    stage.sink.on_text("a" * 3600 + "b" * 60_000)
    assert stage.reports == [SinkMessage(FORK_ID, "a" * 3600)]


async def test_messages_that_nothing_came_of_are_in_the_statistics(stage: SessionStage) -> None:
    stage.sink.messages_unused = 3
    assert stage.session.stats().messages_unused == 3


async def test_messages_beyond_20_a_second_are_counted_and_not_passed_on(
    stage: SessionStage, clock: FakeLoop
) -> None:
    for n in range(30):
        stage.sink.on_text(f"message {n}")
    assert stage.reports == [SinkMessage(FORK_ID, f"message {n}") for n in range(20)]
    assert stage.session.stats().messages_ignored == 10


async def test_messages_are_passed_on_again_as_the_second_passes(
    stage: SessionStage, clock: FakeLoop
) -> None:
    for _ in range(2):
        for _ in range(10):
            stage.sink.on_text("one of twenty")
        clock.advance(0.495)
    stage.sink.on_text("one too many")
    assert stage.session.stats().messages_ignored == 1
    clock.advance(0.02)  # the first ten are more than a second old
    for _ in range(15):
        stage.sink.on_text("one of ten that pass")
    assert stage.count(SinkMessage) == 30
    assert stage.session.stats().messages_ignored == 6


async def test_messages_at_the_limit_are_all_passed_on(
    stage: SessionStage, clock: FakeLoop
) -> None:
    for _ in range(200):
        stage.sink.on_text("")
        clock.advance(0.051)
    assert stage.count(SinkMessage) == 200
    assert stage.session.stats().messages_ignored == 0
