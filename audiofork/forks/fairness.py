"""Who has the next turn where requests of many origins wait, and how much of each is answered.

An origin may flood; it then waits behind itself. One that invents origins (by AMI a request may
name any channel) has the turns of its door alone.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from audiofork.forks.requests import Origin

_Item = TypeVar("_Item")


class FairQueue(Generic[_Item]):
    """What waits: each door has its turn, in it each origin, in it what has waited longest.

    No I/O and no clock: its owner takes from it. Origins of which nothing waits are forgotten.
    """

    def __init__(self) -> None:
        self._doors: OrderedDict[str, OrderedDict[str, deque[_Item]]] = OrderedDict()
        self._counts: Counter[str] = Counter()  # by door

    def __bool__(self) -> bool:
        return bool(self._doors)

    def put(self, origin: Origin, item: _Item) -> None:
        """Let an item wait, behind all others of its origin."""
        door = self._doors.setdefault(origin.door, OrderedDict())
        door.setdefault(origin.who, deque()).append(item)
        self._counts[origin.door] += 1

    def take(self) -> _Item:
        """Remove and return the item whose turn it is; there has to be one."""
        door = next(iter(self._doors))
        who, items = next(iter(self._doors[door].items()))
        item = items.popleft()
        self._counts[door] -= 1
        self._doors.move_to_end(door)
        self._doors[door].move_to_end(who)
        self._forget_if_empty(Origin(door, who))
        return item

    def remove(self, origin: Origin, item: _Item) -> None:
        """Remove an item that waits no longer; one that is not there is no fault."""
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
        """Return how many items wait of an origin, and how many of its door."""
        door = self._doors.get(origin.door, OrderedDict())
        return len(door.get(origin.who, ())), self._counts[origin.door]

    def ahead_of(self, origin: Origin) -> int:
        """Return how many items would be taken before one more of an origin, at most."""
        door = self._doors.get(origin.door, OrderedDict())
        turns = len(door.get(origin.who, ())) + 1
        in_door = sum(min(len(items), turns) for items in door.values())
        others = (count for name, count in self._counts.items() if name != origin.door)
        return in_door + sum(min(count, in_door + 1) for count in others)


class Allowance:
    """How often something may be done a second, for each origin and for each door.

    Holds no more than one number for each time that it may be done.

    Args:
        each: So often for one origin.
        door: So often for one door.
        clock: Seconds.
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
        """Return whether it may be done now, once more, and count it if so."""
        now = self._clock()
        if now >= self._until:
            self._done.clear()
            self._until = now + 1
        if self._done[origin.door] >= self._door or self._done[origin] >= self._each:
            return False
        self._done[origin.door] += 1
        self._done[origin] += 1
        return True
