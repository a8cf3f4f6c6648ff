"""What happened to forks, by the minute."""

from __future__ import annotations

import dataclasses

import pytest

from audiofork.asterisk.channels import Target
from audiofork.forks.events import Ended, ForkInfo, Refused, Requested, Resumed, Started
from audiofork.forks.lifecycle import Away
from audiofork.forks.options import Options
from audiofork.forks.requests import StartFork, StopFork
from audiofork.forks.series import Minute, Series
from audiofork.link.messages import EndReason, ForkStats
from tests.told_clock import Clock

FORK = ForkInfo("a", "PJSIP/100-0000002a", "1.1", "ws://h/")
START = StartFork(Target("PJSIP/100-0000002a"), "ws://h/", Options())
MINUTE = 1_700_000_040  # a whole one


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now_s = MINUTE + 5.5
    return clock


@pytest.fixture
def series(clock: Clock) -> Series:
    return Series(clock)


def ended(reason: EndReason, dropped: int = 0) -> Ended:
    return Ended(FORK, reason, ForkStats(frames_dropped=dropped), False)


def test_without_events_all_minutes_are_there_and_empty(series: Series) -> None:
    minutes = series.minutes(1)
    assert len(minutes) == 60
    assert minutes[-1] == Minute(MINUTE)
    assert minutes[0] == Minute(MINUTE - 59 * 60)


@pytest.mark.parametrize(("asked", "given"), [(-1, 60), (0, 60), (6, 360), (24, 1440), (99, 1440)])
def test_hours_are_what_is_kept_at_most(series: Series, asked: int, given: int) -> None:
    assert len(series.minutes(asked)) == given


def test_events_are_counted_in_their_minute(series: Series, clock: Clock) -> None:
    series.on_event(Started(FORK))
    clock.now_s += 60
    series.on_event(ended(EndReason.HANGUP))
    series.on_event(ended(EndReason.SINK_GONE))
    series.on_event(Resumed(FORK, Away.SERVER))
    series.on_event(Resumed(FORK, Away.OUT, gap_ms=4))
    series.on_event(Refused(START, "no"))
    series.on_event(Refused(StopFork(Target("x"), ""), "no such fork"))
    before, now = series.minutes(1)[-2:]
    assert before == Minute(MINUTE, started=1)
    assert now == Minute(MINUTE + 60, ended=2, failed=1, refused=1, reconnects=1)


def test_dropped_frames_count_once_when_they_are_known(series: Series, clock: Clock) -> None:
    series.on_event(Requested(FORK, START))
    series.on_event(Resumed(FORK, Away.SERVER, 30))
    clock.now_s += 60
    series.on_event(ended(EndReason.HANGUP, dropped=35))
    assert [one.frames_dropped for one in series.minutes(1)[-2:]] == [30, 5]


def test_totals_that_a_lost_relay_took_along_are_not_subtracted(series: Series) -> None:
    series.on_event(Requested(FORK, START))
    series.on_event(Resumed(FORK, Away.SERVER, 30))
    series.on_event(ended(EndReason.LEG_FAILED, dropped=0))
    assert series.minutes(1)[-1].frames_dropped == 30


def test_nothing_is_left_of_forks_that_have_ended(series: Series) -> None:
    for number in range(10):
        fork = dataclasses.replace(FORK, id=str(number))
        series.on_event(Requested(fork, START))
        series.on_event(Ended(fork, EndReason.HANGUP, ForkStats(), False))
    assert series._dropped == {}


def test_minutes_older_than_a_day_are_gone(series: Series, clock: Clock) -> None:
    for _ in range(3000):
        series.on_event(Started(FORK))
        clock.now_s += 60
    assert len(series._minutes) == 1440
    assert sum(one.started for one in series.minutes(24)) == 1439  # nothing yet in the current one


def test_clock_that_is_set_back_disturbs_nothing(series: Series, clock: Clock) -> None:
    series.on_event(Started(FORK))
    clock.now_s -= 3600
    series.on_event(Started(FORK))
    clock.now_s += 3600
    assert series.minutes(1)[-1].started == 2
