"""The interface of taps: they request legs, which connect to the relay with a channel's audio."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from audiofork.asterisk.taps.ways import Audience, Connects
from audiofork.config import Address
from audiofork.link.messages import LegPart

LEG_PREFIX = "audiofork-"
_FORK_ID_LENGTH = 36


class LegAddresses(Protocol):
    """The addresses of the relay that legs connect to; a tap knows nothing else of the relay."""

    @property
    def addresses(self) -> Sequence[Address]:
        """All addresses."""

    def address_of(self, fork_id: str) -> Address:
        """Return the address for the legs of a fork."""


@dataclass(frozen=True, slots=True)
class LegOrder:
    """An order for a leg.

    Attributes:
        leg_id: The uniqueid of its channel, from `name_leg`.
        uuid: What it must present to the relay; only Asterisk may know it, so no log shows it.
        fork_id: The fork that it is for.
        part: What it must bring.
        uniqueid: The channel to copy.
        connects: How it connects to the relay.
        sample_rate: The sample rate in Hz.
        heard_by: PARTY or PEER: who must hear what the relay sends; None: nobody.
        channel: The name of the channel.
        leads: Whether the channel has to be taken to where it connects to the relay.
        is_spare: Whether the channel has another leg, in whose place it will be bridged with this
            one; of calls whose other party is the server.
    """

    leg_id: str
    uuid: str = field(repr=False)
    fork_id: str
    part: LegPart
    uniqueid: str
    connects: Connects
    sample_rate: int
    heard_by: Audience | None = None
    channel: str = ""
    leads: bool = False
    is_spare: bool = False


class Tap(Protocol):
    """Requests legs from Asterisk. The relay hangs up a leg: it closes the leg's connection.

    Attributes:
        name: The name in [asterisk] tap and in `list`.
        early_hangup_detail: Failure text for a leg that is hung up before it connected; empty if
            another event reports it.
    """

    name: str
    early_hangup_detail: str

    def name_leg(self, fork_id: str, part: LegPart, *, anew: bool) -> str:
        """Return the id for a new leg.

        Args:
            fork_id: The fork that it is for.
            part: What it must bring.
            anew: Whether the fork had such a leg before, which may still exist with its own id.
        """

    async def start(self, leg: LegOrder) -> None:
        """Request a leg from Asterisk.

        Raises:
            NoSuchChannel: The channel to copy is gone.
            LegRefused: Asterisk has refused the leg.
            LegUncertain: No answer came, or there is no connection; the leg may still connect.
        """

    def owns(self, name: str, uniqueid: str) -> bool:
        """Return whether a channel is a leg of this daemon, from this run or an earlier one.

        Other daemons may use the same Asterisk.
        """


def leg_name(fork_id: str, *more: str) -> str:
    """Return the id of a leg."""
    return "-".join((LEG_PREFIX + fork_id, *more))


def fork_id_of(leg_id: str) -> str:
    """Return the fork id in a leg's id; empty if it is not the id of a leg."""
    if not leg_id.startswith(LEG_PREFIX):
        return ""
    return leg_id.removeprefix(LEG_PREFIX)[:_FORK_ID_LENGTH]


def is_leg(uniqueid: str) -> bool:
    """Return whether a channel is a leg, of this daemon or another one."""
    return uniqueid.startswith(LEG_PREFIX)


def is_snoop_leg(name: str, uniqueid: str, app: str) -> bool:
    """Return whether a channel is a leg by ARI of the daemon with this Stasis application."""
    # Match the whole id: the application of another daemon may have a longer name.
    fork_and_app = leg_name(".{36}", re.escape(app))
    pattern = fork_and_app + "-(in|out)(-[0-9a-f]{8})?"
    return name.startswith("Snoop/") and re.fullmatch(pattern, uniqueid) is not None


def dials(name: str, addresses: Iterable[Address]) -> bool:
    """Return whether a channel is an AudioSocket connection to one of these addresses."""
    return name.startswith(tuple(f"AudioSocket/{one}-" for one in addresses))
