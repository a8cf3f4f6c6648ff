"""Limits how much may come in a time: so much a second, and more at once after a time with less."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Limit(NamedTuple):
    """A rate limit (token bucket).

    Attributes:
        what: What is counted, for the close reason.
        a_second: The amount allowed per second.
        at_once: The largest burst, after a time with less.
    """

    what: str
    a_second: int
    at_once: int


class Allowance:
    """The amount that is left of a limit.

    Args:
        limit: The limit.
        clock: Returns the time in seconds; never goes back.
    """

    __slots__ = ("_at_s", "_clock", "_left", "limit")

    def __init__(self, limit: Limit, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        self._at_s = clock()
        self._left: float = limit.at_once

    def take(self, amount: float = 1) -> bool:
        """Take an amount; return whether that much was left."""
        now_s = self._clock()
        gained = (now_s - self._at_s) * self.limit.a_second
        self._at_s = now_s
        self._left = min(self._left + gained, self.limit.at_once) - amount
        return self._left >= 0
