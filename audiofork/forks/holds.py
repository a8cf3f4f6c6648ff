"""Knows which calls are on hold, because the first leg of a call on hold stops its music."""

from __future__ import annotations

import asyncio

from audiofork.asterisk.ami_protocol import HoldChanged
from audiofork.asterisk.channels import Channels
from audiofork.errors import AmiError, NoSuchChannel


class Holds:
    """Knows which channels are on hold, and waits for the end of a hold.

    Owned by the registry of forks, which passes on events of Asterisk. A hold that began before the
    connection to Asterisk is unknown, because Asterisk cannot be asked about it.

    Attributes:
        waits: Whether the legs of a fork in a call on hold wait for the end of the hold
            ([asterisk] on_hold).
    """

    def __init__(self, channels: Channels, *, waits: bool = False) -> None:
        self.waits = waits
        self._channels = channels
        self._holders: dict[str, str] = {}  # names of channels whose party put the call on hold
        self._changed = asyncio.Event()

    def on_changed(self, event: HoldChanged) -> None:
        """Handle a party that has put its call on hold, or has resumed it."""
        if event.on_hold:
            self._holders[event.uniqueid] = event.channel
        else:
            self.forget(event.uniqueid)

    def forget(self, uniqueid: str) -> None:
        """Forget a channel: it is gone, or its party has resumed the call."""
        if self._holders.pop(uniqueid, None) is not None:
            self.look_again()

    def forget_all(self) -> None:
        """Forget all holds: their ends may have been missed without a connection to Asterisk."""
        self._holders.clear()
        self.look_again()

    def look_again(self) -> None:
        """Let all waiting coroutines check again: bridges or holds have changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def delay(self, uniqueid: str) -> bool:
        """Return whether legs for a channel must wait for the end of a hold."""
        return self.waits and await self.concern(uniqueid)

    async def concern(self, uniqueid: str) -> bool:
        """Return whether a channel, or one that it is bridged with, has put its call on hold."""
        if not self._holders:  # the usual case needs no question to Asterisk
            return False
        if uniqueid in self._holders:
            return True
        try:
            peers = await self._channels.bridge_peers(uniqueid)
        except (NoSuchChannel, AmiError):
            return False  # the request of the leg will fail and report it
        return bool(peers & set(self._holders.values()))

    async def wait_over(self, uniqueid: str) -> None:
        """Return when a channel is not on hold, or not any more."""
        while True:
            changed = self._changed
            if not await self.concern(uniqueid):
                return
            await changed.wait()
