"""Keeps the time of a stream whose leg brings nothing while the party sends nothing (option S)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from audiofork.relay.audiosocket import PTIME_S

# How late a frame may be before silence takes its place. ChanSpy hands frames out at an even
# pace; what is later than this, and than the next tick, has not been sent by the party.
PATIENCE_S = 0.04


class Timekeeper:
    """Has silence sent for the frames that do not come.

    Frames that come after all are sent too, so that nothing is lost; the stream is ahead of the
    clock then, and the next silence is put off until the clock has caught up.
    """

    def __init__(self, send_silence: Callable[[], None], clock: Callable[[], float]) -> None:
        self._send_silence = send_silence
        self._clock = clock
        self._due = 0.0  # when the next frame is due
        self._ticked = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to keep time; the first frame is due now. May be called again."""
        self._due = self._clock()
        if self._timer is None:
            self._tick()

    def stop(self) -> None:
        """Stop keeping time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_frame(self) -> None:
        """Note that a frame was sent."""
        self._due += PTIME_S

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PTIME_S, self._tick)
        # What was missing a tick ago, and has not come since: after a stall of the loop its timers
        # can run before the frames that came meanwhile are read.
        while self._ticked - self._due > PATIENCE_S:
            self._due += PTIME_S
            self._send_silence()
        self._ticked = self._clock()
