"""The count of frames that Asterisk should have brought by the clock."""

from __future__ import annotations

import pytest

from audiofork.relay.shortfall import LATE_S, PATIENCE_FRAMES, Shortfall
from tests.relay.peers import FakeLoop


class Legs:
    """What legs have brought, by the clock of the test."""

    def __init__(self, clock: FakeLoop, batch_frames: int = 1) -> None:
        self.clock = clock
        self.frames = 1000
        self.shortfall = Shortfall(lambda: self.frames, clock.time, batch_frames)
        self.patience = PATIENCE_FRAMES + batch_frames

    def run(self, seconds: int, frames: int) -> None:
        """Let seconds pass, with so many frames in each."""
        for _ in range(seconds):
            self.frames += frames
            self.clock.advance(1.0)


@pytest.fixture
def legs(clock: FakeLoop) -> Legs:
    legs = Legs(clock)
    legs.shortfall.start()
    return legs


def test_nothing_is_missing_while_the_frames_keep_up_with_the_clock(legs: Legs) -> None:
    legs.run(60, 50)
    assert legs.shortfall.frames == 0


def test_frames_that_may_wait_to_be_read_are_not_missing(clock: FakeLoop) -> None:
    legs = Legs(clock, batch_frames=50)
    legs.shortfall.start()
    legs.frames -= 50
    legs.run(60, 50)
    assert legs.shortfall.frames == 0


def test_frames_that_did_not_come_in_time_are_missing(legs: Legs) -> None:
    legs.run(100, 49)
    assert legs.shortfall.frames == 100 - legs.patience


def test_frames_that_come_late_are_not_missing_any_more(legs: Legs) -> None:
    legs.run(2, 10)
    assert legs.shortfall.frames == 80 - legs.patience
    legs.run(1, 130)
    assert legs.shortfall.frames == 0


def test_legs_that_bring_nothing_any_more_may_be_over(legs: Legs) -> None:
    legs.run(10, 50)
    legs.run(5, 0)
    assert legs.shortfall.frames == 0
    legs.run(1, 50)  # they were not
    assert legs.shortfall.frames == 250 - legs.patience


def test_look_that_comes_late_itself_does_not_count(legs: Legs) -> None:
    legs.run(10, 50)
    legs.clock.late_s = 2 * LATE_S  # the process is held up, and has not read what came
    legs.run(1, 1)
    legs.clock.advance(2 * LATE_S)
    assert legs.shortfall.frames == 0


def test_time_without_legs_does_not_count_and_what_was_missing_before_stays(legs: Legs) -> None:
    legs.run(10, 40)
    missing = legs.shortfall.frames
    assert missing == 100 - legs.patience
    legs.shortfall.stop()
    legs.run(10, 3)
    assert legs.shortfall.frames == missing
    legs.shortfall.start()
    legs.run(10, 45)
    assert legs.shortfall.frames == missing + 50 - legs.patience


def test_start_while_it_runs_and_stop_while_it_does_not_change_nothing(legs: Legs) -> None:
    legs.run(10, 40)
    legs.shortfall.start()
    legs.run(10, 40)
    assert legs.shortfall.frames == 200 - legs.patience
    legs.shortfall.stop()
    legs.shortfall.stop()
    assert legs.shortfall.frames == 200 - legs.patience
