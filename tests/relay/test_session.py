"""One fork between a leg and a sink that do as the test says."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from audiofork.errors import SinkLost, SinkRefused, SinkUnreachable
from audiofork.link.messages import (
    Beeps,
    Direction,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    LegPart,
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
IN, OUT, MIX, PAIRS = LegPart.IN, LegPart.OUT, LegPart.MIX, LegPart.PAIRS
# What the only leg of a fork brings, unless a test says something else.
USUAL_PART = {
    Direction.IN: IN,
    Direction.OUT: PAIRS,
    Direction.BOTH: MIX,
    Direction.STEREO: PAIRS,
}


class Leg:
    """Counts how often it is hung up; takes what it is spoken to at the rate that the test says."""

    def __init__(self, spoken_rate: int) -> None:
        self.spoken_rate = spoken_rate
        self.on_usual: Callable[[bytes], None] = self.unled
        self.hang_ups = 0
        self.spoken: list[bytes] = []
        self.batched: list[tuple[int, int]] = []
        self.on_rest: Callable[[], None] = lambda: None

    def unled(self, frame: bytes) -> None:
        raise AssertionError("no way was given")

    def batch_reads(self, frame_bytes: int, batch_ms: int) -> None:
        self.batched.append((frame_bytes, batch_ms))

    def read_rest(self) -> None:
        self.on_rest()

    def hang_up(self) -> None:
        self.hang_ups += 1

    def speak(self, frame: bytes) -> None:
        self.spoken.append(frame)


class FakeBacklog:
    """Counts the frames that wait, five at most."""

    def __init__(self) -> None:
        self.dropped = 0
        self.waiting = 0

    def __len__(self) -> int:
        return self.waiting

    def put(self, count: int = 1) -> None:
        self.dropped += max(0, self.waiting + count - 5)
        self.waiting = min(5, self.waiting + count)


class FakeSink:
    """A sink that opens, fails and finishes closing when it is told to.

    Attributes:
        frames: All that it was given; each must be `frame_bytes` long.
    """

    def __init__(self, frame_bytes: int) -> None:
        self.frame_bytes = frame_bytes
        self.frame_ms = 20
        self.parts_sent = 0
        self.missing = 1  # frames, of the next message
        self.on_open: Callable[[], None] = lambda: None
        self.on_retry: Callable[[int, str], None] = lambda attempt, why: None
        self.on_text: Callable[[str], None] = lambda text: None
        self.reconnects = 0
        self.dropped_in_gap = 0
        self.frames: list[bytes] = []
        self.frames_sent = 0
        self.backlog = FakeBacklog()
        self.is_open = False
        self.closes: list[tuple[int, str]] = []
        self.hurried = False
        self.over = asyncio.get_running_loop().create_future()
        self.may_close = asyncio.Event()
        self.may_close.set()

    def open(self) -> None:
        self.is_open = True
        self.frames_sent += self.backlog.waiting
        self.backlog.waiting = 0
        self.on_open()

    def lose(self, unacknowledged: int) -> None:
        """Lose the server, which did not get the latest frames."""
        self.is_open = False
        self.frames_sent -= unacknowledged
        self.backlog.put(unacknowledged)
        self.reconnects += 1

    def send(self, frame: bytes) -> None:
        assert len(frame) == self.frame_bytes
        self.frames.append(frame)
        if self.is_open:
            self.frames_sent += 1
        else:
            self.backlog.put()

    def send_part(self) -> None:
        self.parts_sent += 1

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
        wishes = {"legs": (USUAL_PART[direction],), **wishes}
        spec = ForkSpec(FORK_ID, "PJSIP/100-0000002a", "ws://server/", direction, **wishes)
        sides = 2 if direction is Direction.STEREO else 1
        self.sink = FakeSink(spec.sample_rate // 50 * 2 * sides)
        self.legs = {part: Leg(spec.sample_rate) for part in spec.legs}
        self.leg = self.legs[spec.legs[0]]
        self.reports: list[Report] = []
        self.session = Session(spec, cast(Sink, self.sink), self._on_report)
        self.on_report: Callable[[Report], None] = lambda report: None
        self._usual: dict[LegPart, int] = {}  # size of the latest frame of each part

    def _on_report(self, report: Report) -> None:
        self.reports.append(report)
        self.on_report(report)

    async def ended(self) -> ForkEnded:
        """Wait for the end; return the report of it, which must be the last and the only one."""
        async with asyncio.timeout(5):
            await self.session.done.wait()
        (ended,) = [report for report in self.reports if isinstance(report, ForkEnded)]
        assert self.reports[-1] is ended
        return ended

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(report, kind) for report in self.reports)

    def attach(self, *parts: LegPart) -> None:
        """Connect the legs of these parts; of all, if none is named."""
        for part in parts or self.legs:
            self._usual.pop(part, None)
            self.session.inlets[part].attach(self.legs[part])

    def close_leg(self, part: LegPart | None = None) -> None:
        self.session.inlets[part or self.only_part].on_leg_closed()

    @property
    def only_part(self) -> LegPart:
        """The part of a fork that has just one."""
        (part,) = self.legs
        return part

    def audio(self, frame: bytes, part: LegPart | None = None) -> None:
        """Bring a frame of a part, as the listener does; check that none is lost of sight."""
        part = part or self.only_part
        if len(frame) == self._usual.get(part):
            self.legs[part].on_usual(frame)
        else:
            self.session.inlets[part].on_audio(frame)
        self._usual[part] = len(frame)
        stats = self.session.stats()
        waiting = len(self.sink.backlog)
        assert stats.frames_in == stats.frames_sent + stats.frames_dropped + waiting

    def stream(self) -> None:
        """Connect both ends and send a frame."""
        self.attach()
        self.sink.open()
        self.audio(bytes(640 if self.only_part is PAIRS else 320))
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
    stage.attach()
    stage.sink.open()
    assert stage.reports == [LegAttached(FORK_ID, MIX), SinkOpened(FORK_ID)]
    for frame in numbered(3):
        stage.audio(frame)
    assert stage.reports[2:] == [Streaming(FORK_ID)]
    assert stage.sink.frames == numbered(3)


async def test_streaming_is_reported_once_the_frames_that_waited_are_sent(stage: Stage) -> None:
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
    stage: Stage, reason: EndReason, code: int
) -> None:
    stage.attach()
    stage.session.end(reason, "why")
    assert stage.leg.hang_ups == 1
    assert await stage.ended() == ForkEnded(FORK_ID, reason, "why", ForkStats())
    assert stage.sink.closes == [(code, reason.value)]


async def test_end_again_keeps_the_first_reason(stage: Stage) -> None:
    stage.attach()
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
    stage.close_leg()
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
    stage.attach()
    stage.sink.over.set_exception(failure)
    ended = await stage.ended()
    assert (ended.reason, ended.detail) == (reason, detail)
    assert stage.leg.hang_ups == 1
    logged = [record for record in caplog.records if record.exc_info]
    assert bool(logged) == (reason is EndReason.FAULT)


async def test_leg_that_closes_is_reported_with_its_frames(stage: Stage) -> None:
    stage.attach()
    for frame in numbered(3):
        stage.audio(frame)
    stage.close_leg()
    assert stage.reports == [LegAttached(FORK_ID, MIX), LegLost(FORK_ID, MIX, 3)]
    stage.session.end(EndReason.HANGUP)
    assert stage.leg.hang_ups == 0
    assert (await stage.ended()).stats.frames_in == 3


async def test_leg_that_closes_while_the_fork_ends_is_not_reported(stage: Stage) -> None:
    stage.attach()
    stage.session.end(EndReason.STOPPED)
    stage.close_leg()
    await stage.ended()
    assert stage.count(LegLost) == 0


async def test_leg_that_comes_after_the_end_is_hung_up(stage: Stage) -> None:
    stage.session.end(EndReason.STOPPED)
    stage.attach()
    assert stage.leg.hang_ups == 1
    assert stage.count(LegAttached) == 0


async def test_stats_at_the_end_are_those_after_closing(stage: Stage) -> None:
    stage.attach()
    stage.sink.open()
    for frame in numbered(10):
        stage.audio(frame)
    stage.sink.may_close.clear()
    stage.session.end(EndReason.HANGUP)
    stage.sink.frames_sent, stage.sink.backlog.dropped = 7, 3
    stage.sink.may_close.set()
    assert (await stage.ended()).stats == ForkStats(10, 7, 3)


@in_direction(Direction.OUT, Direction.STEREO)
async def test_mono_frames_where_pairs_are_needed_fail_the_leg(stage: Stage) -> None:
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
async def test_first_frame_of_no_use_fails_the_leg(stage: Stage, frame_bytes: int) -> None:
    stage.attach()
    stage.audio(bytes(frame_bytes))
    ended = await stage.ended()
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == f"the leg sends frames of {frame_bytes} bytes, not 320 (8000 Hz)"
    assert stage.sink.frames == []


@in_direction(Direction.OUT, Direction.STEREO)
async def test_pairs_of_another_rate_fail_the_leg_by_their_size(stage: Stage) -> None:
    stage.attach()
    stage.audio(bytes(1280))
    ended = await stage.ended()
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == "the leg sends frames of 1280 bytes, not 640 (8000 Hz)"


async def test_later_frame_of_odd_size_is_counted_and_passed_over(stage: Stage, caplog) -> None:
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


@in_direction(Direction.OUT)
async def test_out_sends_the_right_half_of_pairs(stage: Stage) -> None:
    stage.attach()
    stage.audio(b"\x01\x02\x03\x04" * 160)
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
    stage.audio(pairs_of(100, -301))
    assert stage.sink.frames == [pairs_of(400, -150)]


@pytest.mark.parametrize(
    ("direction", "mute_in", "mute_out", "frame"),
    [
        (Direction.OUT, None, True, mono_of(0)),
        (Direction.OUT, True, None, mono_of(7)),
        (Direction.BOTH, True, None, mono_of(7)),
        (Direction.BOTH, None, True, mono_of(5)),
        (Direction.BOTH, True, True, mono_of(0)),
        (Direction.STEREO, True, None, pairs_of(0, 7)),
        (Direction.STEREO, None, True, pairs_of(5, 0)),
    ],
)
async def test_mute_of_pairs_works_from_the_next_frame_on_and_keeps_time(
    begin: Begin,
    direction: Direction,
    mute_in: bool | None,
    mute_out: bool | None,
    frame: bytes,
) -> None:
    stage = begin(direction, legs=(PAIRS,))
    stage.stream()
    talk = pairs_of(5, 7)
    stage.audio(talk)
    stage.mute(mute_in, mute_out)
    stage.audio(talk)
    stage.mute(False, False)
    stage.audio(talk)
    assert stage.sink.frames[1] == frame
    assert stage.sink.frames[0] == stage.sink.frames[2] != bytes(len(frame))
    assert stage.session.stats() == ForkStats(4, 4, 0)


async def test_mute_of_one_side_leaves_the_other_as_it_is(begin: Begin) -> None:
    stage = begin(Direction.STEREO, gain_out=1)
    stage.stream()
    for mute in (True, None), (None, True), (False, None), (None, False):
        stage.mute(*mute)
        stage.audio(pairs_of(5, 7))
    frames = [pairs_of(0, 14), pairs_of(0, 0), pairs_of(5, 0), pairs_of(5, 14)]
    assert stage.sink.frames == frames


async def test_mute_before_the_first_frame_holds(begin: Begin) -> None:
    stage = begin(Direction.BOTH, legs=(PAIRS,))
    stage.mute(True, None)
    stage.attach()
    stage.audio(pairs_of(5, 7))
    assert stage.sink.frames == [mono_of(7)]


@pytest.mark.parametrize("mute", [(True, None), (None, True), (True, True)])
async def test_mix_falls_silent_whole_even_if_one_side_alone_is_muted(
    begin: Begin, mute: tuple[bool | None, bool | None]
) -> None:
    """The registry refuses that; here a muted party is not heard all the same."""
    stage = begin(Direction.BOTH)
    stage.stream()
    for _ in range(2):
        stage.audio(mono_of(5))
    stage.mute(*mute)
    for _ in range(2):
        stage.audio(mono_of(5))
    stage.mute(False, False)
    stage.audio(mono_of(5))
    assert stage.sink.frames == [mono_of(n) for n in (5, 5, 0, 0, 5)]
    assert stage.session.stats() == ForkStats(6, 6, 0)


async def test_mix_whose_sides_are_both_muted_is_heard_when_both_are_not(begin: Begin) -> None:
    stage = begin(Direction.BOTH)
    stage.stream()
    for mute in (True, None), (None, True), (False, None), (None, False):
        stage.mute(*mute)
        stage.audio(mono_of(5))
    assert stage.sink.frames == [mono_of(n) for n in (0, 0, 0, 5)]


async def test_gain_of_both_sides_is_that_of_the_mix(begin: Begin) -> None:
    stage = begin(Direction.BOTH, gain_in=1, gain_out=1)
    stage.stream()
    stage.audio(mono_of(5))
    assert stage.sink.frames == [mono_of(10)]


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
        stage.audio(frame)
    assert stage.sink.frames == [frames[n] for n in (1, 2, 6, 7)]
    assert stage.session.stats() == ForkStats(4, 4, 0)


async def test_gate_stays_shut_after_the_end(stage: Stage) -> None:
    stage.attach()
    stage.session.end(EndReason.STOPPED)
    stage.session.set_gate(True)
    stage.audio(mono_of(5))
    assert (await stage.ended()).stats == ForkStats()
    assert stage.sink.frames == []


# --- The short way of usual frames ---------------------------------------------------------------


async def test_usual_frames_go_straight_to_the_sink_only_when_streaming(stage: Stage) -> None:
    leg = stage.legs[MIX]
    stage.attach()
    for n in (1, 2):
        stage.audio(mono_of(n))
        assert leg.on_usual != stage.sink.send
    stage.sink.open()
    for n in (3, 4):
        assert leg.on_usual != stage.sink.send
        stage.audio(mono_of(n))
    assert leg.on_usual == stage.sink.send
    stage.audio(mono_of(5))
    assert stage.sink.frames == [mono_of(n) for n in (1, 2, 3, 4, 5)]
    assert stage.session.stats() == ForkStats(5, 5, 0)


@pytest.mark.parametrize(
    ("direction", "wishes"),
    [(Direction.IN, {"gain_in": 1}), (Direction.BOTH, {"gain_in": 1, "gain_out": 1})],
)
async def test_usual_frames_that_are_shaped_take_a_short_way_too(
    begin: Begin, direction: Direction, wishes: dict[str, Any]
) -> None:
    stage = begin(direction, **wishes)
    stage.stream()
    stage.audio(mono_of(1))
    part = stage.only_part
    ways = (stage.session.inlets[part].on_audio, stage.sink.send)
    assert stage.legs[part].on_usual not in ways
    stage.audio(mono_of(5))
    assert stage.sink.frames == [mono_of(2), mono_of(10)]


async def test_frames_that_take_the_short_way_are_counted_where_time_is_kept(
    begin: Begin, clock: FakeLoop
) -> None:
    """Or the silence filler would put silence beside what comes."""
    stage = begin(keep_time=True)
    stage.stream()
    for n in range(100):
        stage.audio(mono_of(n))
        clock.advance(0.02)
    assert stage.leg.on_usual == stage.sink.send
    assert stage.sink.frames == [mono_of(n) for n in range(100)]


async def test_usual_frames_after_a_mute_are_silence_and_after_its_end_are_not(
    begin: Begin,
) -> None:
    stage = begin()
    stage.stream()
    for n, mute in enumerate((None, None, True, None, False, None)):
        if mute is not None:
            stage.mute(mute, None)
        stage.audio(mono_of(n + 1))
    assert stage.sink.frames == [mono_of(n) for n in (1, 2, 0, 0, 5, 6)]


async def test_usual_frames_while_the_gate_is_shut_are_neither_sent_nor_counted(
    begin: Begin,
) -> None:
    stage = begin()
    stage.stream()
    stage.audio(mono_of(1))
    stage.session.set_gate(False)
    for n in (2, 3):
        stage.audio(mono_of(n))
    stage.session.set_gate(True)
    for n in (4, 5):
        stage.audio(mono_of(n))
    assert stage.sink.frames == [mono_of(n) for n in (1, 4, 5)]
    assert stage.session.stats() == ForkStats(4, 4, 0)
    stage.close_leg()
    assert stage.reports[-1] == LegLost(FORK_ID, IN, 6)


async def test_usual_frames_after_the_end_are_not_sent(begin: Begin) -> None:
    stage = begin()
    stage.stream()
    stage.audio(mono_of(1))
    stage.session.end(EndReason.HANGUP)
    stage.audio(mono_of(2))
    assert stage.sink.frames == [mono_of(1)]
    assert (await stage.ended()).stats == ForkStats(2, 2, 0)


async def test_odd_frames_in_a_row_are_each_counted_and_good_ones_go_on(begin: Begin) -> None:
    stage = begin()
    stage.stream()
    for n in (1, 2):
        stage.audio(mono_of(n))
    for _ in range(3):
        stage.audio(bytes(160))
    for n in (3, 4):
        stage.audio(mono_of(n))
    assert stage.sink.frames == [mono_of(n) for n in (1, 2, 3, 4)]
    assert stage.session.stats() == ForkStats(8, 5, 3)


async def test_odd_frames_of_another_leg_are_counted_too(begin: Begin) -> None:
    stage = begin()
    stage.stream()
    for _ in range(2):
        stage.audio(mono_of(1))
    stage.close_leg()
    stage.attach()
    for _ in range(3):
        stage.audio(bytes(640))
    stage.audio(mono_of(2))
    assert stage.sink.frames == [mono_of(1), mono_of(1), mono_of(2)]
    assert stage.session.stats() == ForkStats(7, 4, 3)


async def test_usual_frames_while_the_server_is_away_wait_and_the_oldest_go(begin: Begin) -> None:
    stage = begin()
    stage.stream()
    for n in range(10):
        stage.audio(mono_of(n))
    stage.sink.lose(2)
    for n in range(7):
        stage.audio(mono_of(n))
    assert stage.session.stats() == ForkStats(18, 9, 4, reconnects=1)
    stage.sink.open()
    assert stage.session.stats() == ForkStats(18, 14, 4, reconnects=1)


FORKS: dict[str, dict[str, Any]] = {
    "in": {"direction": Direction.IN},
    "in louder": {"direction": Direction.IN, "gain_in": 1},
    "mix": {"direction": Direction.BOTH},
    "mix quieter": {"direction": Direction.BOTH, "gain_in": -1, "gain_out": -1},
    "both": {"direction": Direction.BOTH, "legs": (PAIRS,)},
    "out": {"direction": Direction.OUT},
    "stereo": {"direction": Direction.STEREO, "gain_out": -1},
    "out by a leg of its own": {"direction": Direction.OUT, "legs": (OUT,), "gain_out": 2},
    "wide in": {"direction": Direction.IN, "sample_rate": 16_000},
    "both by two legs": {"direction": Direction.BOTH, "legs": (IN, OUT), "gate_open": False},
    "stereo by two legs": {"direction": Direction.STEREO, "legs": (IN, OUT), "gain_in": -2},
}


def live(stage: Stage, rng: random.Random, *, usually: bool) -> list[ForkStats]:
    """Let 600 things happen to a fork, checking that all frames are counted.

    Args:
        usually: Bring frames as usual ones where they are; else have each looked at.

    Returns:
        The statistics after each.
    """
    session, sink = stage.session, stage.sink
    size = session.spec.sample_rate // 50 * (4 if PAIRS in stage.legs else 2)
    gate_open, offered = session.spec.gate_open, 0
    stats = []

    def bring(frame: bytes, part: LegPart) -> None:
        if not usually:
            stage._usual.clear()
        stage.audio(frame, part)

    stage.attach()
    for _ in range(600):
        what = rng.choice(("frames", "frames", "odd", "mute", "gate", "open", "lose", "leg"))
        part = rng.choice(list(stage.legs))
        if what == "frames":
            for _ in range(rng.randrange(1, 5)):
                for each in stage.legs:
                    bring(rng.randbytes(size), each)
                offered += gate_open
        elif what == "odd" and stage.count(Streaming):  # before that it would end some
            bring(bytes(size + 2), part)
            offered += gate_open
        elif what == "mute":
            stage.mute(rng.choice((None, True, False)), rng.choice((None, True, False)))
        elif what == "gate":
            gate_open = rng.random() < 0.7
            session.set_gate(gate_open)
        elif what == "open" and not sink.is_open:
            sink.open()
        elif what == "lose" and sink.is_open:
            sink.lose(min(sink.frames_sent, rng.randrange(4)))
        elif what == "leg":
            stage.close_leg(part)
            stage.attach(part)
        stats.append(session.stats())
        assert stats[-1].frames_in == offered
    return stats


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wishes", FORKS.values(), ids=FORKS)
async def test_usual_frames_fare_as_if_each_were_looked_at(
    begin: Begin, wishes: dict[str, Any], seed: int
) -> None:
    quick, careful = begin(**wishes), begin(**wishes)
    quick_stats = live(quick, random.Random(seed), usually=True)
    assert quick_stats == live(careful, random.Random(seed), usually=False)
    assert quick.sink.frames == careful.sink.frames
    assert quick.reports == careful.reports
    assert quick.count(Streaming) == 1
    assert len(quick.sink.frames) > 100


# --- A leg for a side ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "part", "frame"),
    [
        (Direction.OUT, OUT, mono_of(14)),
        (Direction.IN, IN, mono_of(-3)),
    ],
)
async def test_leg_of_one_side_serves_its_direction_with_gain_and_mute(
    begin: Begin, direction: Direction, part: LegPart, frame: bytes
) -> None:
    stage = begin(direction, legs=(part,), gain_in=-1, gain_out=1)
    stage.attach()
    stage.sink.open()
    assert stage.reports == [LegAttached(FORK_ID, part), SinkOpened(FORK_ID)]
    talk = mono_of(7)
    stage.audio(talk)
    stage.mute(part is IN, part is OUT)
    stage.audio(talk)
    stage.mute(part is OUT, part is IN)
    stage.audio(talk)
    expected = mono_of(14) if part is OUT else mono_of(3)
    assert stage.sink.frames == [expected, mono_of(0), expected]
    stage.close_leg()
    assert stage.reports[2:] == [Streaming(FORK_ID), LegLost(FORK_ID, part, 3)]


JOINED = {Direction.BOTH: mono_of(12), Direction.STEREO: pairs_of(5, 7)}
BOTH_LEGS = (IN, OUT)
in_joined = pytest.mark.parametrize("direction", JOINED)


@in_joined
async def test_two_legs_are_joined_and_reported_each(begin: Begin, direction: Direction) -> None:
    stage = begin(direction, legs=BOTH_LEGS)
    stage.attach(OUT)
    stage.attach(IN)
    stage.sink.open()
    stage.audio(mono_of(5), IN)
    assert stage.sink.frames == []
    stage.audio(mono_of(7), OUT)
    assert stage.sink.frames == [JOINED[direction]]
    stage.audio(mono_of(7), OUT)
    stage.audio(mono_of(5), IN)
    assert stage.sink.frames == [JOINED[direction]] * 2
    assert stage.reports == [
        LegAttached(FORK_ID, OUT),
        LegAttached(FORK_ID, IN),
        SinkOpened(FORK_ID),
        Streaming(FORK_ID),
    ]
    assert stage.session.stats() == ForkStats(2, 2, 0)


def bring(stage: Stage, sample_in: int = 5, sample_out: int = 7) -> bytes:
    """Bring a frame of each leg; return what comes of it."""
    stage.audio(mono_of(sample_in), IN)
    stage.audio(mono_of(sample_out), OUT)
    return stage.sink.frames[-1]


@pytest.mark.parametrize(
    ("direction", "mute_in", "mute_out", "frame"),
    [
        (Direction.BOTH, True, None, mono_of(14)),
        (Direction.BOTH, None, True, mono_of(10)),
        (Direction.BOTH, True, True, mono_of(0)),
        (Direction.STEREO, True, None, pairs_of(0, 14)),
        (Direction.STEREO, None, True, pairs_of(10, 0)),
        (Direction.STEREO, True, True, pairs_of(0, 0)),
    ],
)
async def test_two_legs_have_a_gain_each_and_are_muted_each(
    begin: Begin,
    direction: Direction,
    mute_in: bool | None,
    mute_out: bool | None,
    frame: bytes,
) -> None:
    stage = begin(direction, legs=BOTH_LEGS, gain_in=1, gain_out=1)
    stage.attach()
    untouched = bring(stage)
    assert untouched == (mono_of(24) if direction is Direction.BOTH else pairs_of(10, 14))
    stage.mute(mute_in, mute_out)
    assert bring(stage) == frame
    stage.mute(False, False)
    assert bring(stage) == untouched


async def test_gain_of_one_leg_leaves_the_other_as_it_is(begin: Begin) -> None:
    stage = begin(Direction.STEREO, legs=BOTH_LEGS, gain_in=-1, gain_out=2)
    stage.attach()
    assert bring(stage, -301, 100) == pairs_of(-150, 400)


@in_joined
async def test_two_legs_while_the_gate_is_shut_are_neither_sent_nor_counted(
    begin: Begin, direction: Direction
) -> None:
    stage = begin(direction, legs=BOTH_LEGS, gate_open=False)
    stage.attach()
    stage.sink.open()
    for is_open in (None, True, None, False, None, True):
        if is_open is not None:
            stage.session.set_gate(is_open)
        stage.audio(mono_of(5), IN)
        stage.audio(mono_of(7), OUT)
    assert stage.sink.frames == [JOINED[direction]] * 3
    assert stage.session.stats() == ForkStats(3, 3, 0)
    stage.close_leg(OUT)
    assert stage.reports[-1] == LegLost(FORK_ID, OUT, 6)


@pytest.mark.parametrize(
    ("direction", "lost", "frame"),
    [
        (Direction.BOTH, IN, mono_of(7)),
        (Direction.BOTH, OUT, mono_of(5)),
        (Direction.STEREO, IN, pairs_of(0, 7)),
        (Direction.STEREO, OUT, pairs_of(5, 0)),
    ],
)
async def test_leg_that_is_lost_leaves_silence_until_another_comes(
    begin: Begin, direction: Direction, lost: LegPart, frame: bytes
) -> None:
    stage = begin(direction, legs=BOTH_LEGS)
    other, sample = (OUT, 7) if lost is IN else (IN, 5)
    stage.attach()
    stage.sink.open()
    bring(stage)
    stage.audio(mono_of(sample), other)
    stage.close_leg(lost)
    assert stage.sink.frames == [JOINED[direction], frame]  # what had waited for it too
    assert stage.reports[-1] == LegLost(FORK_ID, lost, 2)
    stage.audio(mono_of(sample), other)
    assert stage.sink.frames == [JOINED[direction], frame, frame]
    stage.attach(lost)
    assert stage.reports[-1] == LegAttached(FORK_ID, lost)
    assert bring(stage) == JOINED[direction]
    assert stage.session.stats() == ForkStats(4, 4, 0)
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


@in_joined
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


async def test_two_legs_keep_time_themselves(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(Direction.STEREO, legs=BOTH_LEGS, keep_time=True)
    stage.attach()
    stage.session.set_gate(True)
    clock.advance(1)
    assert (stage.sink.frames, clock.armed) == ([], 0)


# --- Other rates, and frames of the wrong size ---------------------------------------------------


def wide_of(sample: int, rate: int = 16_000) -> bytes:
    return struct.pack("<h", sample) * (rate // 50)


@pytest.mark.parametrize("rate", [12_000, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize(("direction", "part"), [(Direction.IN, IN), (Direction.OUT, OUT)])
async def test_side_at_another_rate_is_sent_in_frames_of_that_rate(
    begin: Begin, direction: Direction, part: LegPart, rate: int
) -> None:
    stage = begin(direction, legs=(part,), sample_rate=rate)
    stage.attach()
    stage.audio(wide_of(5, rate))
    stage.mute(True, True)
    stage.audio(wide_of(5, rate))
    assert stage.sink.frames == [wide_of(5, rate), bytes(rate // 25)]


async def test_two_wide_legs_are_joined_and_silence_is_as_wide(begin: Begin) -> None:
    both = begin(Direction.BOTH, legs=BOTH_LEGS, sample_rate=16_000)
    stereo = begin(Direction.STEREO, legs=BOTH_LEGS, sample_rate=16_000)
    for stage in (both, stereo):
        stage.attach(IN)
        stage.audio(wide_of(5), IN)
        stage.attach(OUT)
        stage.audio(wide_of(5), IN)
        stage.audio(wide_of(7), OUT)
    assert both.sink.frames == [wide_of(5), wide_of(12)]
    assert stereo.sink.frames == [pairs_of(5, 0) * 2, pairs_of(5, 7) * 2]
    assert [len(frame) for frame in both.sink.frames + stereo.sink.frames] == [640, 640, 1280, 1280]


@pytest.mark.parametrize("legs", [(OUT,), BOTH_LEGS], ids=["one leg", "two legs"])
@pytest.mark.parametrize("size", [320, 638, 642, 1280])
async def test_first_frame_of_another_rate_fails_the_leg_naming_both_sizes_and_the_rate(
    begin: Begin, legs: tuple[LegPart, ...], size: int
) -> None:
    direction = Direction.OUT if legs == (OUT,) else Direction.BOTH
    stage = begin(direction, legs=legs, sample_rate=16_000)
    stage.attach()
    stage.audio(bytes(size), OUT)
    assert [leg.hang_ups for leg in stage.legs.values()] == [1] * len(legs)
    ended = await stage.ended()
    assert ended.reason is EndReason.LEG_FAILED
    assert ended.detail == f"the leg sends frames of {size} bytes, not 640 (16000 Hz)"
    assert ended.stats == ForkStats(1, 0, 1)
    assert stage.sink.frames == []


@pytest.mark.parametrize("part", BOTH_LEGS)
async def test_odd_frame_of_one_of_two_legs_that_stream_is_counted_and_passed_over(
    begin: Begin, part: LegPart, caplog
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


@pytest.mark.parametrize("legs", [(OUT,), BOTH_LEGS], ids=["one leg", "two legs"])
async def test_odd_frame_while_the_gate_is_shut_is_not_counted_and_ends_nothing(
    begin: Begin, legs: tuple[LegPart, ...]
) -> None:
    direction = Direction.OUT if legs == (OUT,) else Direction.BOTH
    stage = begin(direction, legs=legs, gate_open=False)
    stage.attach()
    stage.audio(bytes(640), OUT)
    stage.session.set_gate(True)
    assert stage.session.stats() == ForkStats()
    for part in legs:
        stage.audio(mono_of(5), part)
    assert len(stage.sink.frames) == 1
    stage.session.end(EndReason.STOPPED)
    stage.audio(bytes(640), OUT)
    assert (await stage.ended()).stats.frames_dropped == 0


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
    assert 40 <= count <= 48
    assert stage.sink.frames == [bytes(frame_bytes)] * count
    assert stage.count(Streaming) == 1
    assert stage.session.stats() == ForkStats(count, count, 0)


async def test_pause_of_a_mixed_leg_is_filled_and_what_comes_late_is_sent_too(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(Direction.BOTH, keep_time=True)
    stage.stream()
    stage.audio(mono_of(5))
    clock.advance(0.5)
    filled = len(stage.sink.frames) - 1
    assert 16 <= filled <= 23
    stage.audio(mono_of(7))
    assert stage.sink.frames == [mono_of(5), *[bytes(320)] * filled, mono_of(7)]
    assert stage.session.stats() == ForkStats(filled + 3, filled + 3, 0)


async def test_frames_that_were_filled_in_are_not_said_to_have_been_brought_by_the_leg(
    begin: Begin, clock: FakeLoop
) -> None:
    stage = begin(Direction.BOTH, keep_time=True)
    stage.attach()
    clock.advance(1)
    assert stage.session.stats().frames_in >= 40
    stage.close_leg()
    assert stage.reports[-1] == LegLost(FORK_ID, MIX, 0)


async def test_frames_of_the_leg_put_off_the_silence(begin: Begin, clock: FakeLoop) -> None:
    stage = begin(keep_time=True)
    stage.attach()
    for frame in numbered(50):
        stage.audio(frame)
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
    clock.advance(0.11)
    assert stage.sink.frames == []
    clock.advance(0.89)
    count = len(stage.sink.frames)
    assert 42 <= count <= 45
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
    stage.close_leg()
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
def wide(begin: Begin) -> Callable[..., Stage]:
    """Begin forks of two wide legs."""

    def begin_wide(**beeps: Any) -> Stage:
        wishes: dict[str, Any] = {"legs": BOTH_LEGS, "sample_rate": 16_000}
        return begin(Direction.STEREO, beeps=Beeps(**beeps), **wishes)

    return begin_wide


def stream_wide(stage: Stage, *parts: LegPart) -> None:
    """Connect both ends, and send a frame of these parts."""
    stage.attach(*parts)
    stage.sink.open()
    for part in parts:
        stage.audio(wide_of(5), part)


async def test_beeps_at_another_rate_go_over_the_first_leg_alone(
    wide: Callable[..., Stage], clock: FakeLoop
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
    wide: Callable[..., Stage], clock: FakeLoop
) -> None:
    stage = wide(interval_s=15, at_start=True)
    stream_wide(stage, OUT)
    assert stage.count(Streaming) == 1
    clock.advance(7)
    stage.attach(IN)
    assert stage.legs[IN].spoken == TONE[:1]
    clock.advance(14.9)
    assert stage.legs[IN].spoken == TONE
    clock.advance(45.3)
    assert stage.legs[IN].spoken == TONE * 5


async def test_beep_at_the_start_is_heard_once_though_the_first_leg_comes_anew(
    wide: Callable[..., Stage], clock: FakeLoop
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
    wide: Callable[..., Stage], clock: FakeLoop
) -> None:
    stage = wide(interval_s=15)
    stream_wide(stage, IN, OUT)
    stage.close_leg(OUT)
    clock.advance(7)
    stage.attach(OUT)
    clock.advance(30)
    assert stage.legs[IN].spoken == TONE * 2


async def test_first_leg_that_closes_during_the_last_beep_lets_the_other_go(
    wide: Callable[..., Stage], clock: FakeLoop
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
    wide: Callable[..., Stage], clock: FakeLoop
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
    wide: Callable[..., Stage], clock: FakeLoop
) -> None:
    stage = wide(at_end=True)
    stream_wide(stage, OUT)
    stage.session.end(EndReason.STOPPED)
    assert (stage.legs[OUT].hang_ups, stage.legs[OUT].spoken, clock.armed) == (1, [], 0)


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
    assert stage.session.stats() == ForkStats(12, 0, 12, reconnects=1)


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


# --- Several frames in a message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "wishes", "frame", "batched"),
    [
        (Direction.IN, {}, bytes(320), [(320, 100)]),
        (Direction.BOTH, {}, bytes(320), [(320, 100)]),
        (Direction.OUT, {}, bytes(640), [(640, 100)]),
        (Direction.OUT, {"legs": (OUT,), "sample_rate": 16000}, bytes(640), [(640, 100)]),
        (Direction.IN, {"keep_time": True}, bytes(320), []),
    ],
    ids=["in", "mix", "pairs", "wide", "time-is-kept"],
)
async def test_reads_of_the_only_leg_are_batched_once_audio_flows_and_a_message_has_ended(
    direction: Direction, wishes: dict[str, Any], frame: bytes, batched: list[tuple[int, int]]
) -> None:
    stage = Stage(direction, **wishes)
    stage.sink.frame_ms = 100
    stage.attach()
    leg = stage.legs[stage.only_part]
    stage.audio(frame)
    stage.audio(frame)
    assert leg.batched == []
    stage.sink.open()
    stage.sink.is_open = False  # a part of a message waits
    stage.audio(frame)
    assert leg.batched == []
    stage.sink.open()
    stage.audio(frame)
    assert leg.batched == batched
    stage.close_leg()
    stage.attach()  # another in its place
    stage.audio(frame)
    assert leg.batched == 2 * batched
    stage.session.end(EndReason.STOPPED)


async def test_reads_are_not_batched_where_each_frame_is_a_message_nor_where_there_are_two() -> (
    None
):
    single, double = Stage(Direction.IN), Stage(Direction.STEREO, legs=(IN, OUT))
    double.sink.frame_ms = 100
    for stage in (single, double):
        stage.sink.open()
        stage.attach()
    for _ in range(3):
        single.audio(bytes(320))
        double.audio(bytes(320), IN)
        double.audio(bytes(320), OUT)
    assert [leg.batched for stage in (single, double) for leg in stage.legs.values()] == [[]] * 3
    for stage in (single, double):
        stage.session.end(EndReason.STOPPED)


@pytest.mark.parametrize("is_late", [True, False])
async def test_part_of_a_message_that_was_read_is_sent_if_it_is_late(is_late: bool) -> None:
    stage = Stage(Direction.IN)
    stage.sink.missing = 3
    assert stage.session.inlets[IN].on_batch_read(is_late=is_late) == 3
    assert stage.sink.parts_sent == is_late
    stage.session.end(EndReason.STOPPED)


async def test_end_sends_what_the_leg_has_not_read_yet() -> None:
    stage = Stage(Direction.IN)
    stage.sink.frame_ms = 100
    stage.sink.open()
    stage.attach()
    stage.audio(b"\1" * 320)
    leg = stage.legs[IN]
    leg.on_rest = lambda: stage.session.inlets[IN].on_audio(b"\2" * 320)
    stage.session.end(EndReason.STOPPED)
    assert stage.sink.frames == [b"\1" * 320, b"\2" * 320]
    assert leg.hang_ups == 1
