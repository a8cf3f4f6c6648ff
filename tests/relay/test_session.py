"""One fork between a leg and a sink that do as the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from audiofork.errors import SinkLost, SinkRefused, SinkUnreachable
from audiofork.model import (
    Direction,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    LegAttached,
    LegLost,
    Report,
    SinkOpened,
    Streaming,
)
from audiofork.relay.session import NO_PAIRS, Session
from audiofork.relay.sink import Sink
from tests.relay.peers import numbered

pytestmark = pytest.mark.usefixtures("nothing_left")

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"


class Leg:
    """Counts how often it is hung up."""

    def __init__(self) -> None:
        self.hang_ups = 0

    def hang_up(self) -> None:
        self.hang_ups += 1


class FakeSink:
    """A sink that opens, fails and finishes closing when it is told to."""

    def __init__(self) -> None:
        self.on_open: Callable[[], None] = lambda: None
        self.frames: list[bytes] = []
        self.frames_sent = 0
        self.backlog = SimpleNamespace(dropped=0)
        self.is_open = False
        self.closes: list[tuple[int, str]] = []
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

    async def run(self) -> None:
        await self.over

    async def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        await self.may_close.wait()
        if not self.over.done():
            self.over.set_result(None)


class Stage:
    """A session with all that it talks to."""

    def __init__(self, direction: Direction) -> None:
        self.sink = FakeSink()
        self.leg = Leg()
        self.reports: list[Report] = []
        spec = ForkSpec(FORK_ID, "PJSIP/100-0000002a", "ws://server/", direction)
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


@pytest.fixture
def direction(request: pytest.FixtureRequest) -> Direction:
    return cast(Direction, getattr(request, "param", Direction.BOTH))


@pytest.fixture
async def stage(direction: Direction) -> AsyncIterator[Stage]:
    stage = Stage(direction)
    stage.session.start()
    yield stage
    stage.sink.may_close.set()
    stage.session.end(EndReason.STOPPED)
    await stage.ended()


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
    assert ended.stats == ForkStats(2, 0, 2)
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
