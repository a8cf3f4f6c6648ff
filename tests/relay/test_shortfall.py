"""The count of frames that Asterisk should have brought by the clock."""

from __future__ import annotations

import pytest

from audiofork.audiosocket import PTIME_S
from audiofork.relay.shortfall import PATIENCE_FRAMES, Shortfall


class Legs:
    """What legs have brought, and the time."""

    def __init__(self) -> None:
        self.frames = 1000
        self.now_s = 500.0
        self.shortfall = Shortfall(lambda: self.frames, lambda: self.now_s)

    def run(self, ticks: int, frames: int) -> None:
        """Let so many ticks of 20 ms pass, with so many frames."""
        self.now_s += ticks * PTIME_S
        self.frames += frames


@pytest.fixture
def legs() -> Legs:
    legs = Legs()
    legs.shortfall.start()
    return legs


def test_nothing_is_missing_while_the_frames_keep_up_with_the_clock(legs: Legs) -> None:
    for _ in range(60):
        legs.run(50, 50)
        assert legs.shortfall.frames == 0
    legs.run(PATIENCE_FRAMES, 0)
    assert legs.shortfall.frames == 0


def test_frames_that_did_not_come_in_time_are_missing(legs: Legs) -> None:
    legs.run(5000, 4900)
    assert legs.shortfall.frames == 100 - PATIENCE_FRAMES


def test_frames_that_come_late_are_not_missing_any_more(legs: Legs) -> None:
    legs.run(100, 0)
    assert legs.shortfall.frames == 100 - PATIENCE_FRAMES
    legs.run(0, 100)
    assert legs.shortfall.frames == 0


def test_time_without_legs_does_not_count_and_what_was_missing_before_stays(legs: Legs) -> None:
    legs.run(100, 50)
    legs.shortfall.stop()
    legs.run(1000, 3)
    assert legs.shortfall.frames == 50 - PATIENCE_FRAMES
    legs.shortfall.start()
    legs.run(100, 70)
    assert legs.shortfall.frames == 50 + 30 - 2 * PATIENCE_FRAMES


def test_start_while_it_runs_and_stop_while_it_does_not_change_nothing(legs: Legs) -> None:
    legs.run(100, 50)
    legs.shortfall.start()
    legs.run(100, 50)
    assert legs.shortfall.frames == 100 - PATIENCE_FRAMES
    legs.shortfall.stop()
    legs.shortfall.stop()
    assert legs.shortfall.frames == 100 - PATIENCE_FRAMES


def test_too_many_frames_make_up_for_nothing_that_was_missing_before(legs: Legs) -> None:
    legs.run(100, 50)
    legs.shortfall.stop()
    legs.shortfall.start()
    legs.run(100, 500)
    assert legs.shortfall.frames == 50 - PATIENCE_FRAMES
