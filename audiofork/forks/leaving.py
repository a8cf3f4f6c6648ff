"""The legs that were hung up and that Asterisk still has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Container, Iterable

from audiofork.asterisk.channels import Channels
from audiofork.errors import AmiError, RequestRefused
from audiofork.forks.fork import Fork, Leg
from audiofork.forks.tasks import Spawn

# A leg that was hung up is gone within 25 ms, but one whose channel has no media cannot go before
# that has some (asterisk#978). More than so many for one channel are not left there.
LEAVE_TIMEOUT_S = 1.0
MAX_LEGS_LEFT = 2


class LeavingLegs:
    """Owned by the registry of forks, which tells what it hears of channels."""

    def __init__(self, channels: Channels, spawn: Spawn) -> None:
        self._channels = channels
        self._spawn = spawn
        # When each was hung up, by uniqueid of the channel that they listen to, and by id.
        self._legs: dict[str, dict[str, float]] = {}
        self._left = asyncio.Event()  # one of them is gone; another for each

    @property
    def ids(self) -> list[str]:
        """The ids of all of them."""
        return [leg_id for legs in self._legs.values() for leg_id in legs]

    @property
    def stuck(self) -> int:
        """How many of them cannot end yet: their channels have no media."""
        latest = asyncio.get_running_loop().time() - LEAVE_TIMEOUT_S
        return sum(at <= latest for legs in self._legs.values() for at in legs.values())

    def watch(self, fork: Fork, legs: Iterable[Leg]) -> None:
        """See whether legs go that nobody wants any more, also those that have yet to connect."""
        loop = asyncio.get_running_loop()
        ids = {leg.id for leg in legs}
        if ids and not fork.call.hangup_seen:
            self._legs.setdefault(fork.uniqueid, {}).update(dict.fromkeys(ids, loop.time()))
            loop.call_later(LEAVE_TIMEOUT_S, self._on_timeout, fork, ids)

    def _on_timeout(self, fork: Fork, leg_ids: set[str]) -> None:
        if leg_ids & self._legs.get(fork.uniqueid, {}).keys():
            self._spawn(self._warn(fork, leg_ids))

    async def _warn(self, fork: Fork, leg_ids: set[str]) -> None:
        with contextlib.suppress(AmiError):  # the next login will tell
            self.reconcile(await self._channels.present())
        left = leg_ids & self._legs.get(fork.uniqueid, {}).keys()
        if left:
            fork.log.warning(
                "%d legs stay in Asterisk until their channel has media or ends (asterisk#978)",
                len(left),
            )

    def on_gone(self, uniqueid: str) -> None:
        """Hear that a channel does not exist any more: a leg's, or one that legs listened to."""
        self._legs.pop(uniqueid, None)
        for target, legs in list(self._legs.items()):
            if legs.pop(uniqueid, None) is not None and not legs:
                del self._legs[target]
        self._left.set()
        self._left = asyncio.Event()

    def reconcile(self, present: Container[str]) -> None:
        """Forget those that are not among the channels there are."""
        for leg_id in self.ids:
            if leg_id not in present:
                self.on_gone(leg_id)

    async def wait_for_room(self, fork: Fork) -> None:
        """Return when no more than MAX_LEGS_LEFT legs could be left to a fork's channel.

        Raises:
            RequestRefused: Those that are leaving do not go.
            AmiError: Asterisk cannot be asked whether they have gone.
        """
        if self._has_room(fork):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                while not self._has_room(fork):
                    await self._left.wait()
        # The news of their end may be held back by a filter. (Asterisk answers for no channel that
        # is being hung up, but lists it.)
        self.reconcile(await self._channels.present())
        if not self._has_room(fork):
            raise RequestRefused(
                f"{len(self._legs[fork.uniqueid])} legs of earlier forks of the channel cannot "
                "end before it has media (asterisk#978), and no more are left there"
            )

    def _has_room(self, fork: Fork) -> bool:
        leaving = len(self._legs.get(fork.uniqueid, ()))
        return not leaving or leaving + len(fork.legs) <= MAX_LEGS_LEFT
