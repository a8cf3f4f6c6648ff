"""What bridges mean to forks: gates of option b, and wideband audio that enters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from audiofork.asterisk.ami_protocol import BridgeChanged
from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.choice import Taps
from audiofork.errors import AmiError, NoSuchChannel
from audiofork.forks.ending import End
from audiofork.forks.fork import Fork, wish_of
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.table import ForkTable
from audiofork.forks.tasks import Spawn
from audiofork.link.messages import EndReason, LegPart, SendCommand, SetGate

# A conference takes up to two seconds to follow the rates of those who have entered it.
WIDEBAND_SETTLES_S = 5.0


class Bridges:
    """Owned by the registry of forks, which passes on what Asterisk tells.

    ChanSpy gets in and out wrong in wideband calls. Where the site claims to have none, forks have
    pairs all the same, and end when their call gets wideband audio.

    Args:
        channels: What Asterisk is asked.
        taps: Know what audio a call has.
        table: The forks there are.
        send: Commands the relay.
        end: Ends a fork.
        spawn: Runs what has to wait.
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
        """Hear that a channel has entered or left a bridge."""
        self._move_gates(event.uniqueid, event.entered)
        if event.entered and self._taps.narrowband:
            self._spawn(self._look_for_wideband(event.uniqueid))
            self._look_for_wideband_later()

    async def catch_up(self) -> None:
        """Ask for what events may have told while there was no link to Asterisk."""
        for uniqueid in self._table.uniqueids:
            forks = self._table.on_channel(uniqueid)
            if any(fork.request.options.bridged_only for fork in forks):
                with contextlib.suppress(NoSuchChannel):  # its forks end with their legs
                    self.on_changed(
                        BridgeChanged(uniqueid, await self._channels.is_bridged(uniqueid))
                    )
        if self._taps.narrowband:
            await self._end_if_wide(self._forks_of_pairs())

    def close(self) -> None:
        """Look at no bridge any more."""
        if self._wideband_timer is not None:
            self._wideband_timer.cancel()

    def _move_gates(self, uniqueid: str, entered: bool) -> None:
        for fork in self._table.on_channel(uniqueid):
            if fork.request.options.bridged_only and fork.call.bridged is not entered:
                fork.call.bridged = entered
                if fork.state is not ForkState.REQUESTED:  # else it goes into the spec
                    self._send(SetGate(fork.id, entered))

    def _look_for_wideband_later(self) -> None:
        """Look at all forks of pairs once more: a conference takes its time to change its rate.

        Nor does Asterisk name more than eleven members of a bridge.
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
        """End the forks that a channel with wideband audio makes wrong by entering their bridge."""
        pairs = self._forks_of_pairs()
        peers: set[str] = set()
        with contextlib.suppress(NoSuchChannel, AmiError):  # it has gone, or the link has
            peers = await self._channels.bridge_peers(uniqueid) if pairs else set()
        await self._end_if_wide(
            fork for fork in pairs if fork.uniqueid == uniqueid or fork.channel in peers
        )

    async def _end_if_wide(self, forks: Iterable[Fork]) -> None:
        """End those of some forks of pairs whose calls have wideband audio."""
        for fork in forks:
            with contextlib.suppress(NoSuchChannel, AmiError):
                if wide := await self._taps.wide(fork.uniqueid):
                    why = self._taps.why_wide(wish_of(fork), wide)
                    self._end(fork, EndReason.LEG_FAILED, why)
