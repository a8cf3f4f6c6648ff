"""Queues requests that arrive faster than they may be handled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from audiofork.forks.fairness import FairQueue
from audiofork.forks.requests import Origin

_Item = TypeVar("_Item")

# A request takes about 0.1 ms: a flood uses at most half a core, and delays audio by at most 5 ms.
AT_ONCE = 50
PAUSE_S = 0.01
# How many requests may wait: of one origin, more than it can have forks to stop; of one door, the
# requests of about half a second.
OF_ORIGIN = 200
OF_DOOR = 3000


class Inbox(Generic[_Item]):
    """Passes items to a handler, in turn for each origin; pauses after each AT_ONCE items.

    Args:
        handle: Called with an item and its origin; must not raise.
    """

    def __init__(self, handle: Callable[[_Item, Origin], None]) -> None:
        self._handle = handle
        self._waiting: FairQueue[tuple[_Item, Origin]] = FairQueue()
        self._timer: asyncio.Handle | None = None

    def put(self, item: _Item, origin: Origin) -> bool:
        """Queue an item, to be handled after this returns; return whether there was room for it."""
        own, of_door = self._waiting.waiting(origin)
        if own >= OF_ORIGIN or of_door >= OF_DOOR:
            return False
        self._waiting.put(origin, (item, origin))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self._hand_on)
        return True

    def _hand_on(self) -> None:
        self._timer = None
        for _ in range(AT_ONCE):
            if not self._waiting:
                return
            self._handle(*self._waiting.take())
        self._timer = asyncio.get_running_loop().call_later(PAUSE_S, self._hand_on)

    def flush(self) -> None:
        """Handle all items that wait, now."""
        while self._waiting:
            self._handle(*self._waiting.take())

    def close(self) -> None:
        """Drop all items that wait."""
        if self._timer is not None:
            self._timer.cancel()
        self._waiting = FairQueue()
