"""Starts forks again whose relay is lost, no faster than Asterisk bears it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from audiofork.forks.fork import Fork

log = logging.getLogger(__name__)

INTERVAL_S = 0.1
TELL_INTERVAL_S = 1.0


class Moving:
    """The forks that wait for a relay; owned by `Recovery`.

    A relay with a thousand forks may die, and a request for each of their legs at once would starve
    the calls. So there is a rate, which is also the largest burst. Those go first whose server
    speaks to a party, who hears the gap; then the oldest.

    Args:
        rate: Returns how many forks a second may be started.
        start: Starts one again, or ends it; gets the loop time at which it was lost.
    """

    def __init__(self, rate: Callable[[], int], start: Callable[[Fork, float], None]) -> None:
        self._rate = rate
        self._start = start
        self._waiting: dict[Fork, float] = {}  # when each was lost
        self._used = 0.0  # of the burst, at `_counted_at`; it falls with time
        self._counted_at = 0.0
        self._moved = 0
        self._began_at = self._told_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, forks: list[Fork], lost_at: float) -> None:
        """Let forks wait for their turn, which for the first ones is at once.

        Args:
            forks: The forks.
            lost_at: When they were lost, in loop time.
        """
        now = asyncio.get_running_loop().time()
        if not self._waiting:
            self._began_at = self._told_at = now
            self._moved = 0
        both = {**self._waiting, **dict.fromkeys(forks, lost_at)}
        self._waiting = dict(sorted(both.items(), key=lambda pair: _place(pair[0])))
        self._go_on()

    def _go_on(self) -> None:
        """Start as many as the rate allows; set a timer for the next."""
        self._cancel()
        now, rate = asyncio.get_running_loop().time(), self._rate()
        self._used = max(0.0, self._used - (now - self._counted_at) * rate)
        self._counted_at = now
        for fork in [one for one in self._waiting if one.is_ending]:
            self._take(fork)  # nobody else reports its end
        while self._waiting and self._used + 1 <= rate:
            self._used += 1
            self._moved += 1
            self._take(next(iter(self._waiting)))
        self._tell(now)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._go_on)

    def _take(self, fork: Fork) -> None:
        lost_at = self._waiting.pop(fork)
        self._start(fork, lost_at)

    def _tell(self, now: float) -> None:
        """Log how far it is, where that takes a while."""
        if self._waiting and now - self._told_at >= TELL_INTERVAL_S:
            self._told_at = now
            log.warning("%d forks have another relay, %d wait", self._moved, len(self._waiting))
        elif not self._waiting and now - self._began_at >= TELL_INTERVAL_S:
            log.warning(
                "all %d forks have another relay, after %.1f s", self._moved, now - self._began_at
            )

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Start none any more."""
        self._cancel()
        self._waiting.clear()


def _place(fork: Fork) -> tuple[bool, float]:
    """Return what sorts those that go first to the front."""
    return not fork.speaks, fork.chronicle.begun
