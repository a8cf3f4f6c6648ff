"""Measures how late the event loop is, once a second."""

from __future__ import annotations

import asyncio

from audiofork.doors.exposition import Histogram

INTERVAL_S = 1.0
BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class LoopLag:
    """A timer of the event loop; owned by what shows the result.

    Attributes:
        lags: How late the timer was called, each time.
    """

    def __init__(self) -> None:
        self.lags = Histogram(BOUNDS_S)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Measure until `close`."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + INTERVAL_S, self._on_due, loop.time() + INTERVAL_S)

    def _on_due(self, due: float) -> None:
        self.lags.add(max(0.0, asyncio.get_running_loop().time() - due))
        self.start()

    def close(self) -> None:
        """Stop to measure."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
