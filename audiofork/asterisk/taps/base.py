"""What every tap offers: legs that connect to the relay and bring the channel's audio."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from audiofork.asterisk.taps.ways import Connects
from audiofork.config import Address
from audiofork.link.messages import LegPart

LEG_PREFIX = "audiofork-"
_FORK_ID_LENGTH = 36


class LegAddresses(Protocol):
    """Where Asterisk brings legs: what a tap has to know of the relay."""

    @property
    def addresses(self) -> Sequence[Address]:
        """All of them."""

    def address_of(self, fork_id: str) -> Address:
        """Return the one for the legs of a fork."""


@dataclass(frozen=True, slots=True)
class LegOrder:
    """A leg that is wanted.

    Attributes:
        leg_id: From `name_leg`: its channel's uniqueid.
        uuid: What it shall present to the relay; for Asterisk alone, in no log.
        fork_id: The fork that it is for.
        part: What it shall bring.
        uniqueid: The channel to listen to.
        connects: How it gets to the relay.
        sample_rate: Of the audio, in Hz.
        speaks: Whether what the relay sends is to be heard by the channel's party.
    """

    leg_id: str
    uuid: str = field(repr=False)
    fork_id: str
    part: LegPart
    uniqueid: str
    connects: Connects
    sample_rate: int
    speaks: bool


class Tap(Protocol):
    """A way to get legs. A leg is hung up by the relay, which closes its connection.

    Attributes:
        name: As [asterisk] tap and `list` name it.
        early_hangup_detail: Failure text for a leg that is hung up before it connected; empty if
            another event reports it.
    """

    name: str
    early_hangup_detail: str

    def name_leg(self, fork_id: str, part: LegPart, *, anew: bool) -> str:
        """Return the id of a leg that is to be asked for.

        Args:
            anew: There has been such a leg for this fork, which may still hold its own id.
        """

    async def start(self, leg: LegOrder) -> None:
        """Ask Asterisk for a leg.

        Raises:
            NoSuchChannel: The channel to listen to is gone.
            LegRefused: Asterisk refuses, or cannot be asked.
            LegUncertain: Asterisk did not answer: the leg comes in time or it does not.
        """

    def owns(self, name: str, uniqueid: str) -> bool:
        """Return whether a channel is a leg of this daemon, of this run or an earlier one.

        Another daemon may share the Asterisk.
        """


def leg_name(fork_id: str, *more: str) -> str:
    """Return the id of a leg."""
    return "-".join((LEG_PREFIX + fork_id, *more))


def fork_id_of(leg_id: str) -> str:
    """Return the fork of a leg's id, or nothing."""
    if not leg_id.startswith(LEG_PREFIX):
        return ""
    return leg_id.removeprefix(LEG_PREFIX)[:_FORK_ID_LENGTH]


def is_leg(uniqueid: str) -> bool:
    """Return whether a channel is a leg of ours or of another daemon."""
    return uniqueid.startswith(LEG_PREFIX)


def is_snoop_leg(name: str, uniqueid: str, app: str) -> bool:
    """Return whether a channel is a leg by ARI of the daemon that has a Stasis application."""
    # To match the whole: another daemon's application may be named as ours and some more.
    fork_and_app = leg_name(".{36}", re.escape(app))
    pattern = fork_and_app + "-(in|out)(-[0-9a-f]{8})?"
    return name.startswith("Snoop/") and re.fullmatch(pattern, uniqueid) is not None


def dials(name: str, addresses: Iterable[Address]) -> bool:
    """Return whether a channel is an AudioSocket connection to one of some addresses."""
    return name.startswith(tuple(f"AudioSocket/{one}-" for one in addresses))
