"""Which calls are on hold: the first leg that is attached to one stops its music on hold."""

from __future__ import annotations

import asyncio

from audiofork.asterisk.ami_protocol import HoldChanged
from audiofork.asterisk.channels import Channels
from audiofork.errors import AmiError, NoSuchChannel


class Holds:
    """Owned by the registry of forks, which passes on what Asterisk tells.

    A hold that began before the daemon's link to Asterisk is not known: nobody can be asked for it.

    Attributes:
        waits: Whether the legs of a fork in a call on hold wait for its end ([asterisk] on_hold).
    """

    def __init__(self, channels: Channels, *, waits: bool = False) -> None:
        self.waits = waits
        self._channels = channels
        self._holders: dict[str, str] = {}  # names of channels whose party holds, by uniqueid
        self._changed = asyncio.Event()

    def on_changed(self, event: HoldChanged) -> None:
        """Hear that a party holds its call, or takes it back."""
        if event.on_hold:
            self._holders[event.uniqueid] = event.channel
        else:
            self.forget(event.uniqueid)

    def forget(self, uniqueid: str) -> None:
        """Hear that a channel is gone."""
        if self._holders.pop(uniqueid, None) is not None:
            self.look_again()

    def forget_all(self) -> None:
        """Hear that what has ended may not have been heard: the link to Asterisk was away."""
        self._holders.clear()
        self.look_again()

    def look_again(self) -> None:
        """Let those who wait ask again: calls have been put together anew."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def delay(self, uniqueid: str) -> bool:
        """Return whether legs for a channel have to wait until it is not on hold any more."""
        return self.waits and await self.concern(uniqueid)

    async def concern(self, uniqueid: str) -> bool:
        """Return whether a channel, or one that it is bridged with, is of a party that holds."""
        if not self._holders:  # nearly always: nothing is asked
            return False
        if uniqueid in self._holders:
            return True
        try:
            peers = await self._channels.bridge_peers(uniqueid)
        except (NoSuchChannel, AmiError):
            return False  # what follows will find it out
        return bool(peers & set(self._holders.values()))

    async def wait_over(self, uniqueid: str) -> None:
        """Return when a channel is not on hold (any more)."""
        while True:
            changed = self._changed
            if not await self.concern(uniqueid):
                return
            await changed.wait()
