"""Counts the frames that Asterisk should have sent according to the clock, and did not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from audiofork.audiosocket import PTIME_S

WATCH_S = 1.0
# Frames that may be late without counting as missing: a leg needs some time to begin.
PATIENCE_FRAMES = 10
# If a check is later than this, the process itself was delayed, and frames may wait unread: such a
# check is skipped.
LATE_S = 0.1


class Shortfall:
    """Compares the number of frames with the clock, for legs that send 50 frames a second.

    It checks every second while legs are connected, and has no cost per frame. A check at the end
    would be wrong: the end is reported late, and the time without frames before it would count.

    Args:
        count_frames: Returns how many frames the legs have brought.
        clock: Returns the time in seconds.
        batch_frames: Frames that may wait for a batched read.

    Attributes:
        frames: How many frames are missing, as of the last check.
    """

    def __init__(
        self, count_frames: Callable[[], int], clock: Callable[[], float], batch_frames: int
    ) -> None:
        self.frames = 0
        self._count_frames = count_frames
        self._clock = clock
        self._patience = PATIENCE_FRAMES + batch_frames
        self._timer: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._looked_at = 0.0
        self._count_before = 0  # frames at the start; `_count_seen`: at the last check
        self._count_seen = 0
        self._missing_before = 0

    def start(self) -> None:
        """Start to compare; no effect if it runs already."""
        if self._timer is None:
            self._began = self._looked_at = self._clock()
            self._count_before = self._count_seen = self._count_frames()
            self._missing_before = self.frames
            self._wait()

    def stop(self) -> None:
        """Stop comparing: the legs are gone, or their frames are not used any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_S, self._look)

    def _look(self) -> None:
        now, count = self._clock(), self._count_frames()
        # If no frame came at all, the legs may have ended, and the report of that is not here yet.
        if now - self._looked_at < WATCH_S + LATE_S and count > self._count_seen:
            due = int((now - self._began) / PTIME_S)
            missing = due - (count - self._count_before) - self._patience
            self.frames = self._missing_before + max(0, missing)
        self._looked_at, self._count_seen = now, count
        self._wait()
