"""A fork that moves between relay hosts has one of them at any moment, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from audiofork.cluster.beats import Beat
from audiofork.config import Config
from audiofork.link.host_moves import BOTH_S, FRAME_WAIT_S, MOVE_TIMEOUT_S, SPARE_FRAMES
from audiofork.link.hosts import RelayHosts
from audiofork.link.messages import (
    Adopt,
    Command,
    CountBefore,
    Direction,
    EndFork,
    EndReason,
    ExpectLeg,
    ForkEnded,
    ForkSpec,
    ForkStats,
    FrameCame,
    HandedOver,
    HandOver,
    HeldFork,
    LegAttached,
    LegLost,
    LegPart,
    Listen,
    Moved,
    MoveFork,
    MoveReady,
    NoteFrames,
    NotMoved,
    RelayDraining,
    RelayLost,
    Report,
    SetMute,
    SinkMessage,
    SinkOpened,
    SinkRetrying,
    Streaming,
    TakenOver,
    TakeOver,
    TellFrame,
)
from audiofork.link.sessions import (
    Down,
    Hello,
    Numbers,
    Stamp,
    Up,
    decode_down,
    pack,
    split,
    up_subject,
)
from audiofork.link.stream import Held, Ping, Pong
from tests.link.hosted import CONTROLLER
from tests.link.hosted import Held as Lease

FORK = "4b2d1a3e-0b7a-4a5e-9c6e-0d2f7a1b3c4d"
IN = LegPart.IN
SPEC = ForkSpec(FORK, "PJSIP/1", "ws://h/", Direction.IN, legs=(IN,))
OLD_LEG = ExpectLeg(FORK, IN, "uuid-1", "leg-1")
NEW_LEG = ExpectLeg(FORK, IN, "uuid-2", "leg-2")
TAIL = (1, 2, 3)
MOVE = MoveFork(SPEC, (NEW_LEG,))
MOVED = ForkEnded(FORK, EndReason.MOVED, "", ForkStats(frames_in=5))


class Clock:
    """The clock of the loop, whose timers the test runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patch: pytest.MonkeyPatch) -> None:
        self._now = loop.time()
        patch.setattr(loop, "time", lambda: self._now)

    async def advance(self, seconds: float) -> None:
        self._now += seconds
        for _ in range(5):
            await asyncio.sleep(0)


class Host:
    """A relay host that says what the test wants, over a broker that loses nothing."""

    def __init__(self, name: str, hear: Callable[[str, bytes], None]) -> None:
        self.beat = Beat(name, "run-1", "192.0.2.1:9092", capacity=10)
        self.got: list[Command] = []
        self.holds: tuple[HeldFork, ...] = ()
        self._hear = hear
        self.opened = 0  # sessions
        self.is_mute = False
        self._numbers = Numbers()

    def take(self, payload: bytes) -> None:
        stamp, line = split(payload)
        message: Down = decode_down(line)
        if isinstance(message, Hello):
            self.opened += 1
            self._numbers.begin(stamp.session)
            self.say(Held(self.holds))
        elif isinstance(message, Ping):
            if self.is_mute:
                return
            asyncio.get_running_loop().call_soon(self.say, Pong())
        else:
            self.got.append(message)  # type: ignore[arg-type]

    def say(self, *messages: Up) -> None:
        for message in messages:
            payload = pack(self._numbers.stamp(1), message)
            self._hear(up_subject(CONTROLLER.asterisk, self.beat.name), payload)

    def say_wrong(self) -> None:
        """Say something with a number that cannot be the next one."""
        payload = pack(Stamp(1, self._numbers.session, 1_000_000), Pong())
        self._hear(up_subject(CONTROLLER.asterisk, self.beat.name), payload)

    def last(self, count: int) -> list[Command]:
        return self.got[-count:]


class Stage:
    """A controller with two relay hosts, the first of which is drained; stands in for the broker.

    Attributes:
        reports: What the registry of forks has heard since the fork flowed.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reports: list[Report] = []
        config = replace(Config(), cluster=CONTROLLER)
        self.relay = RelayHosts(config, self, Lease(), None, self.reports.append)  # type: ignore[arg-type]
        self.old, self.new = (Host(name, self.relay._on_payload) for name in ("r1", "r2"))
        self.hosts = {"r1": self.old, "r2": self.new}

    def publish(self, subject: str, payload: bytes) -> None:
        """Stands in for that of `Broker`."""
        self.hosts[subject.split(".")[-2]].take(payload)

    def beat(self, host: Host, **more: object) -> None:
        host.beat = replace(host.beat, **more)  # type: ignore[arg-type]
        self.relay._on_beat(host.beat)

    async def reported(self) -> list[Report]:
        await self.clock.advance(0)
        return self.reports

    async def flow(self) -> None:
        """Let the fork flow at the old host, which is to be drained."""
        self.beat(self.old)
        self.relay._look_until = None
        self.relay.send(SPEC)
        self.relay.send(OLD_LEG)
        self.old.say(SinkOpened(FORK), LegAttached(FORK, IN), Streaming(FORK))
        self.beat(self.new)
        self.beat(self.old, is_draining=True)
        await self.clock.advance(0)
        self.reports.clear()

    async def beside(self) -> None:
        """Let the fork begin to move."""
        await self.flow()
        self.relay.send(MOVE)

    async def handing(self) -> None:
        """Let the old host be told to stop."""
        await self.beside()
        self.new.say(SinkOpened(FORK), LegAttached(FORK, IN))
        await self.clock.advance(BOTH_S)
        assert self.old.last(1) == [HandOver(FORK)]
        self.reports.clear()

    def lose(self, host: Host) -> None:
        """Let a host be taken for dead."""
        self.relay._lose(self.relay._workers[host.beat.name], "no sign of life")

    async def begin_anew(self, host: Host, *forks: HeldFork) -> None:
        """Let the session with a host be over, and another begin in which it tells what it has."""
        host.holds = forks
        worker = self.relay._workers[host.beat.name]
        worker.end()
        worker.open()
        await self.clock.advance(0)

    @property
    def owner(self) -> str:
        return self.relay.host_of(FORK)


def held(*, is_spare: bool = False) -> HeldFork:
    return HeldFork(FORK, "way", (IN,), 8000, {"in": "leg-2"}, is_spare=is_spare)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(Clock(asyncio.get_running_loop(), monkeypatch))


# --- As it should go ---


async def test_fork_has_the_other_host_from_the_moment_on_that_the_first_is_told_to_stop(
    stage: Stage,
) -> None:
    await stage.beside()
    assert [type(one) for one in stage.new.got] == [ForkSpec, ExpectLeg]
    assert stage.old.last(1) == [NoteFrames(FORK)]
    stage.new.say(SinkOpened(FORK), LegAttached(FORK, IN))
    await stage.clock.advance(BOTH_S / 2)
    assert (stage.owner, stage.reports) == ("r1", [])
    await stage.clock.advance(BOTH_S / 2)
    assert (stage.owner, stage.reports) == ("r2", [Moved(FORK, "r2")])
    stage.old.say(HandedOver(FORK, TAIL))
    assert stage.new.last(1) == [TakeOver(FORK, TAIL, latest=SPARE_FRAMES)]
    stage.new.say(TakenOver(FORK, is_exact=True), Streaming(FORK))  # which is no news
    stage.old.say(MOVED)
    assert (await stage.reported())[1:] == [TakenOver(FORK, is_exact=True)]
    assert stage.new.last(1) == [CountBefore(FORK, MOVED.stats)]
    await stage.begin_anew(stage.new, held())
    assert stage.new.last(1) != [CountBefore(FORK, MOVED.stats)]  # or it would count twice


async def test_count_of_the_first_host_waits_for_a_session_with_the_other(stage: Stage) -> None:
    await stage.handing()
    stage.old.say(HandedOver(FORK, TAIL))
    worker = stage.relay._workers["r2"]
    worker.end()
    stage.old.say(MOVED)
    assert CountBefore(FORK, MOVED.stats) not in stage.new.got
    for _ in range(2):  # once is enough
        await stage.begin_anew(stage.new, held())
    assert stage.new.got.count(CountBefore(FORK, MOVED.stats)) == 1


async def test_fork_without_another_host_keeps_its_legs(stage: Stage) -> None:
    await stage.flow()
    stage.beat(stage.new, is_draining=True)
    position = len(stage.old.got)
    stage.relay.send(MOVE)
    assert [type(one) for one in await stage.reported()] == [NotMoved]
    assert stage.old.got[position:] == []


async def test_fork_whose_host_is_lost_by_now_is_told_not_to_move(stage: Stage) -> None:
    await stage.flow()
    stage.beat(stage.old, is_last=True)
    stage.relay.send(MOVE)
    assert NotMoved(FORK, "its relay host is lost") in await stage.reported()


async def test_who_listens_to_a_fork_hears_it_where_it_goes(stage: Stage) -> None:
    await stage.flow()
    stage.relay.send(Listen(FORK, is_on=True))
    stage.relay.send(MOVE)
    stage.new.say(SinkOpened(FORK), LegAttached(FORK, IN))
    await stage.clock.advance(BOTH_S)
    assert stage.new.last(1) == [Listen(FORK, is_on=True)]


async def test_what_the_server_says_last_on_the_first_connection_is_reported(stage: Stage) -> None:
    await stage.handing()
    stage.old.say(HandedOver(FORK, TAIL), SinkMessage(FORK, "the last words"), MOVED)
    assert await stage.reported() == [SinkMessage(FORK, "the last words")]


async def test_leg_that_the_other_host_loses_later_is_reported(stage: Stage) -> None:
    await stage.handing()
    stage.old.say(HandedOver(FORK, TAIL))
    stage.new.say(TakenOver(FORK, is_exact=True), LegLost(FORK, IN, 5))
    assert (await stage.reported())[-1] == LegLost(FORK, IN, 5)


# --- While both have it, and the first is the owner ---


@pytest.mark.parametrize(
    "report",
    [
        SinkRetrying(FORK, 1, "refused", 1.0),
        LegLost(FORK, IN, 5),
        ForkEnded(FORK, EndReason.SINK_REFUSED, "no", ForkStats()),
    ],
)
async def test_fork_stays_where_it_is_if_the_other_host_cannot_have_it(
    stage: Stage, report: Up
) -> None:
    await stage.beside()
    stage.new.say(report)
    assert stage.new.last(1) == [EndFork(FORK, EndReason.MOVED)]
    assert stage.owner == "r1"
    assert [type(one) for one in await stage.reported()] == [NotMoved]


@pytest.mark.parametrize("report", [SinkRetrying(FORK, 1, "lost", 1.0), LegLost(FORK, IN, 5)])
async def test_fork_that_does_not_flow_any_more_stays_and_what_happens_is_reported(
    stage: Stage, report: Up
) -> None:
    await stage.beside()
    stage.new.say(LegAttached(FORK, IN), SinkOpened(FORK))
    stage.old.say(report)
    await stage.clock.advance(BOTH_S)
    assert stage.owner == "r1"
    assert [type(one) for one in stage.reports] == [NotMoved, type(report)]


async def test_leg_that_is_made_anew_is_that_of_the_first_host(stage: Stage) -> None:
    await stage.beside()
    again = ExpectLeg(FORK, IN, "uuid-3", "leg-3")
    stage.relay.send(again)
    assert stage.old.last(1) == [again]
    assert stage.new.last(1) == [EndFork(FORK, EndReason.MOVED)]


async def test_fork_that_ends_while_both_have_it_ends_at_both(stage: Stage) -> None:
    await stage.beside()
    stage.relay.send(EndFork(FORK, EndReason.STOPPED))
    assert stage.old.last(1) == [EndFork(FORK, EndReason.STOPPED)]
    assert stage.new.last(1) == [EndFork(FORK, EndReason.MOVED)]


@pytest.mark.parametrize("is_dead", [True, False])
async def test_fork_stays_at_the_first_host_while_the_other_does_not_answer(
    stage: Stage, is_dead: bool
) -> None:
    await stage.beside()
    stage.new.say(SinkOpened(FORK), LegAttached(FORK, IN))
    stage.new.is_mute = True
    await stage.clock.advance(BOTH_S)
    assert HandOver(FORK) not in stage.old.got
    if is_dead:
        stage.lose(stage.new)
    else:
        await stage.clock.advance(MOVE_TIMEOUT_S)
    assert stage.owner == "r1"
    assert NotMoved in map(type, await stage.reported())
    assert HandOver(FORK) not in stage.old.got


async def test_mute_counts_at_both(stage: Stage) -> None:
    await stage.beside()
    mute = SetMute(FORK, mute_in=True)
    stage.relay.send(mute)
    assert (stage.old.last(1), stage.new.last(1)) == ([mute], [mute])


async def test_death_of_the_other_host_leaves_the_fork_where_it_is(stage: Stage) -> None:
    await stage.beside()
    stage.beat(stage.new, is_last=True)
    assert stage.owner == "r1"
    assert [type(one) for one in await stage.reported()] == [NotMoved]


@pytest.mark.parametrize("has_leg", [True, False])
async def test_other_host_goes_on_at_once_when_the_first_dies_before_it_was_told_to_stop(
    stage: Stage, has_leg: bool
) -> None:
    await stage.beside()
    if has_leg:
        stage.new.say(LegAttached(FORK, IN))
    await stage.clock.advance(0.29)
    stage.lose(stage.old)  # which was heard last before that
    assert (stage.owner, stage.new.last(1)) == ("r2", [TakeOver(FORK, latest=15 + SPARE_FRAMES)])
    expected: list[Report] = [Moved(FORK, "r2")]
    if not has_leg:  # it is made anew as any that was lost
        expected.append(LegLost(FORK, IN, 1))
    assert await stage.reported() == expected
    stage.new.say(LegAttached(FORK, IN))
    assert ((await stage.reported())[-1] == LegAttached(FORK, IN)) is not has_leg


@pytest.mark.parametrize("which", ["r1", "r2"])
async def test_new_session_with_a_host_gives_the_move_up(stage: Stage, which: str) -> None:
    await stage.beside()
    await stage.begin_anew(stage.hosts[which], held(is_spare=which == "r2"))
    assert stage.owner == "r1"
    assert NotMoved in map(type, await stage.reported())
    assert EndFork(FORK, EndReason.MOVED) in stage.new.got
    assert EndFork(FORK, EndReason.MOVED) not in stage.old.got


async def test_fork_that_the_other_host_does_not_get_in_time_stays(stage: Stage) -> None:
    await stage.beside()
    await stage.clock.advance(MOVE_TIMEOUT_S)
    assert (stage.owner, [type(one) for one in stage.reports]) == ("r1", [NotMoved])


# --- When the first was told to stop, and the other is the owner ---


async def test_retrying_of_the_other_host_is_that_of_the_fork(stage: Stage) -> None:
    await stage.handing()
    retrying = SinkRetrying(FORK, 1, "lost", 1.0)
    stage.new.say(retrying)
    assert await stage.reported() == [retrying]
    stage.old.say(HandedOver(FORK, TAIL))
    assert (stage.owner, stage.new.last(1)) == ("r2", [TakeOver(FORK, TAIL, latest=SPARE_FRAMES)])


async def test_end_at_the_other_host_is_that_of_the_fork(stage: Stage) -> None:
    await stage.handing()
    stage.new.say(ForkEnded(FORK, EndReason.SINK_GONE, "refused", ForkStats()))
    stage.old.say(HandedOver(FORK, TAIL), MOVED)
    (end,) = await stage.reported()
    assert isinstance(end, ForkEnded)
    assert (end.reason, stage.owner) == (EndReason.SINK_GONE, "")


async def test_death_of_the_other_host_is_the_loss_of_the_fork(stage: Stage) -> None:
    await stage.handing()
    stage.beat(stage.new, is_last=True)
    stage.old.say(HandedOver(FORK, TAIL))
    (lost,) = await stage.reported()
    assert isinstance(lost, RelayLost)
    assert (lost.fork_ids, stage.owner) == ((FORK,), "")


async def test_other_host_that_has_lost_the_fork_when_it_is_heard_again_has_lost_it_for_good(
    stage: Stage,
) -> None:
    await stage.handing()
    await stage.begin_anew(stage.new)
    assert [type(one) for one in await stage.reported()] == [RelayLost]
    assert stage.relay._moves.new_host(FORK) is None


async def test_other_host_that_is_heard_again_takes_over_after_the_tail(stage: Stage) -> None:
    await stage.handing()
    await stage.begin_anew(stage.new, held(is_spare=True))
    assert Adopt(FORK) in stage.new.got
    stage.old.say(HandedOver(FORK, TAIL))
    assert (stage.owner, stage.new.last(1)) == ("r2", [TakeOver(FORK, TAIL, latest=SPARE_FRAMES)])
    await stage.begin_anew(stage.new, held(is_spare=True))  # it may have missed that
    assert stage.new.last(1) == [TakeOver(FORK, TAIL, latest=SPARE_FRAMES)]
    assert await stage.reported() == []


async def test_death_of_the_first_host_lets_the_other_take_over_without_a_tail(
    stage: Stage,
) -> None:
    await stage.handing()
    stage.beat(stage.old)
    await stage.clock.advance(0.29)
    stage.lose(stage.old)  # heard last when it was told to stop
    assert (stage.owner, stage.new.last(1)) == ("r2", [TakeOver(FORK, latest=15 + SPARE_FRAMES)])
    assert await stage.reported() == []


async def test_new_session_with_the_first_host_lets_the_other_take_over_without_a_tail(
    stage: Stage,
) -> None:
    await stage.handing()
    await stage.begin_anew(stage.old, held())  # it was never told to stop
    assert (stage.owner, stage.new.last(1)) == ("r2", [TakeOver(FORK, latest=SPARE_FRAMES)])
    assert stage.old.last(1) == [EndFork(FORK, EndReason.MOVED)]


async def test_first_host_that_has_ended_by_itself_lets_the_other_take_over(stage: Stage) -> None:
    await stage.handing()
    stage.old.say(ForkEnded(FORK, EndReason.SINK_REFUSED, "closed", ForkStats()))
    assert (stage.owner, stage.new.last(1)) == ("r2", [TakeOver(FORK, latest=SPARE_FRAMES)])
    assert await stage.reported() == []


async def test_other_host_goes_on_at_once_when_the_first_ends_without_waiting(stage: Stage) -> None:
    await stage.beside()
    stage.new.say(SinkOpened(FORK), LegAttached(FORK, IN))
    stage.old.say(MOVED)
    assert stage.owner == "r2"
    assert stage.new.last(2) == [
        TakeOver(FORK, latest=SPARE_FRAMES),
        CountBefore(FORK, MOVED.stats),
    ]
    assert await stage.reported() == [Moved(FORK, "r2")]


async def test_first_host_that_does_not_answer_lets_the_other_take_over(stage: Stage) -> None:
    await stage.handing()
    await stage.clock.advance(MOVE_TIMEOUT_S)
    assert (stage.owner, stage.new.last(1)) == ("r2", [TakeOver(FORK, latest=400 + SPARE_FRAMES)])


async def test_fork_that_ends_before_the_tail_has_come_ends_at_the_other_host(
    stage: Stage,
) -> None:
    await stage.handing()
    stage.relay.send(EndFork(FORK, EndReason.STOPPED))
    assert stage.new.last(2) == [
        TakeOver(FORK, latest=SPARE_FRAMES),
        EndFork(FORK, EndReason.STOPPED),
    ]
    assert stage.old.last(1) == [HandOver(FORK)]
    stage.new.say(ForkEnded(FORK, EndReason.STOPPED, "", ForkStats()))
    assert [type(one) for one in await stage.reported()] == [ForkEnded]


async def test_leg_that_is_made_anew_then_is_that_of_the_other_host(stage: Stage) -> None:
    await stage.handing()
    again = ExpectLeg(FORK, IN, "uuid-3", "leg-3")
    stage.relay.send(again)
    assert (stage.old.last(1), stage.new.last(1)) == ([HandOver(FORK)], [again])


async def test_fork_that_its_owner_gives_away_to_nobody_is_lost_and_not_forgotten(
    stage: Stage,
) -> None:
    await stage.flow()
    stage.old.say(MOVED)
    assert [type(one) for one in await stage.reported()] == [RelayLost]


@pytest.mark.parametrize(("phase", "last"), [("beside", EndFork), ("handing", TakeOver)])
async def test_controller_that_leaves_lets_each_fork_have_one_host(
    stage: Stage, phase: str, last: type[Command]
) -> None:
    await getattr(stage, phase)()
    await stage.relay.close()
    assert isinstance(stage.new.last(1)[0], last)


# --- Calls whose other party is the server, which have one leg at a time ---


class Bridged:
    """A stage on which such a call moves."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def beside(self) -> None:
        await self.stage.flow()
        self.stage.relay.send(replace(MOVE, by_bridge=True))

    async def ready(self) -> None:
        """Let the new host be ready, and the control plane hear of it."""
        await self.beside()
        self.stage.new.say(SinkOpened(FORK), LegAttached(FORK, IN))
        for _ in range(2):
            await self.stage.clock.advance(0)
        assert self.stage.old.last(1) == [TellFrame(FORK)]
        self.stage.old.say(FrameCame(FORK))
        assert await self.stage.reported() == [MoveReady(FORK)]
        self.stage.reports.clear()


@pytest.fixture
def call(stage: Stage) -> Bridged:
    return Bridged(stage)


WHOLE = TakeOver(FORK, TAIL, latest=SPARE_FRAMES, is_whole=True)


async def test_call_is_handed_over_when_its_first_leg_ends_since_it_was_bridged(
    stage: Stage, call: Bridged
) -> None:
    await call.ready()
    assert stage.owner == "r1"
    stage.old.say(LegLost(FORK, IN, 5))
    assert (stage.owner, stage.old.last(1)) == ("r2", [HandOver(FORK)])
    stage.old.say(HandedOver(FORK, TAIL))
    assert stage.new.last(1) == [WHOLE]
    assert await stage.reported() == [Moved(FORK, "r2")]  # and nothing of a lost leg


async def test_call_whose_party_says_nothing_is_ready_all_the_same(
    stage: Stage, call: Bridged
) -> None:
    await call.beside()
    stage.new.say(SinkOpened(FORK), LegAttached(FORK, IN))
    for _ in range(2):
        await stage.clock.advance(0)
    assert await stage.reported() == []
    await stage.clock.advance(FRAME_WAIT_S)
    stage.old.say(FrameCame(FORK))  # by now
    assert await stage.reported() == [MoveReady(FORK)]


async def test_call_whose_first_leg_ends_before_the_other_host_is_ready_has_lost_it(
    stage: Stage, call: Bridged
) -> None:
    await call.beside()
    stage.old.say(LegLost(FORK, IN, 5))
    assert stage.owner == "r1"
    assert [type(one) for one in await stage.reported()] == [NotMoved, LegLost]


async def test_call_that_is_not_bridged_in_time_stays(stage: Stage, call: Bridged) -> None:
    await call.ready()
    await stage.clock.advance(MOVE_TIMEOUT_S)
    assert (stage.owner, await stage.reported()) == (
        *("r1", [NotMoved(FORK, "the call was not bridged")]),
    )
    assert stage.new.last(1) == [EndFork(FORK, EndReason.MOVED)]


async def test_call_whose_new_leg_is_lost_stays(stage: Stage, call: Bridged) -> None:
    await call.ready()
    stage.new.say(LegLost(FORK, IN, 0))
    assert stage.owner == "r1"
    assert [type(one) for one in await stage.reported()] == [NotMoved]


@pytest.mark.parametrize("is_ready", [True, False])
async def test_call_whose_first_host_dies_has_the_other_if_that_is_ready(
    stage: Stage, call: Bridged, is_ready: bool
) -> None:
    await (call.ready() if is_ready else call.beside())
    stage.lose(stage.old)
    reports = [type(one) for one in await stage.reported()]
    assert reports == ([Moved] if is_ready else [NotMoved, RelayLost])
    taken = [one for one in stage.new.got if isinstance(one, TakeOver)]
    assert [one.is_whole for one in taken] == [True] * is_ready


@pytest.mark.parametrize("is_ready", [True, False])
async def test_call_whose_first_host_does_not_wait_has_the_other_if_that_is_ready(
    stage: Stage, call: Bridged, is_ready: bool
) -> None:
    await (call.ready() if is_ready else call.beside())
    stage.old.say(MOVED)
    reports = [type(one) for one in await stage.reported()]
    assert reports == ([Moved] if is_ready else [NotMoved, RelayLost])


async def test_host_says_whether_calls_are_to_move_as_well(stage: Stage) -> None:
    await stage.flow()
    stage.beat(stage.old, moves_calls=True)
    stage.relay._workers["r1"].drained_at = -1e9
    stage.beat(stage.old)
    assert RelayDraining((FORK,), "r1", moves_calls=True) in await stage.reported()
