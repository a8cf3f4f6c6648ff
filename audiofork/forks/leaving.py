"""Watches legs that are no longer wanted until Asterisk has ended them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Container, Iterable

from audiofork.asterisk.channels import Channels
from audiofork.errors import AmiError, RequestRefused
from audiofork.forks.fork import Fork, Leg
from audiofork.forks.tasks import Spawn

# A leg ends within 25 ms after its hangup. But if the channel that it copies has no media, the leg
# cannot end before that channel has some (asterisk#978). A channel may have at most MAX_LEGS_LEFT
# such legs; a start that could leave more is refused.
LEAVE_TIMEOUT_S = 1.0
MAX_LEGS_LEFT = 2


class LeavingLegs:
    """The legs that were hung up and that Asterisk still has.

    Owned by the registry of forks, which passes on events of channels.
    """

    def __init__(self, channels: Channels, spawn: Spawn) -> None:
        self._channels = channels
        self._spawn = spawn
        # Loop time of each hangup, by uniqueid of the copied channel, and by id of the leg.
        self._legs: dict[str, dict[str, float]] = {}
        self._left = asyncio.Event()  # set when a leg is gone, and then replaced by a new event

    @property
    def ids(self) -> list[str]:
        """The ids of all these legs."""
        return [leg_id for legs in self._legs.values() for leg_id in legs]

    @property
    def stuck(self) -> int:
        """How many have not ended after LEAVE_TIMEOUT_S, as their target has no media."""
        latest = asyncio.get_running_loop().time() - LEAVE_TIMEOUT_S
        return sum(at <= latest for legs in self._legs.values() for at in legs.values())

    def watch(self, fork: Fork, legs: Iterable[Leg]) -> None:
        """Watch legs of a fork that are no longer wanted; some may not have connected yet."""
        loop = asyncio.get_running_loop()
        ids = {leg.id for leg in legs}
        if ids and not fork.call.hangup_seen:
            self._legs.setdefault(fork.uniqueid, {}).update(dict.fromkeys(ids, loop.time()))
            loop.call_later(LEAVE_TIMEOUT_S, self._on_timeout, fork, ids)

    def _on_timeout(self, fork: Fork, leg_ids: set[str]) -> None:
        if leg_ids & self._legs.get(fork.uniqueid, {}).keys():
            self._spawn(self._warn(fork, leg_ids))

    async def _warn(self, fork: Fork, leg_ids: set[str]) -> None:
        with contextlib.suppress(AmiError):  # the next login reconciles as well
            self.reconcile(await self._channels.present())
        left = leg_ids & self._legs.get(fork.uniqueid, {}).keys()
        if left:
            fork.log.warning(
                "%d legs stay in Asterisk until their channel has media or ends (asterisk#978)",
                len(left),
            )

    def on_gone(self, uniqueid: str) -> None:
        """Handle a channel that does not exist any more: a leg, or a channel that legs copied."""
        self._legs.pop(uniqueid, None)
        for target, legs in list(self._legs.items()):
            if legs.pop(uniqueid, None) is not None and not legs:
                del self._legs[target]
        self._left.set()
        self._left = asyncio.Event()

    def reconcile(self, present: Container[str]) -> None:
        """Forget the legs that are not among the channels of Asterisk."""
        for leg_id in self.ids:
            if leg_id not in present:
                self.on_gone(leg_id)

    async def wait_for_room(self, fork: Fork) -> None:
        """Wait until at most MAX_LEGS_LEFT legs could be left on a fork's channel, with its own.

        Raises:
            RequestRefused: The earlier legs do not end.
            AmiError: Asterisk cannot be asked whether they have ended.
        """
        if self._has_room(fork):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                while not self._has_room(fork):
                    await self._left.wait()
        # An event filter may hide the events of their end, so ask for the list of channels. A
        # channel that is being hung up is in the list, but Asterisk answers no question about it.
        self.reconcile(await self._channels.present())
        if not self._has_room(fork):
            raise RequestRefused(
                f"{len(self._legs[fork.uniqueid])} legs of earlier forks of the channel cannot "
                "end before it has media (asterisk#978), and no more are left there"
            )

    def _has_room(self, fork: Fork) -> bool:
        leaving = len(self._legs.get(fork.uniqueid, ()))
        return not leaving or leaving + len(fork.legs) <= MAX_LEGS_LEFT
