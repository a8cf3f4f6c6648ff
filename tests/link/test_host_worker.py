"""When a controller opens a session with a relay host, and when it pings it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from audiofork.cluster.beats import Beat
from audiofork.link.fork_spec import Direction, ForkSpec, LegPart, Voice
from audiofork.link.host_worker import MAX_UNANSWERED, HostWorker
from audiofork.link.pings import PING_INTERVAL_S
from audiofork.link.sessions import Down, Drain, Hello, decode_down, split
from audiofork.link.stream import Ping
from tests.told_clock import Clock

BEAT = Beat("r1", "run", "192.0.2.1:9092", capacity=10)
BEAT_S = 0.175


class Stage:
    """A controller's view of a relay host, and what it sends to it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[Down] = []
        self.worker = HostWorker(BEAT, self._publish, lambda: 1)

    def _publish(self, payload: bytes) -> None:
        self.sent.append(decode_down(split(payload)[1]))

    def beats(self, count: int, *, answers: bool = True, every_s: float = BEAT_S) -> list[Down]:
        """Let so many beats come; return what was sent to the host, which may answer it."""
        begun = len(self.sent)
        for _ in range(count):
            self.clock.now_s += every_s
            position = len(self.sent)
            self.worker.on_beat(BEAT)
            for message in self.sent[position:] if answers else ():
                self.worker.on_answer()
                if isinstance(message, Hello):
                    self.worker.on_opened()
                else:
                    self.worker.on_pong()
        return self.sent[begun:]


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return Stage(clock)


async def test_session_is_opened_at_the_first_beat(stage: Stage) -> None:
    assert [type(one) for one in stage.beats(1)] == [Hello]
    assert stage.worker.is_open


async def test_host_that_beats_several_times_a_second_is_pinged_each_second(stage: Stage) -> None:
    stage.beats(1)
    sent = stage.beats(100)
    assert set(sent) == {Ping()}
    assert len(sent) == pytest.approx(100 * BEAT_S / PING_INTERVAL_S, rel=0.2)


async def test_host_that_beats_seldom_is_pinged_at_each_beat(stage: Stage) -> None:
    stage.beats(1)
    assert stage.beats(5, every_s=3 * PING_INTERVAL_S) == [Ping()] * 5


async def test_host_that_does_not_answer_a_ping_is_asked_anew(stage: Stage) -> None:
    stage.beats(1)
    ping, *others = stage.beats(1 + MAX_UNANSWERED, answers=False, every_s=PING_INTERVAL_S)
    assert ping == Ping()
    assert others == []
    session = stage.worker.numbers.session
    assert [type(one) for one in stage.beats(1)] == [Hello]
    assert stage.worker.numbers.session != session


async def test_host_that_does_not_answer_an_opening_is_asked_anew(stage: Stage) -> None:
    assert len(stage.beats(1 + MAX_UNANSWERED, answers=False)) == 1
    assert not stage.worker.is_open
    assert [type(one) for one in stage.beats(1)] == [Hello]
    assert stage.worker.is_open


async def test_legs_wait_for_an_answer_however_recent_the_last_ping_is(stage: Stage) -> None:
    stage.beats(1)
    stage.beats(1, every_s=PING_INTERVAL_S)
    sent = len(stage.sent)
    reaching = asyncio.create_task(stage.worker.is_reached())
    await asyncio.sleep(0)
    assert stage.sent[sent:] == [Ping()]
    assert not reaching.done()
    stage.worker.on_pong()
    assert await reaching


# --- Which host is chosen ------------------------------------------------------------------------


ONE_LEG = ForkSpec("", "", "", Direction.BOTH)
TWO_LEGS = replace(ONE_LEG, direction=Direction.STEREO, legs=(LegPart.IN, LegPart.OUT))
SPEAKING = replace(ONE_LEG, voice=Voice((LegPart.MIX,)))


async def load_of(
    stage: Stage, given: int, spec: ForkSpec = ONE_LEG, *, beat: dict[str, float]
) -> float:
    stage.beats(1)
    stage.worker.on_beat(replace(BEAT, capacity=500, **beat))  # type: ignore[arg-type]
    for _ in range(given):
        stage.worker.on_given(spec)
    return round(stage.worker.load, 3)


@pytest.mark.parametrize(
    ("beat", "given", "load"),
    [
        ({"forks": 50}, 0, 0.1),  # of an earlier version: it does not tell its frames
        ({"forks": 50}, 25, 0.15),
        ({"forks": 50, "frames_a_second": 2500}, 0, 0.1),
        ({"forks": 50, "frames_a_second": 5000}, 0, 0.2),  # of two legs each
        ({"forks": 50, "frames_a_second": 5000}, 25, 0.25),
        ({"forks": 50, "cpu": 0.4}, 0, 0.1),  # not so busy that it would tell more
        ({"forks": 50, "cpu": 0.6}, 0, 0.6),  # its forks cost a lot
        ({"forks": 50, "cpu": 0.6}, 25, 0.9),
        ({"forks": 1, "cpu": 0.6}, 40, 0.7),  # by the way: it is not this fork
        ({"forks": 400, "cpu": 0.6}, 0, 0.8),
    ],
)
async def test_load_is_that_of_the_capacity_or_of_a_busy_core(
    stage: Stage, beat: dict[str, float], given: int, load: float
) -> None:
    assert await load_of(stage, given, beat=beat) == load


@pytest.mark.parametrize(
    ("spec", "load"),
    [(ONE_LEG, 0.1), (TWO_LEGS, 0.2), (SPEAKING, 0.2)],
    ids=["one-leg", "two-legs", "speaking"],
)
async def test_fork_counts_by_its_frames_before_a_beat_tells_of_it(
    stage: Stage, spec: ForkSpec, load: float
) -> None:
    assert await load_of(stage, 50, spec, beat={}) == load


@pytest.mark.parametrize(
    ("forks", "given", "is_draining", "has_room"),
    [(9, 0, False, True), (9, 1, False, False), (10, 0, False, False), (0, 0, True, False)],
)
async def test_host_has_room_until_it_is_full_or_drained(
    stage: Stage, forks: int, given: int, is_draining: bool, has_room: bool
) -> None:
    assert not stage.worker.has_room  # nothing was heard of it in a session
    stage.beats(1)
    stage.worker.on_beat(replace(BEAT, forks=forks, is_draining=is_draining))
    for _ in range(given):
        stage.worker.on_given(ONE_LEG)
    assert stage.worker.has_room is has_room


async def test_host_that_is_told_to_drain_has_no_room_before_its_next_beat(stage: Stage) -> None:
    stage.beats(1)
    stage.worker.tell(Drain(is_on=True))
    assert not stage.worker.has_room
    stage.worker.tell(Drain(is_on=False))
    assert stage.worker.has_room
