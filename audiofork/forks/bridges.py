"""Handles bridge events: opens the gates of option b, and detects wideband audio in a call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from audiofork.asterisk.ami_protocol import BridgeChanged
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.choice import Taps
from audiofork.errors import AmiError, NoSuchChannel
from audiofork.forks.ending import End
from audiofork.forks.fork import Fork
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.orders import wish_of
from audiofork.forks.table import ForkTable
from audiofork.forks.tasks import Spawn
from audiofork.link.messages import EndReason, LegPart, SendCommand, SetGate

# A conference takes up to 2 s to adopt the sample rates of channels that have entered it.
WIDEBAND_SETTLES_S = 5.0


class Bridges:
    """Opens and shuts gates, and ends forks of pairs whose call gets wideband audio.

    Owned by the registry of forks, which passes on events of Asterisk. In wideband calls ChanSpy
    gets in and out wrong. If the configuration says that no call is wideband, forks use pairs
    anyway, and must end when their call gets wideband audio.

    Args:
        channels: Asks Asterisk about channels.
        taps: Finds out what audio a call has.
        table: All forks.
        send: Sends a command to the relay.
        end: Ends a fork.
        spawn: Runs a coroutine in the background.
    """

    def __init__(
        self,
        channels: Channels,
        taps: Taps,
        table: ForkTable,
        send: SendCommand,
        end: End,
        spawn: Spawn,
    ) -> None:
        self._channels = channels
        self._taps = taps
        self._table = table
        self._send = send
        self._end = end
        self._spawn = spawn
        self._wideband_timer: asyncio.TimerHandle | None = None
        self._entered_since = False  # since the timer was set

    def on_changed(self, event: BridgeChanged) -> None:
        """Handle a channel that has entered or left a bridge."""
        self._move_gates(event.uniqueid, event.entered)
        if event.entered and self._taps.narrowband:
            self._spawn(self._look_for_wideband(event.uniqueid))
            self._look_for_wideband_later()

    async def catch_up(self) -> None:
        """Ask Asterisk for changes whose events were missed without a connection to Asterisk.

        Raises:
            AmiError: Asterisk cannot be asked.
        """
        for uniqueid in self._table.uniqueids:
            forks = self._table.on_channel(uniqueid)
            if any(fork.request.options.bridged_only for fork in forks):
                with contextlib.suppress(NoSuchChannel):  # its forks end when their legs are lost
                    self.on_changed(
                        BridgeChanged(uniqueid, await self._channels.is_bridged(uniqueid))
                    )
        if self._taps.narrowband:
            await self._end_if_wide(self._forks_of_pairs())

    def close(self) -> None:
        """Stop checking bridges."""
        if self._wideband_timer is not None:
            self._wideband_timer.cancel()

    def _move_gates(self, uniqueid: str, entered: bool) -> None:
        for fork in self._table.on_channel(uniqueid):
            if fork.request.options.bridged_only and fork.call.bridged is not entered:
                fork.call.bridged = entered
                if fork.state is not ForkState.REQUESTED:  # else ForkSpec will carry the gate
                    self._send(SetGate(fork.id, entered))

    def _look_for_wideband_later(self) -> None:
        """Check all forks of pairs again later.

        A conference changes its rate only after some time, and Asterisk names at most eleven
        members of a bridge.
        """
        if self._wideband_timer is None:
            loop = asyncio.get_running_loop()
            self._wideband_timer = loop.call_later(WIDEBAND_SETTLES_S, self._on_wideband_timer)
        else:
            self._entered_since = True

    def _on_wideband_timer(self) -> None:
        self._wideband_timer = None
        self._spawn(self._end_if_wide(self._forks_of_pairs()))
        if self._entered_since:
            self._entered_since = False
            self._look_for_wideband_later()

    def _forks_of_pairs(self) -> list[Fork]:
        return [fork for fork in self._table if LegPart.PAIRS in fork.legs]

    async def _look_for_wideband(self, uniqueid: str) -> None:
        """End the forks in the bridge that a channel has entered, if it brings wideband audio."""
        pairs = self._forks_of_pairs()
        peers: set[str] = set()
        with contextlib.suppress(NoSuchChannel, AmiError):  # the channel or the connection is gone
            peers = await self._channels.bridge_peers(uniqueid) if pairs else set()
        await self._end_if_wide(
            fork for fork in pairs if fork.uniqueid == uniqueid or fork.channel in peers
        )

    async def _end_if_wide(self, forks: Iterable[Fork]) -> None:
        """End each of these forks of pairs whose call has wideband audio."""
        for fork in forks:
            with contextlib.suppress(NoSuchChannel, AmiError):
                if wide := await self._taps.wide(fork.uniqueid):
                    why = self._taps.why_wide(wish_of(fork), wide)
                    self._end(fork, EndReason.LEG_FAILED, why)
