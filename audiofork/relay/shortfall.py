"""Counts the frames that Asterisk should have brought by the clock, and has not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from audiofork.audiosocket import PTIME_S

WATCH_S = 1.0
# Frames that may be late without being missing: a leg takes a moment to begin.
PATIENCE_FRAMES = 10
# Where the process itself was held up, frames may wait unread: that look is left out.
LATE_S = 0.1


class Shortfall:
    """Compares the frames of legs that bring 50 a second with the clock, while they are there.

    It looks each second, not at the end: of that one hears late, and nobody has brought anything
    since. Costs nothing a frame.

    Args:
        count_frames: Returns how many frames the legs have brought.
        clock: Returns seconds.
        batch_frames: Frames that may wait to be read at once.

    Attributes:
        frames: How many frames are missing, as of the last look.
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
        self._count_before = 0  # frames until the beginning; `_count_seen` at the last look
        self._count_seen = 0
        self._missing_before = 0

    def start(self) -> None:
        """Begin to compare; no effect while it runs."""
        if self._timer is None:
            self._began = self._looked_at = self._clock()
            self._count_before = self._count_seen = self._count_frames()
            self._missing_before = self.frames
            self._wait()

    def stop(self) -> None:
        """Stop comparing: the legs are gone, or what they bring is not wanted any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_S, self._look)

    def _look(self) -> None:
        now, count = self._clock(), self._count_frames()
        # Legs that bring nothing at all may be over, and the news of it under way.
        if now - self._looked_at < WATCH_S + LATE_S and count > self._count_seen:
            due = int((now - self._began) / PTIME_S)
            missing = due - (count - self._count_before) - self._patience
            self.frames = self._missing_before + max(0, missing)
        self._looked_at, self._count_seen = now, count
        self._wait()
