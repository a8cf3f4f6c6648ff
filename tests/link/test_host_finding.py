"""A controller that comes to lead and hears of no relay host: all may be cut off, and go on."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest

from audiofork.cluster.beats import SUBJECT, Beat
from audiofork.cluster.roster import MOST_KNOWN, Roster
from audiofork.config import Config
from audiofork.link.host_runs import MOST_OPENINGS, OPENINGS_IN_S
from audiofork.link.hosts import NO_HOST, NO_HOST_TIMEOUT_S, SLOW_TIMES, RelayHosts
from audiofork.link.messages import (
    Adopt,
    CountBefore,
    Direction,
    EndFork,
    EndReason,
    ForkEnded,
    ForkSpec,
    ForkStats,
    HeldFork,
    LegPart,
    RelayAway,
    RelayBack,
    RelayLost,
    RelaysFound,
    Report,
    SetMute,
    Streaming,
)
from audiofork.link.stream import Held as SessionHeld
from tests.link.hosted import CONTROLLER, Held
from tests.link.test_host_moves import FORK, SPEC, Clock, Host

OTHER = FORK.replace("4", "5")
DEAD_S = 0.7


def held(fork_id: str) -> HeldFork:
    return HeldFork(fork_id, "way", (LegPart.IN,), 8000, {})


class Stage:
    """A controller that has just come to lead, and two relay hosts; stands in for the broker."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reports: list[Report] = []
        self.roster = Roster(None, DEAD_S, asyncio.get_running_loop().time)  # type: ignore[arg-type]
        config = replace(Config(), cluster=CONTROLLER)
        self.relay = RelayHosts(config, self, Held(), self.roster, self.reports.append)  # type: ignore[arg-type]
        self.roster.listen(self.relay._on_beat)
        hear: Callable[[str, bytes], None] = self.relay._on_payload
        self.r1, self.r2 = Host("r1", hear), Host("r2", hear)
        self.r1.holds, self.r2.holds = (held(FORK),), (held(OTHER),)

    def publish(self, subject: str, payload: bytes) -> None:
        """Stands in for that of `Broker`."""
        {"r1": self.r1, "r2": self.r2}[subject.split(".")[-2]].take(payload)

    def beat(self, host: Host) -> None:
        self.beat_of(host.beat)

    def beat_of(self, beat: Beat) -> None:
        self.roster.on_beat(f"{SUBJECT}.{beat.name}", beat.encode())

    async def find(self, *silent: Host) -> None:
        """Look for the relay hosts; these were there a moment ago."""
        for host in silent:
            self.roster.on_registered(host.beat)
        await self.clock.advance(2 * DEAD_S)
        await self.relay.find()

    async def pass_time(self, seconds: float = 0.0) -> None:
        await self.clock.advance(seconds)
        self.relay._look_on()
        await self.clock.advance(0)

    def known(self) -> list[str] | None:
        """The forks that are held; None: that is not known, and was not reported."""
        assert self.reports.count(RelaysFound()) == (self.relay.held is not None)
        return sorted(self.relay.held) if self.relay.held is not None else None

    def known_owner(self, fork_id: str) -> str:
        """The host that a fork is at that nobody has adopted yet."""
        assert self.relay.held is not None
        assert fork_id in self.relay.held
        return self.relay.host_of(fork_id)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(Clock(asyncio.get_running_loop(), monkeypatch))


async def test_fork_is_taken_up_where_it_runs_when_its_host_comes(stage: Stage) -> None:
    await stage.find(stage.r1)
    await stage.pass_time(10)
    assert stage.known() is None
    stage.beat(stage.r1)
    await stage.pass_time()
    assert stage.known() == [FORK]
    stage.relay.send(Adopt(FORK))
    assert stage.r1.got == [Adopt(FORK)]
    assert stage.relay.host_of(FORK) == "r1"


async def test_each_host_that_was_there_is_waited_for(stage: Stage) -> None:
    await stage.find(stage.r1, stage.r2)
    stage.beat(stage.r2)
    await stage.pass_time(0.5)
    assert stage.known() is None
    for host in (stage.r1, stage.r2):
        stage.beat(host)
    await stage.pass_time()
    assert stage.known() == sorted([FORK, OTHER])
    assert not any(isinstance(one, EndFork) for one in stage.r1.got + stage.r2.got)


async def test_host_that_does_not_come_is_not_waited_for_longer(stage: Stage) -> None:
    await stage.find(stage.r1, stage.r2)
    await stage.pass_time(NO_HOST_TIMEOUT_S - 0.5)
    stage.beat(stage.r2)
    await stage.pass_time(0.25)
    assert stage.known() is None
    await stage.pass_time(0.25)
    assert stage.known() == [OTHER]


async def test_where_no_host_comes_no_fork_is_held(stage: Stage) -> None:
    await stage.find()
    await stage.pass_time(NO_HOST_TIMEOUT_S - 0.1)
    assert stage.known() is None
    await stage.pass_time(0.1)
    assert stage.known() == []


async def test_host_of_an_earlier_version_that_nobody_knew_is_waited_for(stage: Stage) -> None:
    """It has not registered, and this controller was not there to hear it."""
    await stage.find()
    await stage.pass_time(10)
    stage.beat(stage.r1)
    await stage.pass_time()
    assert stage.known() == [FORK]


async def test_start_is_refused_at_once_as_long_as_no_host_is_there(stage: Stage) -> None:
    await stage.find(stage.r1)
    spec = ForkSpec(OTHER, "PJSIP/1", "ws://h/", Direction.IN)
    stage.relay.send(spec)
    await stage.pass_time()
    (end,) = stage.reports
    assert isinstance(end, ForkEnded)
    assert (end.reason, end.detail) == (EndReason.LEG_FAILED, NO_HOST)


async def test_start_is_granted_as_soon_as_one_host_is_there(stage: Stage) -> None:
    await stage.find(stage.r1, stage.r2)
    stage.r2.holds = ()
    stage.beat(stage.r2)
    stage.relay.send(SPEC)
    await stage.pass_time()
    assert stage.reports == []
    assert [type(one) for one in stage.r2.got] == [ForkSpec]


async def test_where_a_host_is_heard_of_the_others_are_not_waited_for(stage: Stage) -> None:
    """They are dead, and their forks live on elsewhere at once."""
    stage.roster.on_registered(stage.r2.beat)
    await stage.clock.advance(2 * DEAD_S)
    stage.beat(stage.r1)
    await stage.relay.find()
    assert stage.relay.held is not None
    assert list(stage.relay.held) == [FORK]


async def test_nothing_is_found_any_more_by_a_controller_that_is_suspended(stage: Stage) -> None:
    await stage.find(stage.r1)
    stage.relay.forget()
    stage.beat(stage.r1)
    await stage.pass_time(2 * NO_HOST_TIMEOUT_S)
    assert stage.reports == []
    assert stage.relay.held is None


async def test_host_that_lives_and_answers_late_keeps_its_forks(stage: Stage) -> None:
    stage.beat(stage.r2)
    answer, stage.r1.say = stage.r1.say, lambda *_: None  # type: ignore[method-assign]
    stage.beat(stage.r1)
    await beating(stage, stage.relay.find())
    await stage.pass_time()
    assert stage.known() is None
    answer(SessionHeld(stage.r1.holds))
    await stage.pass_time()
    assert stage.known() == sorted([FORK, OTHER])
    assert not any(isinstance(one, EndFork) for one in stage.r1.got + stage.r2.got)


async def test_host_that_lives_and_does_not_answer_is_not_waited_for_long(stage: Stage) -> None:
    stage.r1.say = lambda *_: None  # type: ignore[method-assign]
    await beating(stage, stage.relay.find())
    await stage.pass_time(SLOW_TIMES * DEAD_S - 0.1)
    assert stage.known() is None
    await stage.pass_time(0.2)
    assert stage.known() == [OTHER]


async def beating(stage: Stage, finding: Coroutine[None, None, None]) -> None:
    """Let both hosts beat while they are looked for."""
    task = asyncio.create_task(finding)
    while not task.done():
        for host in (stage.r1, stage.r2):
            stage.beat(host)
        await stage.clock.advance(DEAD_S / 4)
    await task


# --- Hosts that lie ------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
async def test_turn_that_nobody_can_have_given_is_none(
    stage: Stage, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    stage.r2.holds = (replace(held(FORK), turn=2**62),)
    hosts = (stage.r1, stage.r2)
    for host in (hosts[first], hosts[1 - first]):
        stage.beat(host)
    await beating(stage, stage.relay.find())
    assert stage.known_owner(FORK) == "r1"
    assert not any(isinstance(one, EndFork) for one in stage.r1.got)
    assert [one.fork_id for one in stage.r2.got if isinstance(one, EndFork)] == [FORK]
    stage.relay._workers["r2"].open()
    assert caplog.text.count("no controller can have given") == 1


async def test_last_beats_of_many_names_leave_nothing(stage: Stage) -> None:
    for number in range(MOST_KNOWN + 10):
        stage.beat_of(replace(stage.r1.beat, name=f"x{number}", is_last=True))
    assert not stage.relay._workers
    assert not stage.relay._seen._at


@pytest.mark.slow
async def test_so_many_hosts_are_known_and_those_that_ended_make_room(stage: Stage) -> None:
    stage.publish = lambda *_: None  # type: ignore[method-assign]
    for number in range(MOST_KNOWN + 10):
        beat = replace(stage.r1.beat, name=f"x{number}")
        stage.beat_of(beat)
        stage.beat_of(replace(beat, is_last=True))
    assert len(stage.relay._workers) <= MOST_KNOWN


async def test_wrong_numbers_open_few_sessions_and_write_few_lines(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await beating(stage, stage.relay.find())
    opened = stage.r2.opened
    for _ in range(100):
        stage.r2.say_wrong()
        await stage.clock.advance(0.01)
    assert stage.r2.opened - opened < MOST_OPENINGS
    assert caplog.text.count("is lost; asking it") < MOST_OPENINGS
    await stage.clock.advance(OPENINGS_IN_S)
    stage.beat(stage.r2)
    await stage.clock.advance(0)
    assert stage.relay._workers["r2"].is_open


async def test_second_host_with_a_name_gets_nothing_and_the_forks_of_the_first_go_on(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await beating(stage, stage.relay.find())
    stage.relay.send(Adopt(FORK))
    opened = stage.r1.opened
    clone = replace(stage.r1.beat, run_id="clone", listen="192.0.2.7:9092")
    for _ in range(20):
        stage.beat_of(clone)
        stage.beat(stage.r1)
        await stage.clock.advance(0.01)
    assert stage.r1.opened == opened
    assert stage.relay.host_of(FORK) == "r1"
    assert str(stage.relay.address_of(FORK)) == stage.r1.beat.listen
    assert caplog.text.count("two relay hosts have the name r1") == 1


# --- What is ordered while a host does not hear it -----------------------------------------------


async def beating_alone(stage: Stage, finding: Coroutine[None, None, None]) -> None:
    """Let the first host beat while hosts are looked for; there is no other."""
    task = asyncio.create_task(finding)
    while not task.done():
        stage.beat(stage.r1)
        await stage.clock.advance(DEAD_S / 4)
    await task


async def test_order_for_an_adopted_fork_is_given_in_the_next_session(stage: Stage) -> None:
    await beating(stage, stage.relay.find())
    stage.relay.send(Adopt(FORK))
    worker = stage.relay._workers["r1"]
    stage.r1.say(Streaming(FORK))
    worker.end()
    mute = SetMute(FORK, mute_in=True, mute_out=None)
    stage.relay.send(mute)
    assert mute not in stage.r1.got
    worker.open()
    assert stage.r1.got[-2:] == [Adopt(FORK), mute]
    stage.r1.say(Streaming(FORK))
    await stage.clock.advance(0)
    assert stage.reports.count(Streaming(FORK)) == 1


async def test_order_for_a_fork_that_waits_for_its_host_is_given_when_that_is_back(
    stage: Stage,
) -> None:
    await beating_alone(stage, stage.relay.find())
    stage.relay.send(Adopt(FORK))
    stage.r1.say(Streaming(FORK))
    stage.relay._lose(stage.relay._workers["r1"], "no sign of life")
    await stage.clock.advance(0)
    assert stage.reports[-1:] == [RelayAway((FORK,))]
    mute = SetMute(FORK, mute_in=True, mute_out=None)
    stage.relay.send(mute)
    stage.beat(stage.r1)
    await stage.clock.advance(0)
    assert stage.reports[-1:] == [RelayBack((FORK,))]
    assert stage.r1.got[-2:] == [Adopt(FORK), mute]
    stage.r1.say(Streaming(FORK))
    await stage.clock.advance(0)
    assert stage.reports.count(Streaming(FORK)) == 1


async def test_what_was_told_of_forks_that_went_elsewhere_is_forgotten(stage: Stage) -> None:
    await beating(stage, stage.relay.find())
    stage.relay.send(Adopt(FORK))
    worker = stage.relay._workers["r1"]
    stage.relay._lose(worker, "no sign of life")
    await stage.clock.advance(0)
    stage.relay.send(replace(SPEC, fork_id=FORK))
    stage.beat(stage.r1)
    await stage.clock.advance(0)
    assert stage.relay.host_of(FORK) == "r2"
    assert not worker.told


async def test_fork_whose_host_dies_goes_to_one_that_is_drained_where_there_is_no_other(
    stage: Stage,
) -> None:
    stage.r1.beat = replace(stage.r1.beat, is_draining=True)
    await beating(stage, stage.relay.find())
    stage.relay.send(Adopt(OTHER))
    new = str(uuid.uuid4())
    stage.relay.send(replace(SPEC, fork_id=new))
    assert stage.relay.host_of(new) == "r2"
    stage.relay._lose(stage.relay._workers["r2"], "no sign of life")
    await stage.clock.advance(0)
    lost = [one for one in stage.reports if isinstance(one, RelayLost)]
    assert [set(one.fork_ids) for one in lost] == [{OTHER, new}]
    stage.relay.send(replace(SPEC, fork_id=OTHER))
    assert stage.relay.host_of(OTHER) == "r1"
    stage.relay.send(replace(SPEC, fork_id=str(uuid.uuid4())))  # which has not run yet
    await stage.clock.advance(0)
    (end,) = [one for one in stage.reports if isinstance(one, ForkEnded)]
    assert (end.reason, end.detail) == (EndReason.LEG_FAILED, NO_HOST)


async def test_what_a_host_that_ends_has_counted_goes_to_the_next_one(stage: Stage) -> None:
    await beating(stage, stage.relay.find())
    stage.relay.send(Adopt(FORK))
    counted = ForkStats(frames_in=7, frames_sent=5, frames_dropped=2)
    stage.r1.say(ForkEnded(FORK, EndReason.MOVED, "", counted))
    await stage.clock.advance(0)
    (lost,) = [one for one in stage.reports if isinstance(one, RelayLost)]
    assert lost.fork_ids == (FORK,)
    assert not any(isinstance(one, ForkEnded) for one in stage.reports)
    stage.beat_of(replace(stage.r1.beat, is_last=True))
    stage.relay.send(replace(SPEC, fork_id=FORK))
    assert stage.relay.host_of(FORK) == "r2"
    assert stage.r2.got[-1] == CountBefore(FORK, counted)


@pytest.mark.parametrize(
    ("order", "muted"),
    [
        (SetMute(FORK, mute_in=True), (True, False)),
        (EndFork(FORK, EndReason.STOPPED), (False, False)),
    ],
)
async def test_order_that_a_host_may_have_missed_counts_when_it_is_found_again(
    stage: Stage, order: SetMute | EndFork, muted: tuple[bool, bool]
) -> None:
    stage.beat(stage.r1)
    await stage.find()
    stage.relay.send(Adopt(FORK))
    stage.relay.send(order)
    stage.relay.forget()
    stage.r1.got.clear()
    stage.beat(stage.r1)
    await stage.find()
    assert stage.relay.held is not None
    found = stage.relay.held[FORK]
    assert (found.mute_in, found.mute_out) == muted
    stage.relay.send(Adopt(FORK))
    assert stage.r1.got == [Adopt(FORK), order]
    stage.relay.send(Adopt(FORK))  # it is not ordered again
    assert stage.r1.got[2:] == [Adopt(FORK)]
