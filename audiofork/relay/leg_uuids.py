"""The UUIDs by which legs are known: each issued for one leg, good once, and void after that.

Asterisk presents each UUID that it is told of, at most once. It shows it to readers of its events
before the leg has connected, though, so somebody else may come first. That is found out when
Asterisk comes second: so a void UUID is remembered until Asterisk cannot come any more.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

# A leg that has not connected 6 s after it was asked for never will.
REMEMBERED_S = 10.0

_Owner = TypeVar("_Owner")
_Holder = TypeVar("_Holder")


class Void(NamedTuple, Generic[_Holder]):
    """A UUID that is good no more.

    Attributes:
        since: By the clock, in seconds.
        holder: The connection that has used it; None: it was withdrawn before.
    """

    since: float
    holder: _Holder | None


class LegUuids(Generic[_Owner, _Holder]):
    """Owned by the listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._issued: dict[bytes, _Owner] = {}
        self._void: dict[bytes, Void[_Holder]] = {}  # oldest first

    def issue(self, leg_uuid: str, owner: _Owner) -> None:
        """Make a UUID good, once."""
        self._issued[uuid.UUID(leg_uuid).bytes] = owner

    def withdraw(self, leg_uuid: str) -> None:
        """Make it void; does nothing if it is."""
        key = uuid.UUID(leg_uuid).bytes
        if self._issued.pop(key, None) is not None:
            self._remember(key, None)

    def use(self, presented: bytes, holder: _Holder) -> _Owner | None:
        """Return the owner that a UUID was issued to, once; None: it is not good."""
        owner = self._issued.pop(presented, None)
        if owner is not None:
            self._remember(presented, holder)
        return owner

    def void(self, presented: bytes) -> Void[_Holder] | None:
        """Return what is remembered of a UUID that is not good; None: nothing.

        One that was withdrawn is remembered for one leg alone, Asterisk's own, which is late.
        """
        self._forget_old()
        void = self._void.get(presented)
        if void is not None and void.holder is None:
            del self._void[presented]
        return void

    def _remember(self, key: bytes, holder: _Holder | None) -> None:
        self._forget_old()
        self._void[key] = Void(self._clock(), holder)

    def _forget_old(self) -> None:
        oldest = self._clock() - REMEMBERED_S
        while self._void:
            key = next(iter(self._void))
            if self._void[key].since > oldest:
                return
            del self._void[key]
