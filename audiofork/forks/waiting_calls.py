"""Calls whose server was lost with its relay: the dialplan waits for another, and not for long."""

from __future__ import annotations

import asyncio

from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.connect import server_of
from audiofork.errors import AmiError, NoSuchChannel
from audiofork.forks.ending import End
from audiofork.forks.fork import Fork
from audiofork.forks.lifecycle import ForkState
from audiofork.forks.requests import DIALPLAN, StopFork
from audiofork.forks.tasks import Spawn
from audiofork.link.messages import EndReason

GONE_ON = "its relay was lost, and the call did not wait for another"
CHECK_INTERVAL_S = 1.0
UNKNOWN_UUID = "?"  # of a leg that an earlier daemon has requested


class WaitingCalls:
    """Ends the forks of calls that have gone on: they may get another server.

    Owned by the registry of forks.

    Args:
        channels: Asks Asterisk about channels.
        end: Ends a fork.
        spawn: Runs a coroutine in the background.
    """

    def __init__(self, channels: Channels, end: End, spawn: Spawn) -> None:
        self._channels = channels
        self._end = end
        self._spawn = spawn
        self._watched: set[str] = set()

    def watch(self, fork: Fork) -> None:
        """Watch a fork whose relay is lost, until it has its leg again."""
        if fork.connects and fork.id not in self._watched:
            self._watched.add(fork.id)
            self._spawn(self._watch(fork))

    async def _watch(self, fork: Fork) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            if fork.is_ending or fork.state is ForkState.ENDED or not _lacks_leg(fork):
                break
            try:
                server = await server_of(self._channels, fork.uniqueid, uuids_of(fork))
            except NoSuchChannel:
                break  # which is noticed elsewhere
            except AmiError:
                continue
            if not server.is_of(fork.id) and _lacks_leg(fork):
                self._end(fork, EndReason.LEG_FAILED, GONE_ON)
                break
        self._watched.discard(fork.id)


def end_of(fork: Fork, stop: StopFork) -> tuple[EndReason, str]:
    """Return why a fork ends that is stopped: by its own dialplan, which has waited in vain?"""
    is_own = stop.origin.door == DIALPLAN and stop.origin.who == fork.uniqueid
    if fork.connects and is_own and _lacks_leg(fork):
        return EndReason.LEG_FAILED, GONE_ON
    return EndReason.STOPPED, ""


def uuids_of(fork: Fork) -> tuple[str, ...]:
    """Return what a fork's legs present, and those before them; empty if that is not known."""
    known = [one for leg in fork.legs.values() for one in (leg.uuid, leg.earlier_uuid) if one]
    return () if UNKNOWN_UUID in known else tuple(known)


def _lacks_leg(fork: Fork) -> bool:
    return fork.progress.relay_away or any(leg.lost_at is not None for leg in fork.legs.values())
