"""The UUIDs that identify legs: each is issued for one leg, valid once, and void after that.

Asterisk presents each UUID at most once. But its events show the UUID before the leg has
connected, so another client may present it first. That is noticed when Asterisk presents it as the
second one. So a void UUID is remembered until Asterisk cannot connect any more.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

# Asterisk never connects a leg later than 6 s after it was requested.
REMEMBERED_S = 10.0

_Owner = TypeVar("_Owner")
_Holder = TypeVar("_Holder")


class Void(NamedTuple, Generic[_Holder]):
    """A UUID that is not valid any more.

    Attributes:
        since: When it became void, in seconds of the clock.
        holder: The connection that used it; None if it was withdrawn before use.
    """

    since: float
    holder: _Holder | None


class LegUuids(Generic[_Owner, _Holder]):
    """The UUIDs that are issued or void; owned by the listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._issued: dict[bytes, _Owner] = {}
        self._void: dict[bytes, Void[_Holder]] = {}  # oldest first

    def issue(self, leg_uuid: str, owner: _Owner) -> None:
        """Accept a UUID, once."""
        self._issued[uuid.UUID(leg_uuid).bytes] = owner

    def withdraw(self, leg_uuid: str) -> None:
        """Make a UUID void; no effect if it is already."""
        key = uuid.UUID(leg_uuid).bytes
        if self._issued.pop(key, None) is not None:
            self._remember(key, None)

    def use(self, presented: bytes, holder: _Holder) -> _Owner | None:
        """Return the owner of an issued UUID, and make the UUID void; None if it is not valid."""
        owner = self._issued.pop(presented, None)
        if owner is not None:
            self._remember(presented, holder)
        return owner

    def void(self, presented: bytes) -> Void[_Holder] | None:
        """Return the record of a void UUID; None if there is none.

        A withdrawn UUID is then forgotten: only one leg may use it, Asterisk's own that is late.
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
