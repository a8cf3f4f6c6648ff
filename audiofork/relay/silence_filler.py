"""Sends silence while a leg brings no frames, as happens while the parties send nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from audiofork.audiosocket import PTIME_S

# How late a frame may be before silence replaces it. ChanSpy sends frames at a steady rate. A frame
# that is later than this, and than the next tick, was not sent by the party.
PATIENCE_S = 0.1
# Time between two checks while all frames come. Each fork has a timer, so it must not run often.
WATCH_S = 0.1


class SilenceFiller:
    """Sends silence for the frames that do not come.

    It compares the number of frames with the clock, so it has no cost per frame. A frame that comes
    after its silence is sent too, so that nothing is lost. Then the stream is ahead of the clock,
    and no silence is sent until the clock has caught up.

    A steady one fills in for a listener that answers, not for a recording: a silence every 20 ms
    from the moment that the pause is noticed, and never several at once. A server that sends back
    what it gets would send these back at once, too, and be heard late from then on.

    Args:
        send_silence: Sends one frame of silence, which `count_frames` must count.
        count_frames: Returns the number of frames so far.
        clock: Returns the time in seconds; never goes back.
        steady: Whether it is a steady one.
    """

    def __init__(
        self,
        send_silence: Callable[[], None],
        count_frames: Callable[[], int],
        clock: Callable[[], float],
        *,
        steady: bool = False,
    ) -> None:
        self._send_silence = send_silence
        self._count_frames = count_frames
        self._clock = clock
        self._is_steady = steady
        self._began = 0.0  # when the first frame was due
        self._count_before = 0  # frames before that time
        self._ticked = 0.0
        self._due = 0.0  # when the next tick was to be
        self._count = 0  # frames at the last tick
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to fill in; the first frame is due now. If it runs, it restarts from now."""
        self._began = self._ticked = self._due = self._clock()
        self._count_before = self._count = self._count_frames()
        if self._timer is None:
            self._tick()

    def stop(self) -> None:
        """Stop filling in."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        # Frames missing at the last tick that have not come since. Not those missing now: after a
        # stall of the loop, its timers may run before it reads the frames that have come.
        missing = self._missing(self._ticked)
        pauses = missing > 0 or self._count_frames() == self._count
        if self._is_steady and missing > 1:
            self._began += (missing - 1) * PTIME_S  # forgets them
            missing = 1
        for _ in range(missing):
            self._send_silence()
        self._ticked, self._count = self._clock(), self._count_frames()
        # After a pause, frames may stay late by the patience: only a real pause needs fast ticks.
        wait_s = PTIME_S if pauses and self._missing(self._ticked + PTIME_S) > 0 else WATCH_S
        late_s = self._ticked - self._due
        if late_s < wait_s:
            wait_s -= late_s  # so that it ticks as often as it should, though each tick is late
        self._due = self._ticked + wait_s
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _missing(self, at: float) -> int:
        """Return the number of frames overdue at a time in seconds; 0 or less if none was."""
        due = int((at - PATIENCE_S - self._began) / PTIME_S + 1)
        return due - (self._count_frames() - self._count_before)
