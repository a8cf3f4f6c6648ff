"""How much of each item that a speech API has said its caller has heard."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from audiofork.audiosocket import PTIME_MS

# Items that can be cut; more never wait to be played.
_MOST_ITEMS = 100


@dataclass(slots=True)
class Item:
    """A part of an item of the conversation that is audio.

    Attributes:
        item_id: Its name.
        content_index: Which part of it.
        duration_ms: How much of it has come.
    """

    item_id: str
    content_index: int
    duration_ms: float = 0.0


class Heard:
    """The latest items of one session, in the order in which they are played."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque(maxlen=_MOST_ITEMS)
        self._cut: deque[str] = deque(maxlen=_MOST_ITEMS)

    def add(self, item_id: str, content_index: int, duration_ms: float) -> bool:
        """Note audio of an item; return whether it is to be played: not if the item was cut."""
        if item_id in self._cut:
            return False
        last = self._items[-1] if self._items else None
        if last is None or (last.item_id, last.content_index) != (item_id, content_index):
            last = Item(item_id, content_index)
            self._items.append(last)
        last.duration_ms += duration_ms
        return True

    def cut(self, lost_ms: int) -> list[tuple[Item, int]]:
        """Return each item whose end was lost, with the milliseconds that were heard of it.

        Args:
            lost_ms: How much of the audio noted last was not played.
        """
        cut: list[tuple[Item, int]] = []
        while self._items and lost_ms >= PTIME_MS:  # less is only the rest of a padded frame
            item = self._items.pop()
            cut.append((item, max(0, math.floor(item.duration_ms - lost_ms))))
            lost_ms -= math.ceil(item.duration_ms)
        self._items.clear()
        self._cut.extend(item.item_id for item, _ in cut)
        return cut[::-1]
