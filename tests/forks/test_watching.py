"""Doors look at levels and listen; the relay is asked only as long as somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from audiofork.errors import RequestRefused
from audiofork.forks.events import Ended, ForkInfo
from audiofork.forks.watching import GATHER_S, MOST_LISTENERS, TAKE_INTERVAL_S, Watching
from audiofork.link.messages import (
    Command,
    EndReason,
    ForkStats,
    HeardAudio,
    LegAttached,
    LegPart,
    Levels,
    LevelsTaken,
    Listen,
    TakeLevels,
)
from tests.control_plane import START, Clock, Rig

LOUD, SOFT = Levels(9000, 5000, -1, -1), Levels(10, 5, 7, 3, mixed=True)


def taken(**levels: Levels) -> LevelsTaken:
    return LevelsTaken.of(levels, [value for one in levels.values() for value in one])


def heard(fork_id: str, number: int = 0) -> HeardAudio:
    return HeardAudio(fork_id, number, 8000, (LegPart.IN,), bytes(1600))


def ended(fork_id: str) -> Ended:
    info = ForkInfo(fork_id, "PJSIP/100", "1.1", "ws://a/")
    return Ended(info, EndReason.HANGUP, ForkStats(), has_failed=False)


class Stage:
    """Watching between a registry with forks and a relay that is the test's own.

    Attributes:
        sent: What the relay was told.
        levels: What a viewer was told; `audio` and `ends`: what a listener was.
    """

    def __init__(self, rig: Rig) -> None:
        self.sent: list[Command] = []
        self.levels: list[Mapping[str, Levels]] = []
        self.audio: list[HeardAudio] = []
        self.ends: list[EndReason] = []
        self.watching = Watching(self.sent.append, rig.forks.find)

    def listen(self, fork_id: str, who: str = "ann") -> object:
        return self.watching.listen(fork_id, self.audio.append, who=who, on_end=self.ends.append)


@pytest.fixture
def stage(rig: Rig) -> Stage:
    return Stage(rig)


def fail(*_: object) -> None:
    raise RuntimeError("a bug")


# --- Levels ---


async def test_levels_are_taken_five_times_a_second_as_long_as_somebody_looks(
    stage: Stage, clock: Clock
) -> None:
    await clock.advance(1)
    assert stage.sent == []
    stops = [stage.watching.subscribe_levels(stage.levels.append) for _ in range(2)]
    assert stage.watching.viewers == 2
    assert stage.sent == [TakeLevels()]
    for _ in range(10):
        await clock.advance(TAKE_INTERVAL_S)
    assert stage.sent == [TakeLevels()] * 11
    stops[0]()
    stops[0]()
    await clock.advance(TAKE_INTERVAL_S)
    assert len(stage.sent) == 12
    stops[1]()
    await clock.advance(10)
    assert len(stage.sent) == 12
    assert stage.watching.viewers == 0


async def test_levels_of_all_relay_processes_are_told_together(stage: Stage, clock: Clock) -> None:
    stage.watching.subscribe_levels(stage.levels.append)
    stage.watching.on_report(taken(a=LOUD))
    stage.watching.on_report(taken(b=SOFT))
    assert stage.levels == []
    await clock.advance(GATHER_S)
    assert stage.levels == [{"a": LOUD, "b": SOFT}]
    stage.watching.on_report(taken(a=SOFT))
    await clock.advance(GATHER_S)
    assert stage.levels[1:] == [{"a": SOFT}]


async def test_late_answer_is_told_to_nobody(stage: Stage, clock: Clock) -> None:
    stop = stage.watching.subscribe_levels(stage.levels.append)
    stage.watching.on_report(taken(a=LOUD))
    stop()
    stage.watching.on_report(taken(a=LOUD))
    await clock.advance(1)
    assert stage.levels == []
    stage.watching.subscribe_levels(stage.levels.append)
    await clock.advance(GATHER_S)
    assert stage.levels == []


async def test_viewer_that_raises_is_logged_and_the_others_see(
    stage: Stage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    stage.watching.subscribe_levels(fail)
    stage.watching.subscribe_levels(stage.levels.append)
    stage.watching.on_report(taken(a=LOUD))
    await clock.advance(GATHER_S)
    assert stage.levels == [{"a": LOUD}]
    assert "a bug" in caplog.text
    caplog.clear()  # the rig wants none left


# --- Audio ---


async def test_listener_gets_the_audio_of_its_fork_and_then_the_end(stage: Stage, rig: Rig) -> None:
    fork_id, other = await rig.stream(), await rig.stream(actionid="8")
    stage.listen(fork_id)
    assert stage.sent == [Listen(fork_id, is_on=True)]
    for report in (heard(fork_id), heard(other), heard(fork_id, 5)):
        stage.watching.on_report(report)
    assert stage.audio == [heard(fork_id), heard(fork_id, 5)]
    stage.watching.on_event(ended(other))
    assert stage.ends == []
    stage.watching.on_event(ended(fork_id))
    stage.watching.on_event(ended(fork_id))
    assert stage.ends == [EndReason.HANGUP]
    assert stage.watching.listeners == 0
    assert stage.sent == [Listen(fork_id, is_on=True)]


async def test_relay_is_told_once_for_all_who_listen_to_a_fork(stage: Stage, rig: Rig) -> None:
    fork_id = await rig.stream()
    stops = [stage.watching.listen(fork_id, stage.audio.append, who=who) for who in ("ann", "bob")]
    stage.watching.on_report(heard(fork_id))
    assert len(stage.audio) == 2
    stops[0]()
    stops[0]()
    stage.watching.on_report(heard(fork_id))
    assert len(stage.audio) == 3
    assert stage.sent == [Listen(fork_id, is_on=True)]
    stops[1]()
    stage.watching.on_report(heard(fork_id))
    assert stage.sent == [Listen(fork_id, is_on=True), Listen(fork_id, is_on=False)]
    assert len(stage.audio) == 3


async def test_who_listens_is_logged_with_the_fork_and_harmless(
    stage: Stage, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fork_id = await rig.stream()
    stop = stage.watching.listen(fork_id, stage.audio.append, who="ann\nroot: all is well")
    stop()
    lines = [one for one in caplog.records if "listens" in one.getMessage()]
    assert [one.__dict__["fork"] for one in lines] == [fork_id] * 2
    assert lines[0].getMessage().startswith("ann")
    assert lines[1].getMessage().endswith("listens no more")
    assert not any("\n" in one.getMessage() for one in lines)


async def test_fork_that_there_is_not_is_refused(stage: Stage) -> None:
    with pytest.raises(RequestRefused, match="^No such fork$"):
        stage.listen("gone")
    assert stage.sent == []


async def test_fork_that_may_still_be_refused_is_not_listened_to(
    stage: Stage, rig: Rig, clock: Clock
) -> None:
    rig.ami.gates["Getvar"] = asyncio.Event()
    start = asyncio.create_task(rig.ask(**START))
    await clock.settle()
    (fork,) = await rig.forks.views()
    assert fork.state == "requested"
    with pytest.raises(RequestRefused, match="^The fork has not begun yet$"):
        stage.listen(fork.id)
    rig.ami.gates["Getvar"].set()
    assert await start == [fork.id]
    stage.listen(fork.id)
    assert stage.sent == [Listen(fork.id, is_on=True)]


async def test_listener_beyond_the_most_is_refused_until_another_stops(
    stage: Stage, rig: Rig
) -> None:
    forks = [await rig.stream(), await rig.stream(actionid="8")]
    stops = [
        stage.watching.listen(forks[n % 2], stage.audio.append, who="ann")
        for n in range(MOST_LISTENERS)
    ]
    with pytest.raises(RequestRefused, match="^Too many listeners: 20 listen already$"):
        stage.listen(forks[0])
    stops[0]()
    stage.listen(forks[0])
    stage.watching.on_event(ended(forks[1]))
    assert stage.watching.listeners == MOST_LISTENERS // 2


async def test_listener_that_raises_is_logged_and_the_others_hear(
    stage: Stage, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    fork_id = await rig.stream()
    stage.watching.listen(fork_id, fail, who="bob", on_end=fail)
    stage.listen(fork_id)
    stage.watching.on_report(heard(fork_id))
    stage.watching.on_event(ended(fork_id))
    assert (stage.audio, stage.ends) == ([heard(fork_id)], [EndReason.HANGUP])
    assert caplog.text.count("RuntimeError: a bug") == 2
    caplog.clear()  # the rig wants none left


async def test_listener_that_stops_while_others_are_told_disturbs_nobody(
    stage: Stage, rig: Rig
) -> None:
    fork_id = await rig.stream()
    first = stage.watching.listen(fork_id, lambda _: first(), who="bob")
    stage.listen(fork_id)
    stage.watching.on_report(heard(fork_id))
    stage.watching.on_report(heard(fork_id, 5))
    assert stage.audio == [heard(fork_id), heard(fork_id, 5)]


async def test_relay_process_that_takes_a_fork_over_is_told_that_somebody_listens(
    stage: Stage, rig: Rig
) -> None:
    fork_id, other = await rig.stream(), await rig.stream(actionid="8")
    stage.listen(fork_id)
    await rig.lose_relay(fork_id)
    stage.sent.clear()
    for one in (other, fork_id):
        stage.watching.on_report(LegAttached(one, LegPart.PAIRS))
    assert stage.sent == [Listen(fork_id, is_on=True)]


async def test_nothing_goes_on_after_the_close(stage: Stage, rig: Rig, clock: Clock) -> None:
    fork_id = await rig.stream()
    stage.watching.subscribe_levels(stage.levels.append)
    stage.listen(fork_id)
    stage.watching.close()
    assert stage.ends == [EndReason.SHUTDOWN]
    stage.sent.clear()
    stage.watching.on_report(heard(fork_id))
    stage.watching.on_report(taken(a=LOUD))
    await clock.advance(1)
    assert (stage.sent, stage.audio, stage.levels) == ([], [], [])
