"""What stands between a frame and its server, with a connection and a clock that are the test's."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from audiofork.audiosocket import PTIME_S
from audiofork.relay.formats.base import Dtmf, Event
from audiofork.relay.formats.raw import RawFormat
from audiofork.relay.outlet import (
    CHECK_INTERVAL_S,
    CHECKS_BETWEEN_MARKS,
    FRAMES_BETWEEN_CHECKS,
    Flow,
    Outlet,
)
from tests.relay.kernels import Kernel, Transport
from tests.relay.peers import FakeLoop, numbered

FULL = 1 << 20


class PressFormat(RawFormat):
    """Raw, but an event is two messages, and there is one before the close."""

    def event(self, event: Event, number: int) -> tuple[str, str]:
        return "press", "release"

    def closing(self, reason: str, number: int, dropped: int) -> tuple[str]:
        return (reason,)


class Stage(Transport):
    """An outlet with a connection.

    Attributes:
        written: The messages that the connection was given.
        pause_at: The transport is full when it has so many.
    """

    def __init__(self, clock: FakeLoop, kernel: Kernel, frame_ms: int = 20) -> None:
        super().__init__(kernel)
        self.clock = clock
        self.written: list[bytes] = []
        self.pause_at = 0
        self.outlet = Outlet(
            PressFormat(), frame_bytes=320, frame_ms=frame_ms, backlog_s=1, latency_budget_s=0.2
        )
        self.outlet.attach(cast(asyncio.Transport, self))

    def write(self, message: bytes) -> None:
        self.written.append(message)
        if len(self.written) == self.pause_at:
            self.outlet.pause()

    @property
    def flow(self) -> Flow:
        return self.outlet._path.flow

    @property
    def marks(self) -> list[tuple[int, float]]:
        """After how many writes it is measured, and how long the last frame had waited then."""
        assert self.outlet._unacked is not None
        return [(writes, waited_s) for writes, _, waited_s in self.outlet._unacked._marks]

    @property
    def carried(self) -> list[object]:
        """What each write has carried, of those that nobody has acknowledged."""
        assert self.outlet._unacked is not None
        return [write[0] for write in self.outlet._unacked.writes if isinstance(write, tuple)]

    @property
    def offered(self) -> int:
        """How many frames are accounted for."""
        backlog = self.outlet.backlog
        return self.outlet.frames_sent + backlog.dropped + len(backlog)

    def offer(self, count: int) -> None:
        before = self.offered
        for frame in numbered(count, before):
            self.outlet.send(frame)
        assert self.offered == before + count


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    clock = FakeLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return clock


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel.behind_all(monkeypatch)


@pytest.fixture
def stage(loop: FakeLoop, kernel: Kernel) -> Stage:
    return Stage(loop, kernel)


def test_flow_is_shut_until_the_connection_is_opened(stage: Stage) -> None:
    assert (stage.flow, stage.outlet.is_open) == (Flow.SHUT, False)
    stage.offer(2)
    stage.outlet.resume()
    assert not stage.written
    stage.outlet.open(is_full=False)
    assert (stage.flow, stage.outlet.is_open) == (Flow.FREE, True)
    assert len(stage.written) == 2


def test_open_with_a_full_transport_waits_until_it_has_room(stage: Stage) -> None:
    stage.offer(2)
    stage.outlet.open(is_full=True)
    assert (stage.flow, stage.written) == (Flow.TRANSPORT, [])
    stage.outlet.resume()
    assert (stage.flow, len(stage.written)) == (Flow.FREE, 2)


def test_full_kernel_holds_frames_and_is_asked_again_by_time(stage: Stage) -> None:
    stage.outlet.open(is_full=False)
    stage.kernel.not_sent = FULL
    stage.offer(FRAMES_BETWEEN_CHECKS + 2)
    assert stage.flow is Flow.KERNEL
    assert (len(stage.written), len(stage.outlet.backlog)) == (FRAMES_BETWEEN_CHECKS, 2)
    stage.clock.advance(CHECK_INTERVAL_S)
    assert (stage.flow, stage.clock.armed) == (Flow.KERNEL, 1)
    stage.kernel.not_sent = 0
    stage.clock.advance(CHECK_INTERVAL_S)
    assert (stage.flow, stage.clock.armed) == (Flow.FREE, 0)
    assert len(stage.written) == FRAMES_BETWEEN_CHECKS + 2


@pytest.mark.parametrize("frame_ms", [20, 40], ids=["fast path", "formed"])
def test_full_transport_is_waited_for_even_if_the_kernel_is_full_too(
    loop: FakeLoop, kernel: Kernel, frame_ms: int
) -> None:
    """The kernel would be asked at the very message that fills the transport."""
    stage = Stage(loop, kernel, frame_ms)
    stage.outlet.open(is_full=False)
    stage.pause_at = -(-FRAMES_BETWEEN_CHECKS * 20 // frame_ms)
    kernel.not_sent = FULL
    stage.offer(6)
    assert (stage.flow, loop.armed) == (Flow.TRANSPORT, 0)


def test_one_check_of_five_is_measured_with_the_time_that_its_frame_has_waited(
    stage: Stage,
) -> None:
    stage.kernel.rtt_s = 0.03
    rounds = FRAMES_BETWEEN_CHECKS * CHECKS_BETWEEN_MARKS
    stage.offer(rounds + 7)
    stage.outlet.open(is_full=False)
    stage.offer(rounds)
    # The first check is that of the opening.
    assert stage.marks == [(20, 12 * PTIME_S), (45, 0)]


def test_transport_that_is_full_while_the_kernel_is_ends_the_asking(stage: Stage) -> None:
    stage.outlet.open(is_full=False)
    stage.kernel.not_sent = FULL
    stage.offer(FRAMES_BETWEEN_CHECKS)
    stage.outlet.pause()
    assert (stage.flow, stage.clock.armed) == (Flow.TRANSPORT, 0)
    stage.outlet.resume()
    assert (stage.flow, stage.clock.armed) == (Flow.KERNEL, 1)


def test_room_in_the_transport_says_nothing_of_the_kernel(stage: Stage) -> None:
    stage.outlet.open(is_full=False)
    stage.kernel.not_sent = FULL
    stage.offer(FRAMES_BETWEEN_CHECKS)
    stage.kernel.not_sent = 0
    stage.outlet.resume()
    assert stage.flow is Flow.KERNEL


@pytest.mark.parametrize("full", ["kernel", "transport", "part"])
def test_shut_outlet_asks_and_sends_nothing_any_more(
    loop: FakeLoop, kernel: Kernel, full: str
) -> None:
    stage = Stage(loop, kernel, frame_ms=20 if full != "part" else 100)
    stage.outlet.open(is_full=False)
    if full == "kernel":
        kernel.not_sent = FULL
        stage.offer(FRAMES_BETWEEN_CHECKS)
    elif full == "transport":
        stage.outlet.pause()
    else:
        stage.offer(1)
    stage.outlet.shut()
    assert (stage.flow, loop.armed) == (Flow.SHUT, 0)
    before = len(stage.written)
    kernel.not_sent = 0
    stage.outlet.pause()
    stage.outlet.resume()
    stage.outlet.send_part()
    stage.outlet.finish()
    stage.outlet.send_event(Dtmf("1"))
    stage.outlet.send_closing("hangup")
    stage.offer(3)
    loop.advance(1)
    assert (stage.flow, len(stage.written)) == (Flow.SHUT, before)


def test_part_of_a_message_goes_when_the_message_would_be_full(
    loop: FakeLoop, kernel: Kernel
) -> None:
    stage = Stage(loop, kernel, frame_ms=100)
    stage.outlet.open(is_full=False)
    stage.offer(2)
    loop.advance(0.099)
    assert not stage.written
    loop.advance(0.001)
    assert (len(stage.written), stage.outlet.frames_sent, loop.armed) == (1, 2, 0)
    stage.offer(5)
    assert (len(stage.written), stage.flow, loop.armed) == (2, Flow.FORMED, 0)


def test_batch_that_is_a_message_goes_at_once(loop: FakeLoop, kernel: Kernel) -> None:
    stage = Stage(loop, kernel, frame_ms=100)
    stage.outlet.open(is_full=False)
    stage.outlet.send_batch(numbered(5))
    assert (len(stage.written), stage.offered, loop.armed) == (1, 5, 0)
    assert stage.carried == [numbered(5)]


@pytest.mark.parametrize(
    ("frame_ms", "frames"), [(20, 5), (40, 6), (60, 6), (100, 10), (120, 12), (200, 10), (1000, 50)]
)
def test_kernel_that_has_sent_all_is_asked_after_two_messages_but_few_frames(
    loop: FakeLoop, kernel: Kernel, frame_ms: int, frames: int
) -> None:
    stage = Stage(loop, kernel, frame_ms)
    stage.outlet.open(is_full=False)
    for _ in range(3):
        asked = kernel.checks
        stage.offer(frames - 1)
        assert kernel.checks == asked
        stage.offer(1)
        assert kernel.checks == asked + 1


@pytest.mark.parametrize("frame_ms", [20, 100])
def test_kernel_that_has_not_sent_all_is_asked_at_every_fifth_frame(
    loop: FakeLoop, kernel: Kernel, frame_ms: int
) -> None:
    stage = Stage(loop, kernel, frame_ms)
    kernel.not_sent = 1
    stage.outlet.open(is_full=False)
    for _ in range(3):
        asked = kernel.checks
        stage.offer(4)
        assert kernel.checks == asked
        stage.offer(1)
        assert kernel.checks == asked + 1


@pytest.mark.parametrize("sizes", [(3, 5, 2), (5, 7, 3), (1, 1, 1, 1, 1, 5), (12, 3)])
def test_batches_of_any_length_make_the_messages_that_their_frames_would_make(
    loop: FakeLoop, kernel: Kernel, sizes: tuple[int, ...]
) -> None:
    stage = Stage(loop, kernel, frame_ms=100)
    stage.outlet.open(is_full=False)
    frames = numbered(sum(sizes))
    for size in sizes:
        at = stage.offered
        stage.outlet.send_batch(frames[at : at + size])
    assert stage.carried == [frames[at : at + 5] for at in range(0, len(frames), 5)]
    assert stage.offered == len(frames)


@pytest.mark.parametrize("full", ["shut", "kernel", "transport"])
def test_batch_that_cannot_go_waits_in_the_backlog(
    loop: FakeLoop, kernel: Kernel, full: str
) -> None:
    stage = Stage(loop, kernel, frame_ms=100)
    if full != "shut":
        stage.outlet.open(is_full=full == "transport")
    if full == "kernel":
        kernel.not_sent = FULL
        for _ in range(2):
            stage.outlet.send_batch(numbered(5))
    before = len(stage.written)
    stage.outlet.send_batch(numbered(5))
    assert (len(stage.written), len(stage.outlet.backlog)) == (before, 5)


def test_event_keeps_its_place_among_batches(loop: FakeLoop, kernel: Kernel) -> None:
    stage = Stage(loop, kernel, frame_ms=100)
    stage.outlet.open(is_full=False)
    stage.outlet.pause()
    stage.outlet.send_batch(numbered(5))
    stage.outlet.send_event(Dtmf("1"))
    stage.outlet.send_batch(numbered(5, 5))
    stage.outlet.resume()
    stage.outlet.send_batch(numbered(5, 10))
    assert stage.carried == [numbered(5), (), (Dtmf("1"),), numbered(5, 5), numbered(5, 10)]


def test_dropped_before_is_what_was_dropped_when_frames_began_to_wait(stage: Stage) -> None:
    outlet = stage.outlet
    stage.offer(60)
    assert (outlet.backlog.dropped, outlet.dropped_before) == (10, 0)
    outlet.open(is_full=False)
    outlet.pause()
    assert outlet.dropped_before == 10
    stage.offer(51)
    outlet.shut()
    assert (outlet.backlog.dropped, outlet.dropped_before) == (11, 10)


@pytest.mark.parametrize(
    ("acknowledged", "events_given_back"), [(1, 1), (2, 1), (3, 0)], ids=["none", "one", "both"]
)
def test_event_is_given_back_until_its_last_message_is_acknowledged(
    stage: Stage, acknowledged: int, events_given_back: int
) -> None:
    stage.outlet.open(is_full=False)
    stage.offer(1)
    stage.outlet.send_event(Dtmf("1"))
    stage.offer(1)
    assert len(stage.written) == 4
    stage.kernel.acked = sum(map(len, stage.written[:acknowledged]))
    stage.outlet.detach()
    assert list(stage.outlet._events) == [(1, Dtmf("1"))] * events_given_back
    assert (stage.outlet.frames_sent, len(stage.outlet.backlog)) == (1, 1)


def test_idle_is_told_when_nothing_waits_any_more(stage: Stage) -> None:
    told: list[int] = []
    stage.outlet.on_idle = lambda: told.append(len(stage.written))
    stage.offer(3)
    stage.pause_at = 2
    stage.outlet.open(is_full=False)
    assert told == []
    stage.outlet.resume()
    assert told == [3]
