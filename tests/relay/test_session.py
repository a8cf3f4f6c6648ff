"""One fork between a leg and a sink that do as the test says."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from audiofork.errors import SinkLost, SinkRefused, SinkUnreachable
from audiofork.model import (
    Beeps,
    Direction,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    Report,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkResumed,
    SinkRetrying,
    Streaming,
)
from audiofork.relay.beep import tone
from audiofork.relay.session import NO_PAIRS, Session
from audiofork.relay.sink import Sink
from tests.relay.peers import FakeLoop, numbered

pytestmark = pytest.mark.usefixtures("nothing_left")

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"


class Leg:
    """Counts how often it is hung up."""

    def __init__(self) -> None:
        self.hang_ups = 0
        self.spoken: list[bytes] = []

    def hang_up(self) -> None:
        self.hang_ups += 1

    def speak(self, frame: bytes) -> None:
        self.spoken.append(frame)


class FakeSink:
    """A sink that opens, fails and finishes closing when it is told to."""

    def __init__(self) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self.on_retry: Callable[[int, str], None] = lambda attempt, why: None
        self.on_text: Callable[[str], None] = lambda text: None
        self.reconnects = 0
        self.dropped_in_gap = 0
        self.frames: list[bytes] = []
        self.frames_sent = 0
        self.backlog = SimpleNamespace(dropped=0)
        self.is_open = False
        self.closes: list[tuple[int, str]] = []
        self.hurried = False
        self.over = asyncio.get_running_loop().create_future()
        self.may_close = asyncio.Event()
        self.may_close.set()

    def open(self) -> None:
        self.is_open = True
        self.frames_sent = len(self.frames)
        self.on_open()

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)
        if self.is_open:
            self.frames_sent += 1

    def hurry(self) -> None:
        self.hurried = True

    async def run(self) -> None:
        await self.over

    async def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        await self.may_close.wait()
        if not self.over.done():
            self.over.set_result(None)


class Stage:
    """A session with all that it talks to."""

    def __init__(self, direction: Direction, **wishes: Any) -> None:
        self.sink = FakeSink()
        self.leg = Leg()
        self.reports: list[Report] = []
        spec = ForkSpec(FORK_ID, "PJSIP/100-0000002a", "ws://server/", direction, **wishes)
        self.session = Session(spec, cast(Sink, self.sink), self.reports.append)

    async def ended(self) -> ForkEnded:
        """Wait for the end; return the report of it, which must be the last and the only one."""
        async with asyncio.timeout(5):
            await self.session.done.wait()
        (ended,) = [report for report in self.reports if isinstance(report, ForkEnded)]
        assert self.reports[-1] is ended
        return ended

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(report, kind) for report in self.reports)

    def attach(self) -> None:
        self.session.attach(self.leg)

    def stream(self) -> None:
        """Connect both ends and send a frame, of pairs where they are needed."""
        self.attach()
        self.sink.open()
        self.session.on_audio(bytes(320 if self.session.spec.direction is Direction.IN else 640))
        self.sink.frames.clear()

    def mute(self, mute_in: bool | None, mute_out: bool | None) -> None:
        self.session.set_mute(SetMute(FORK_ID, mute_in, mute_out))


@pytest.fixture
def direction(request: pytest.FixtureRequest) -> Direction:
    return cast(Direction, getattr(request, "param", Direction.BOTH))


Begin = Callable[..., Stage]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Begin sessions with wishes of their own; those that still run at the end are ended."""
    stages: list[Stage] = []

    def begin(direction: Direction = Direction.IN, **wishes: Any) -> Stage:
        stages.append(Stage(direction, **wishes))
        stages[-1].session.start()
        return stages[-1]

    yield begin
    for stage in stages:
        stage.sink.may_close.set()
        stage.session.end(EndReason.STOPPED)
        await stage.ended()


@pytest.fixture
async def stage(direction: Direction, begin: Begin) -> Stage:
    return begin(direction)


def in_direction(*directions: Direction) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("direction", directions, indirect=True)


async def test_leg_sink_and_first_frame_are_reported_in_order(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    stage.sink.open()
    assert stage.reports == [LegAttached(FORK_ID), SinkOpened(FORK_ID)]
    for frame in numbered(3):
        stage.session.on_audio(frame)
    assert stage.reports[2:] == [Streaming(FORK_ID)]
    assert stage.sink.frames == numbered(3)


async def test_streaming_is_reported_once_the_frames_that_waited_are_sent(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    for frame in numbered(3):
        stage.session.on_audio(frame)
    assert stage.reports == [LegAttached(FORK_ID)]
    stage.sink.open()
    assert stage.reports[1:] == [SinkOpened(FORK_ID), Streaming(FORK_ID)]
    stage.session.on_audio(numbered(1)[0])
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
    stage: Stage, reason: EndReason, code: int
) -> None:
    stage.session.attach(stage.leg)
    stage.session.end(reason, "why")
    assert stage.leg.hang_ups == 1
    assert await stage.ended() == ForkEnded(FORK_ID, reason, "why", ForkStats())
    assert stage.sink.closes == [(code, reason.value)]


async def test_end_again_keeps_the_first_reason(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    stage.session.end(EndReason.HANGUP, "first")
    stage.session.end(EndReason.STOPPED, "second")
    stage.sink.over.set_exception(SinkRefused("third"))
    ended = await stage.ended()
    assert (ended.reason, ended.detail) == (EndReason.HANGUP, "first")
    assert stage.sink.closes == [(1000, "hangup")]
    assert stage.leg.hang_ups == 1


async def test_end_after_the_end_does_nothing(stage: Stage) -> None:
    stage.session.end(EndReason.STOPPED)
    await stage.ended()
    stage.session.end(EndReason.FAULT)
    stage.session.on_leg_closed()
    assert stage.count(ForkEnded) == 1
    assert stage.sink.closes == [(1000, "stopped")]


async def test_done_waits_for_the_sink_to_close(stage: Stage) -> None:
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
        (ZeroDivisionError("by nothing"), EndReason.FAULT, "ZeroDivisionError('by nothing')"),
    ],
)
async def test_sink_that_fails_ends_the_fork_and_hangs_up(
    stage: Stage, failure: Exception, reason: EndReason, detail: str, caplog
) -> None:
    stage.session.attach(stage.leg)
    stage.sink.over.set_exception(failure)
    ended = await stage.ended()
    assert (ended.reason, ended.detail) == (reason, detail)
    assert stage.leg.hang_ups == 1
    logged = [record for record in caplog.records if record.exc_info]
    assert bool(logged) == (reason is EndReason.FAULT)


async def test_leg_that_closes_is_reported_with_its_frames(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    for frame in numbered(3):
        stage.session.on_audio(frame)
    stage.session.on_leg_closed()
    assert stage.reports == [LegAttached(FORK_ID), LegLost(FORK_ID, 3)]
    stage.session.end(EndReason.HANGUP)
    assert stage.leg.hang_ups == 0
    assert (await stage.ended()).stats.frames_in == 3


async def test_leg_that_closes_while_the_fork_ends_is_not_reported(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    stage.session.end(EndReason.STOPPED)
    stage.session.on_leg_closed()
    await stage.ended()
    assert stage.count(LegLost) == 0


async def test_leg_that_comes_after_the_end_is_hung_up(stage: Stage) -> None:
    stage.session.end(EndReason.STOPPED)
    stage.session.attach(stage.leg)
    assert stage.leg.hang_ups == 1
    assert stage.count(LegAttached) == 0


async def test_stats_at_the_end_are_those_after_closing(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    stage.sink.open()
    for frame in numbered(10):
        stage.session.on_audio(frame)
    stage.sink.may_close.clear()
    stage.session.end(EndReason.HANGUP)
    stage.sink.frames_sent, stage.sink.backlog.dropped = 7, 3
    stage.sink.may_close.set()
    assert (await stage.ended()).stats == ForkStats(10, 7, 3)


@in_direction(Direction.OUT, Direction.STEREO)
async def test_mono_frames_where_pairs_are_needed_fail_the_leg(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    for frame in numbered(2):
        stage.session.on_audio(frame)
    assert stage.leg.hang_ups == 1
    ended = await stage.ended()
    assert (ended.reason, ended.detail) == (EndReason.LEG_FAILED, NO_PAIRS)
    assert "18.22, 20.7, 21.2" in NO_PAIRS
    assert ended.stats == ForkStats(1, 0, 1)
    assert stage.sink.frames == []


@pytest.mark.parametrize(
    ("direction", "frame_bytes"),
    [(Direction.IN, 640), (Direction.IN, 160), (Direction.BOTH, 2), (Direction.BOTH, 960)],
    indirect=["direction"],
)
async def test_first_frame_of_no_use_fails_the_leg(stage: Stage, frame_bytes: int) -> None:
    stage.session.attach(stage.leg)
    stage.session.on_audio(bytes(frame_bytes))
    ended = await stage.ended()
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == f"the leg sends frames of {frame_bytes} bytes"


async def test_later_frame_of_odd_size_is_counted_and_passed_over(stage: Stage, caplog) -> None:
    stage.session.attach(stage.leg)
    stage.sink.open()
    good = numbered(4)
    stage.session.on_audio(good[0])
    stage.session.on_audio(bytes(160))
    stage.session.on_audio(bytes(160))
    for frame in good[1:]:
        stage.session.on_audio(frame)
    assert stage.sink.frames == good
    assert stage.leg.hang_ups == 0
    assert caplog.messages == [
        "fork 3f2a91c0: frames of an unexpected size: 1 more, last: 160 bytes in place of 320"
    ]
    stage.session.end(EndReason.HANGUP)
    assert (await stage.ended()).stats == ForkStats(6, 4, 2)


@in_direction(Direction.OUT)
async def test_out_sends_the_right_half_of_pairs(stage: Stage) -> None:
    stage.session.attach(stage.leg)
    stage.session.on_audio(b"\x01\x02\x03\x04" * 160)
    assert stage.sink.frames == [b"\x03\x04" * 160]


@in_direction(*Direction)
async def test_end_without_leg_or_sink_is_reported(stage: Stage) -> None:
    stage.session.end(EndReason.SHUTDOWN)
    assert await stage.ended() == ForkEnded(FORK_ID, EndReason.SHUTDOWN, "", ForkStats())


# --- Volume, mute and gate -----------------------------------------------------------------------


def pairs_of(sample_in: int, sample_out: int) -> bytes:
    return struct.pack("<2h", sample_in, sample_out) * 160


def mono_of(sample: int) -> bytes:
    return struct.pack("<h", sample) * 160


async def test_gains_of_the_fork_are_applied(begin: Begin) -> None:
    stage = begin(Direction.STEREO, gain_in=2, gain_out=-1)
    stage.stream()
    stage.session.on_audio(pairs_of(100, -301))
    assert stage.sink.frames == [pairs_of(400, -150)]


@pytest.mark.parametrize(
    ("direction", "mute_in", "mute_out", "frame"),
    [
        (Direction.IN, True, None, mono_of(0)),
        (Direction.IN, None, True, mono_of(5)),
        (Direction.OUT, None, True, mono_of(0)),
        (Direction.OUT, True, None, mono_of(7)),
        (Direction.BOTH, True, None, mono_of(7)),
        (Direction.BOTH, None, True, mono_of(5)),
        (Direction.BOTH, True, True, mono_of(0)),
        (Direction.STEREO, True, None, pairs_of(0, 7)),
        (Direction.STEREO, None, True, pairs_of(5, 0)),
    ],
)
async def test_mute_works_from_the_next_frame_on_and_keeps_time(
    begin: Begin,
    direction: Direction,
    mute_in: bool | None,
    mute_out: bool | None,
    frame: bytes,
) -> None:
    stage = begin(direction)
    stage.stream()
    talk = mono_of(5) if direction is Direction.IN else pairs_of(5, 7)
    stage.session.on_audio(talk)
    stage.mute(mute_in, mute_out)
    stage.session.on_audio(talk)
    stage.mute(False, False)
    stage.session.on_audio(talk)
    assert stage.sink.frames[1] == frame
    assert stage.sink.frames[0] == stage.sink.frames[2] != bytes(len(frame))
    assert stage.session.stats() == ForkStats(4, 4, 0)


async def test_mute_of_one_side_leaves_the_other_as_it_is(begin: Begin) -> None:
    stage = begin(Direction.STEREO, gain_out=1)
    stage.stream()
    for mute in (True, None), (None, True), (False, None), (None, False):
        stage.mute(*mute)
        stage.session.on_audio(pairs_of(5, 7))
    frames = [pairs_of(0, 14), pairs_of(0, 0), pairs_of(5, 0), pairs_of(5, 14)]
    assert stage.sink.frames == frames


async def test_mute_before_the_first_frame_holds(begin: Begin) -> None:
    stage = begin(Direction.BOTH)
    stage.mute(True, None)
    stage.attach()
    stage.session.on_audio(pairs_of(5, 7))
    assert stage.sink.frames == [mono_of(7)]


async def test_mute_of_one_side_of_a_mix_is_refused_and_said(begin: Begin, caplog) -> None:
    stage = begin(Direction.BOTH)
    stage.attach()
    for mute in (None, None), (True, None), (True, True):
        stage.mute(*mute)
        stage.session.on_audio(mono_of(5))
    assert stage.sink.frames == [mono_of(5), mono_of(5), mono_of(0)]
    assert len(caplog.messages) == 1
    assert "cannot mute one side of a mix" in caplog.messages[0]


async def test_frames_while_the_gate_is_shut_are_neither_sent_nor_counted(begin: Begin) -> None:
    stage = begin(gate_open=False)
    stage.attach()
    stage.sink.open()
    frames = numbered(8)
    for is_open, frame in zip(
        [None, True, None, False, None, None, True, None], frames, strict=True
    ):
        if is_open is not None:
            stage.session.set_gate(is_open)
        stage.session.on_audio(frame)
    assert stage.sink.frames == [frames[n] for n in (1, 2, 6, 7)]
    assert stage.session.stats() == ForkStats(4, 4, 0)


async def test_gate_stays_shut_after_the_end(stage: Stage) -> None:
    stage.attach()
    stage.session.end(EndReason.STOPPED)
    stage.session.set_gate(True)
    stage.session.on_audio(mono_of(5))
    assert (await stage.ended()).stats == ForkStats()
    assert stage.sink.frames == []


# --- Kept time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "frame_bytes"),
    [(Direction.IN, 320), (Direction.OUT, 320), (Direction.BOTH, 320), (Direction.STEREO, 640)],
)
async def test_silence_is_sent_and_counted_where_the_leg_brings_nothing(
    begin: Begin, clock: FakeLoop, direction: Direction, frame_bytes: int
) -> None:
    stage = begin(direction, keep_time=True)
    stage.sink.open()
    clock.advance(1)
    assert stage.sink.frames == []
    stage.attach()
    clock.advance(1)
    count = len(stage.sink.frames)
    assert 45 <= count <= 48
    assert stage.sink.frames == [bytes(frame_bytes)] * count
    assert stage.count(Streaming) == 1
    assert stage.session.stats() == ForkStats(count, count, 0)


async def test_frames_of_the_leg_put_off_the_silence(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(keep_time=True)
    stage.attach()
    for frame in numbered(50):
        stage.session.on_audio(frame)
    clock.advance(1)
    assert stage.sink.frames == numbered(50)


async def test_fork_that_does_not_keep_time_sends_no_silence(begin: Begin, clock: FakeLoop) -> None:
    stage = begin()
    stage.attach()
    stage.session.set_gate(True)
    clock.advance(1)
    assert (stage.sink.frames, clock.armed) == ([], 0)


async def test_no_silence_while_the_gate_is_shut(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(keep_time=True, gate_open=False)
    stage.attach()
    clock.advance(10)
    assert stage.sink.frames == []
    stage.session.set_gate(True)
    clock.advance(0.06)
    assert stage.sink.frames == []
    clock.advance(0.94)
    count = len(stage.sink.frames)
    assert 45 <= count <= 48
    stage.session.set_gate(False)
    clock.advance(10)
    assert len(stage.sink.frames) == count


async def test_gate_that_opens_before_the_leg_is_there_sends_no_silence(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(keep_time=True, gate_open=False)
    stage.session.set_gate(True)
    clock.advance(1)
    assert (stage.sink.frames, clock.armed) == ([], 0)


async def test_no_silence_after_the_leg_is_gone(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(keep_time=True)
    stage.attach()
    stage.session.on_leg_closed()
    clock.advance(1)
    assert (stage.sink.frames, clock.armed) == ([], 0)


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


# --- Beeps ---------------------------------------------------------------------------------------


async def test_beep_at_the_start_waits_for_the_first_frame_that_is_sent(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(beeps=Beeps(at_start=True))
    stage.attach()
    stage.session.on_audio(numbered(1)[0])
    clock.advance(1)
    assert stage.leg.spoken == []
    stage.sink.open()
    clock.advance(1)
    assert stage.leg.spoken == tone()
    stage.session.on_audio(numbered(1)[0])
    clock.advance(60)
    assert stage.leg.spoken == tone()


async def test_beeps_come_at_the_interval_from_streaming_on(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(beeps=Beeps(interval_s=15))
    stage.attach()
    clock.advance(60)
    stage.stream()
    clock.advance(14.9)
    assert stage.leg.spoken == []
    clock.advance(45.3)
    assert stage.leg.spoken == tone() * 4
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
    stage.session.on_audio(numbered(1)[0])
    assert (stage.leg.spoken, stage.leg.hang_ups) == (tone(), 0)
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
    stage.session.on_leg_closed()
    clock.advance(60)
    assert (stage.leg.hang_ups, len(stage.leg.spoken), clock.armed) == (0, count, 0)
    assert stage.count(LegLost) == 0


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_no_beeps_when_streaming_begins_after_the_leg_is_gone(
    begin: Begin, clock: FakeLoop, hangs_up: bool
) -> None:
    stage = begin(beeps=Beeps(interval_s=15, at_start=True))
    stage.attach()
    stage.session.on_audio(numbered(1)[0])
    if hangs_up:
        stage.session.end(EndReason.HANGUP)
    else:
        stage.session.on_leg_closed()
    stage.sink.open()
    assert stage.count(Streaming) == 1
    assert clock.armed == 0


async def test_beep_at_the_end_is_alone_when_streaming_begins_meanwhile(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(beeps=Beeps(interval_s=0.1, at_start=True, at_end=True))
    stage.attach()
    stage.session.on_audio(numbered(1)[0])
    stage.session.end(EndReason.STOPPED)
    stage.sink.open()
    clock.advance(60)
    assert (stage.leg.spoken, stage.leg.hang_ups, clock.armed) == (tone(), 1, 0)


# --- What the sink tells -------------------------------------------------------------------------


async def test_retries_of_the_sink_are_reported(stage: Stage) -> None:
    stage.sink.on_retry(2, "no answer in time")
    assert stage.reports == [SinkRetrying(FORK_ID, 2, "no answer in time")]


async def test_sink_that_comes_back_is_reported_with_what_was_lost_meanwhile(stage: Stage) -> None:
    stage.sink.open()
    stage.sink.reconnects = 1
    stage.sink.backlog.dropped, stage.sink.dropped_in_gap = 12, 5
    stage.sink.open()
    assert stage.reports == [SinkOpened(FORK_ID), SinkResumed(FORK_ID, 5)]
    assert stage.session.stats() == ForkStats(0, 0, 12, reconnects=1)


async def test_messages_beyond_20_a_second_are_counted_and_not_passed_on(
    stage: Stage, clock: FakeLoop
) -> None:
    for n in range(30):
        stage.sink.on_text(f"message {n}")
    assert stage.reports == [SinkMessage(FORK_ID, f"message {n}") for n in range(20)]
    assert stage.session.stats().messages_ignored == 10


async def test_messages_are_passed_on_again_as_the_second_passes(
    stage: Stage, clock: FakeLoop
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


async def test_messages_at_the_limit_are_all_passed_on(stage: Stage, clock: FakeLoop) -> None:
    for _ in range(200):
        stage.sink.on_text("")
        clock.advance(0.051)
    assert stage.count(SinkMessage) == 200
    assert stage.session.stats().messages_ignored == 0
