"""Shares turns fairly between the origins of requests, and limits the requests of each.

An origin that floods waits behind its own requests. A client that invents origins (over AMI a
request may name any channel) gets no more than the turns of its door.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from audiofork.forks.requests import Origin

_Item = TypeVar("_Item")


class FairQueue(Generic[_Item]):
    """A queue in which doors take turns, and within a door its origins; an origin's items are FIFO.

    No I/O and no clock: its owner takes the items. Origins without waiting items are forgotten.
    """

    def __init__(self) -> None:
        self._doors: OrderedDict[str, OrderedDict[str, deque[_Item]]] = OrderedDict()
        self._counts: Counter[str] = Counter()  # by door

    def __bool__(self) -> bool:
        return bool(self._doors)

    def put(self, origin: Origin, item: _Item) -> None:
        """Add an item behind all others of its origin."""
        door = self._doors.setdefault(origin.door, OrderedDict())
        door.setdefault(origin.who, deque()).append(item)
        self._counts[origin.door] += 1

    def take(self) -> _Item:
        """Remove and return the item whose turn it is; the queue must not be empty."""
        door = next(iter(self._doors))
        who, items = next(iter(self._doors[door].items()))
        item = items.popleft()
        self._counts[door] -= 1
        self._doors.move_to_end(door)
        self._doors[door].move_to_end(who)
        self._forget_if_empty(Origin(door, who))
        return item

    def remove(self, origin: Origin, item: _Item) -> None:
        """Remove an item that waits no longer; no effect if it is not in the queue."""
        items = self._doors.get(origin.door, OrderedDict()).get(origin.who)
        if items is not None and item in items:
            items.remove(item)
            self._counts[origin.door] -= 1
            self._forget_if_empty(origin)

    def _forget_if_empty(self, origin: Origin) -> None:
        door = self._doors[origin.door]
        if not door[origin.who]:
            del door[origin.who]
        if not door:
            del self._doors[origin.door], self._counts[origin.door]

    def waiting(self, origin: Origin) -> tuple[int, int]:
        """Return how many items of an origin wait, and how many of its door."""
        door = self._doors.get(origin.door, OrderedDict())
        return len(door.get(origin.who, ())), self._counts[origin.door]

    def ahead_of(self, origin: Origin) -> int:
        """Return how many items, at most, would be taken before a new item of an origin."""
        door = self._doors.get(origin.door, OrderedDict())
        turns = len(door.get(origin.who, ())) + 1
        in_door = sum(min(len(items), turns) for items in door.values())
        others = (count for name, count in self._counts.items() if name != origin.door)
        return in_door + sum(min(count, in_door + 1) for count in others)


class Allowance:
    """Limits how often something may be done per second, for each origin and for each door.

    Its memory is bounded: it counts only origins that were allowed in the current second.

    Args:
        each: How often per second for one origin.
        door: How often per second for one door.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, each: int, door: int, clock: Callable[[], float] = lambda: time.monotonic()
    ) -> None:
        self._each = each
        self._door = door
        self._clock = clock
        self._until = float("-inf")
        self._done: Counter[Origin | str] = Counter()

    def take(self, origin: Origin) -> bool:
        """Return whether it may be done once more now; if so, count it."""
        now = self._clock()
        if now >= self._until:
            self._done.clear()
            self._until = now + 1
        if self._done[origin.door] >= self._door or self._done[origin] >= self._each:
            return False
        self._done[origin.door] += 1
        self._done[origin] += 1
        return True
