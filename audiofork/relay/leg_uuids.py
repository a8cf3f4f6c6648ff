"""The UUIDs that identify legs: each is issued for one leg, valid once, and void after that.

Asterisk presents each UUID at most once. But its events show the UUID before the leg has
connected, so another client may present it first. That is noticed when Asterisk presents it as the
second one. So a void UUID is remembered until Asterisk cannot connect any more.

Where it is known which addresses the Asterisk of a leg has, a UUID from elsewhere is that other
client's, and changes nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from audiofork.addresses import IPNetwork, is_among

# Asterisk never connects a leg later than 6 s after it was requested.
REMEMBERED_S = 10.0

_Owner = TypeVar("_Owner")
_Holder = TypeVar("_Holder")


class _Issued(NamedTuple, Generic[_Owner]):
    owner: _Owner
    legs_from: tuple[IPNetwork, ...]


class Void(NamedTuple, Generic[_Holder]):
    """A UUID that is not valid any more.

    Attributes:
        since: When it became void, in seconds of the clock.
        holder: The connection that used it; None if it was withdrawn before use.
        legs_from: Where its leg may come from; empty: anywhere.
    """

    since: float
    holder: _Holder | None
    legs_from: tuple[IPNetwork, ...] = ()


class LegUuids(Generic[_Owner, _Holder]):
    """The UUIDs that are issued or void; owned by the listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._issued: dict[bytes, _Issued[_Owner]] = {}
        self._void: dict[bytes, Void[_Holder]] = {}  # oldest first

    def issue(self, leg_uuid: str, owner: _Owner, legs_from: tuple[IPNetwork, ...] = ()) -> None:
        """Accept a UUID, once.

        Args:
            leg_uuid: The UUID.
            owner: Whose leg it identifies.
            legs_from: Where the leg may come from; empty: anywhere.
        """
        # The first has it: a controller that knows it of another's leg does not get that.
        self._issued.setdefault(uuid.UUID(leg_uuid).bytes, _Issued(owner, legs_from))

    def withdraw(self, leg_uuid: str) -> None:
        """Make a UUID void; no effect if it is already."""
        key = uuid.UUID(leg_uuid).bytes
        if (issued := self._issued.pop(key, None)) is not None:
            self._remember(key, None, issued.legs_from)

    def is_from_elsewhere(self, presented: bytes, peer: str) -> bool:
        """Return whether a UUID, issued or void, is presented where its leg cannot come from.

        Args:
            presented: The UUID.
            peer: The address of who presents it; empty: unknown.
        """
        known = self._issued.get(presented) or self._void.get(presented)
        if known is None or not known.legs_from:
            return False
        return not is_among(peer, known.legs_from)

    def use(self, presented: bytes, holder: _Holder) -> _Owner | None:
        """Return the owner of an issued UUID, and make the UUID void; None if it is not valid."""
        issued = self._issued.pop(presented, None)
        if issued is None:
            return None
        self._remember(presented, holder, issued.legs_from)
        return issued.owner

    def void(self, presented: bytes) -> Void[_Holder] | None:
        """Return the record of a void UUID; None if there is none.

        A withdrawn UUID is then forgotten: only one leg may use it, Asterisk's own that is late.
        """
        self._forget_old()
        void = self._void.get(presented)
        if void is not None and void.holder is None:
            del self._void[presented]
        return void

    def _remember(
        self, key: bytes, holder: _Holder | None, legs_from: tuple[IPNetwork, ...]
    ) -> None:
        self._forget_old()
        self._void[key] = Void(self._clock(), holder, legs_from)

    def _forget_old(self) -> None:
        oldest = self._clock() - REMEMBERED_S
        while self._void:
            key = next(iter(self._void))
            if self._void[key].since > oldest:
                return
            del self._void[key]
