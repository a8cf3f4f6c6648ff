"""The tap of connected forks: the dialplan itself connects the channel to the relay.

The channel is told where by a variable, for which the extension `connect` of
extensions_audiofork.conf waits. A channel that is elsewhere is sent to the extension `led` first.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.channels import NO_SUCH_CHANNEL, Channels
from audiofork.asterisk.taps.base import LegAddresses, LegOrder, leg_name
from audiofork.asterisk.taps.chanspy import originate
from audiofork.asterisk.taps.ways import Connects, Way
from audiofork.config import Address, Place
from audiofork.errors import AmiActionFailed, AmiError, LegRefused, LegUncertain, NoSuchChannel
from audiofork.link.messages import Direction, LegPart

VARIABLE = "AUDIOFORK_LEG"
# What AUDIOFORK_STATUS is, but of the connected fork alone, and which that is: the Gosub that waits
# for it must not take the news of another fork of its channel for its own. It also sets the first
# itself, when it goes on without an answer.
STATUS = "AUDIOFORK_CONNECT"
FORK = "AUDIOFORK_CONNECT_ID"
IS_OVER = ("STOPPED", "FAILED")
LED = Place("audiofork", "led", "1")
LEG_NAMES = "AudioSocket/"
# The extensions where channels are that have, or had, their server; and those that wait for the
# first time.
TALKS, POLLS = "connect", "start"
# A leg that waits for its call brings nothing. If nobody bridges or ends it, it goes by itself.
SPARE_WAITS_S = "30"

# One leg, which carries both directions: what the party says comes over it, and what the server
# says goes over it. Asterisk sends frames only while the party does.
_IN = {Direction.IN: (LegPart.IN,)}
DIAL_WAY = Way("connect", "by Dial()", Connects.DIAL, _IN, keeps_time=False, rules=())


class ConnectTap:
    """Implements `Tap`.

    Args:
        ami: The connection to Asterisk.
        relay: Knows the addresses that legs must connect to.
    """

    name = "connect"
    early_hangup_detail = ""

    def __init__(self, ami: Ami, relay: LegAddresses) -> None:
        self._ami = ami
        self._relay = relay

    def name_leg(self, fork_id: str, part: LegPart, *, anew: bool) -> str:  # noqa: ARG002 (of Tap)
        # No channel has the plain one: such a leg is an end of the call itself.
        return leg_name(fork_id, *((secrets.token_hex(4),) if anew else ()))

    async def start(self, leg: LegOrder) -> None:
        where = target(leg, self._relay.address_of(leg.fork_id))
        try:
            if leg.is_spare:
                spare = originate(where, leg.leg_id, "Wait", SPARE_WAITS_S)
                await self._ami.action("Originate", spare, action_id=leg.leg_id)
                return
            await self._ami.action(
                "Setvar", [("Channel", leg.uniqueid), ("Variable", VARIABLE), ("Value", where)]
            )
            if leg.leads:
                await self._lead(leg)
        except AmiActionFailed as exc:
            if exc.message == NO_SUCH_CHANNEL:
                raise NoSuchChannel from exc
            raise LegRefused(str(exc)) from exc
        except AmiError as exc:
            raise LegUncertain(str(exc)) from exc

    async def _lead(self, leg: LegOrder) -> None:
        """Take the channel out of the dialplan, to the extension that connects it."""
        place = [("Context", LED.context), ("Exten", LED.exten), ("Priority", LED.priority)]
        await self._ami.action("Redirect", [("Channel", leg.channel), *place])

    def owns(self, name: str, uniqueid: str) -> bool:  # noqa: ARG002 (of Tap)
        return False  # it ends with its call


@dataclass(frozen=True, slots=True)
class Server:
    """What a channel has of its server.

    Attributes:
        fork_id: The fork that its server has, or that it waits for; empty: none, as it went on or
            was taken elsewhere.
        polls: Whether it has had no leg yet, and waits to be told of one.
        peers: Whom it is bridged with; empty: nobody.
    """

    fork_id: str = ""
    polls: bool = False
    peers: str = ""

    def is_of(self, fork_id: str) -> bool:
        """Return whether it is the server of a fork."""
        return self.fork_id == fork_id


async def server_of(channels: Channels, uniqueid: str, uuids: Collection[str] = ()) -> Server:
    """Return what a channel has of its server.

    Somebody who takes it elsewhere may leave its variables as they are, or its place, or both: then
    it is bridged with somebody else.

    Args:
        channels: Asks Asterisk.
        uniqueid: The channel.
        uuids: What the legs present that it may be bridged with; empty: that is not known.

    Raises: as `Channels`.
    """
    asked = (STATUS, FORK, "CHANNEL(context)", "CHANNEL(exten)", "BRIDGEPEER")
    status, fork_id, context, exten, peers = await channels.at_once(uniqueid, asked)
    if status in IS_OVER or context != LED.context or exten not in (TALKS, POLLS):
        return Server()
    if not peers:  # who is parked is in a bridge by himself
        is_elsewhere = await channels.is_bridged(uniqueid)
    else:
        is_elsewhere = not peers.startswith(LEG_NAMES) or not peers.endswith(tuple(uuids) or "")
    return Server() if is_elsewhere else Server(fork_id, exten == POLLS, peers)


def target(leg: LegOrder, address: Address) -> str:
    """Return what Dial() takes. AudioSocket() would not do: it wants a call that is answered."""
    codec = "slin" if leg.sample_rate == 8000 else f"slin{leg.sample_rate // 1000}"
    return f"AudioSocket/{address}/{leg.uuid}/c({codec})"
