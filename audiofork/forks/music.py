"""Plays music to the caller of a connected server while that is lost."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.ami_protocol import ChannelHangup, Event, OriginateFailed
from audiofork.asterisk.taps.base import LegAddresses, fork_id_of, leg_name
from audiofork.asterisk.taps.chanspy import originate
from audiofork.asterisk.versions import WHISPER_LEAKS, releases
from audiofork.errors import AmiActionFailed, AmiError
from audiofork.forks.events import (
    DomainEvent,
    Ended,
    ForkInfo,
    Parting,
    Reconnecting,
    Requested,
    Resumed,
)
from audiofork.forks.lifecycle import Away
from audiofork.forks.profiles import Profiles
from audiofork.forks.tasks import Tasks
from audiofork.log import ForkLog
from audiofork.text import harmless

log = logging.getLogger(__name__)

# Of the shipped dialplan: plays the music of the class in VARIABLE.
PLAYER = "Local/music@audiofork-leg"
VARIABLE = "AUDIOFORK_MUSIC"
# q: no beep; u: the target is given by its uniqueid; E, S: end with it; w: whisper to it.
SPY_OPTIONS = "quESw"
# Asterisk answers an Originate before the channel exists.
TRIES = 10
BETWEEN_TRIES_S = 0.1


class Music:
    """Plays it by channels of its own; owned by the daemon, which subscribes `on_event`.

    A Local channel plays the music and whispers it to the caller by ChanSpy: all else that Asterisk
    has for it (AMI, ARI, Dial) wants the caller to be elsewhere than with the server.

    Args:
        ami: The connection to Asterisk.
        relay: Knows the port by which this daemon's channels differ from those of others.
        profiles: Knows the music of each server.
    """

    def __init__(self, ami: Ami, relay: LegAddresses, profiles: Profiles) -> None:
        self._ami = ami
        self._relay = relay
        self._profiles = profiles
        self._tasks = Tasks()
        self._wanted: dict[str, tuple[ForkInfo, str]] = {}  # and the class, by fork id
        self._players: dict[str, str] = {}  # uniqueids of what plays, by fork id
        self._has_failed: set[str] = set()  # ids of forks, in this outage

    def on_event(self, event: DomainEvent) -> None:
        """Begin or end the music of a fork."""
        match event:
            case Requested(fork, request) if fork.connects:
                if music := self._profiles.music_of(request):
                    self._wanted[fork.id] = fork, music
            case Reconnecting(fork, Away.SERVER, was_streaming=True) if fork.id in self._wanted:
                self._begin(fork.id)
            case Resumed(fork, Away.SERVER):
                self._end(fork)
            case Parting(fork) | Ended(fork):
                self._end(fork)
                self._wanted.pop(fork.id, None)
            case _:
                pass

    def on_asterisk(self, event: Event) -> None:
        """Handle the end of a channel, or that Asterisk could not make one; it may be any other."""
        match event:
            case ChannelHangup(uniqueid, is_gone=True):
                self._on_player_gone(uniqueid, "its channel has ended")
            case OriginateFailed(action_id, reason):
                why = f"Asterisk could not make its channel (reason {reason})"
                self._on_player_gone(action_id, why)
            case _:
                pass

    def _on_player_gone(self, uniqueid: str, why: str) -> None:
        fork_id = fork_id_of(uniqueid)
        if self._players.get(fork_id) == uniqueid:
            self._on_failed(self._wanted[fork_id][0], why)

    async def sweep(self, present: Mapping[str, str]) -> None:
        """Hang up players that no fork needs any more, also of an earlier run of the daemon.

        Called after each login.

        Args:
            present: The names of all channels, by uniqueid.

        Raises:
            AmiError: The connection to Asterisk is lost again.
        """
        wanted = tuple(self._players.values())
        for uniqueid, name in present.items():
            is_ours = name.startswith(PLAYER) and self._mark in uniqueid
            if is_ours and not uniqueid.startswith(wanted):
                log.warning("hung up music that nobody needs any more: %s", name)
                await self._hang_up(uniqueid)

    async def close(self) -> None:
        """Wait until what plays is hung up."""
        await self._tasks.finish()

    @property
    def _mark(self) -> str:
        """What the uniqueids of this daemon's players have in them."""
        return f"-music-{self._relay.addresses[0].port}-"

    def _begin(self, fork_id: str) -> None:
        if fork_id not in self._players:
            player = leg_name(fork_id) + self._mark + secrets.token_hex(4)
            self._players[fork_id] = player
            self._tasks.spawn(self._play(player, *self._wanted[fork_id]))

    async def _play(self, player: str, fork: ForkInfo, music: str) -> None:
        if self._ami.version.has(WHISPER_LEAKS):
            leaks = f"whispering leaks on Asterisk {releases(WHISPER_LEAKS)} and later"
            self._on_failed(fork, leaks)
            return
        headers = [
            *originate(PLAYER, player, "ChanSpy", f"{fork.uniqueid},{SPY_OPTIONS}"),
            ("OtherChannelId", f"{player}-2"),
            ("Variable", f"__{VARIABLE}={music}"),  # of the channels that it dials, too
        ]
        try:
            await self._ami.action("Originate", headers, action_id=player)
        except AmiError as exc:
            self._on_failed(fork, str(exc))

    def _on_failed(self, fork: ForkInfo, why: str) -> None:
        """Log the first failure of an outage; the next attempt to connect tries again."""
        self._players.pop(fork.id, None)
        if fork.id not in self._has_failed:
            self._has_failed.add(fork.id)
            fork_log = ForkLog(log, fork.id, fork.channel)
            fork_log.warning("no music for the caller: %s", harmless(why))

    def _end(self, fork: ForkInfo) -> None:
        self._has_failed.discard(fork.id)
        if player := self._players.pop(fork.id, ""):
            self._tasks.spawn(self._stop(fork, player))

    async def _stop(self, fork: ForkInfo, player: str) -> None:
        try:
            for _ in range(TRIES):
                if await self._hang_up(player):
                    return
                await asyncio.sleep(BETWEEN_TRIES_S)
        except AmiError as exc:
            fork_log = ForkLog(log, fork.id, fork.channel)
            fork_log.warning("the caller's music may go on: %s", harmless(str(exc)))

    async def _hang_up(self, uniqueid: str) -> bool:
        """Hang up a channel; return whether there was one."""
        try:
            await self._ami.action("Hangup", [("Channel", uniqueid)])
        except AmiActionFailed:  # not there yet, or gone with its call
            return False
        return True
