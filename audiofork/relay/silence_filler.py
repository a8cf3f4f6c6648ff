"""Sends silence where a leg brings nothing, as it does while the parties send nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from audiofork.audiosocket import PTIME_S

# How late a frame may be before silence takes its place. ChanSpy hands frames out at an even
# pace; what is later than this, and than the next tick, has not been sent by the party.
PATIENCE_S = 0.1
# Time between two looks at the clock while all frames come: each fork has its timer, so this must
# be cheap.
WATCH_S = 0.1


class SilenceFiller:
    """Has silence sent for the frames that do not come.

    It compares a count of frames with the clock, so that a frame costs nothing here. Frames that
    come after all are sent too, so that nothing is lost; the stream is ahead of the clock then,
    and the next silence is put off until the clock has caught up.

    Args:
        send_silence: Sends one frame of silence, which counts as any other.
        count_frames: Returns the number of frames so far.
        clock: Returns seconds, never going back.
    """

    def __init__(
        self,
        send_silence: Callable[[], None],
        count_frames: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._send_silence = send_silence
        self._count_frames = count_frames
        self._clock = clock
        self._began = 0.0  # when the first frame was due
        self._count_before = 0  # frames until then
        self._ticked = 0.0
        self._count = 0  # frames at the last tick
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to fill in; the first frame is due now. May be called again."""
        self._began = self._ticked = self._clock()
        self._count_before = self._count = self._count_frames()
        if self._timer is None:
            self._tick()

    def stop(self) -> None:
        """Fill in no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        # What was missing at the last tick, and has not come since: after a stall of the loop its
        # timers can run before the frames that came meanwhile are read.
        missing = self._missing(self._ticked)
        pauses = missing > 0 or self._count_frames() == self._count
        for _ in range(missing):
            self._send_silence()
        self._ticked, self._count = self._clock(), self._count_frames()
        # Frames that come again after a pause stay as late as silence was sent: that is no reason
        # to look more often.
        wait_s = PTIME_S if pauses and self._missing(self._ticked + PTIME_S) > 0 else WATCH_S
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _missing(self, at: float) -> int:
        """Return the number of frames overdue at a time; 0 or less if none was."""
        due = int((at - PATIENCE_S - self._began) / PTIME_S + 1)
        return due - (self._count_frames() - self._count_before)
