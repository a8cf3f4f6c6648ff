"""Which run of a relay host counts where several have its name, and how often sessions open."""

from __future__ import annotations

from dataclasses import replace

import pytest

from audiofork.cluster.beats import Beat
from audiofork.link.host_runs import MOST_OPENINGS, OPENINGS_IN_S, SETTLE_S, Openings, Runs

FIRST = Beat("r1", "run-1", "192.0.2.1:9092")
CLONE = replace(FIRST, run_id="run-2", listen="192.0.2.2:9092")
RESTARTED = replace(FIRST, run_id="run-3")
LATER = SETTLE_S + 1


@pytest.fixture
def runs() -> Runs:
    return Runs(FIRST, 0.0)


def counted(runs: Runs, *beats: Beat, now: float = LATER, is_alive: bool = True) -> list[bool]:
    return [runs.count(beat, now, is_alive=is_alive) for beat in beats]


def test_second_host_counts_for_nothing_while_the_first_lives_and_the_log_names_both_once(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    assert counted(runs, *[FIRST, CLONE] * 5) == [True, False] * 5
    (line,) = [one.message for one in caplog.records]
    assert "192.0.2.1:9092" in line
    assert "192.0.2.2:9092" in line


def test_second_host_counts_when_the_first_is_dead(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    counted(runs, CLONE)
    assert counted(runs, CLONE, is_alive=False) == [True]
    assert counted(runs, CLONE, FIRST) == [True, False]
    assert not caplog.records
    assert counted(runs, CLONE) == [True]
    assert len(caplog.records) == 1


def test_second_host_that_ends_is_no_rival(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    assert counted(runs, CLONE, replace(CLONE, is_last=True), FIRST) == [False, False, True]
    assert not caplog.records


def test_host_that_is_started_anew_where_it_was_counts_at_once(runs: Runs) -> None:
    assert counted(runs, RESTARTED, RESTARTED) == [True, True]


def test_run_that_was_followed_by_another_does_not_come_back(runs: Runs) -> None:
    counted(runs, RESTARTED)
    assert counted(runs, FIRST, RESTARTED, FIRST, now=10 * LATER) == [False, True, False]


def test_flood_of_runs_at_one_address_counts_once_in_a_while(runs: Runs) -> None:
    flood = [replace(FIRST, run_id=f"flood-{number}") for number in range(200)]
    assert sum(counted(runs, *flood[:100])) == 1
    assert sum(counted(runs, *flood[100:], now=2 * LATER)) == 1


def test_so_many_sessions_are_opened_at_once_and_then_in_a_while() -> None:
    openings = Openings()

    def open_all(now: float) -> int:
        count = 0
        for _ in range(100):
            if openings.is_allowed(now):
                openings.begin(now)
                count += 1
        return count

    assert open_all(0.0) == MOST_OPENINGS
    assert open_all(OPENINGS_IN_S - 0.1) == 0
    assert open_all(OPENINGS_IN_S) == MOST_OPENINGS
