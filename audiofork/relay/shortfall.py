"""Counts the frames that Asterisk should have brought by the clock, and has not."""

from __future__ import annotations

from collections.abc import Callable

from audiofork.audiosocket import PTIME_S

# Frames that may be late without being missing: a leg takes a moment to begin, and its end is
# heard of late.
PATIENCE_FRAMES = 10


class Shortfall:
    """Compares the frames of legs that bring 50 a second with the clock, while they are there.

    Costs nothing a frame: it reads the count when it is asked, and when the legs come or go.

    Args:
        count_frames: Returns how many frames the legs have brought.
        clock: Returns seconds.
    """

    def __init__(self, count_frames: Callable[[], int], clock: Callable[[], float]) -> None:
        self._count_frames = count_frames
        self._clock = clock
        self._began: float | None = None
        self._count_before = 0
        self._missing_before = 0

    def start(self) -> None:
        """Begin to compare; no effect while it runs."""
        if self._began is None:
            self._began = self._clock()
            self._count_before = self._count_frames()

    def stop(self) -> None:
        """Stop comparing: the legs are gone, or what they bring is not wanted any more."""
        self._missing_before = self.frames
        self._began = None

    @property
    def frames(self) -> int:
        """How many frames are missing so far."""
        if self._began is None:
            return self._missing_before
        due = int((self._clock() - self._began) / PTIME_S)
        came = self._count_frames() - self._count_before
        return self._missing_before + max(0, due - came - PATIENCE_FRAMES)
