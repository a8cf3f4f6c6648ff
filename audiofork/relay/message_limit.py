"""Limits how many messages of a server are passed on."""

from __future__ import annotations

import time
from collections import deque


class MessageLimit:
    """Allows so many messages a second.

    Args:
        most: How many.

    Attributes:
        exceeded: Messages that were not allowed.
    """

    def __init__(self, most: int) -> None:
        self.exceeded = 0
        self._most = most
        # The times of the latest; most servers send none, and a deque takes memory from the start.
        self._allowed: deque[float] | None = None

    def allows(self) -> bool:
        """Return whether a message that comes now is allowed."""
        if self._allowed is None:
            self._allowed = deque(maxlen=self._most)
        now, allowed = time.monotonic(), self._allowed
        if len(allowed) == self._most and now - allowed[0] < 1:
            self.exceeded += 1
            return False
        allowed.append(now)
        return True
