"""What every tap offers: a leg that connects with the fork's UUID and sends the channel's audio."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Protocol

from audiofork.config import Address
from audiofork.model import Direction


class LegAddresses(Protocol):
    """Where Asterisk brings legs: what a tap has to know of the relay."""

    @property
    def addresses(self) -> Sequence[Address]:
        """All of them."""

    def address_of(self, fork_id: str) -> Address:
        """Return the one for the leg of a fork."""


class Tap(Protocol):
    """A way to get legs. A leg is hung up by the relay, which closes its connection."""

    def name_leg(self, fork_id: str, *, anew: bool) -> str:
        """Return the id of a leg that is to be asked for; its channel's uniqueid.

        Args:
            anew: There has been a leg for this fork, which may still hold its own id.
        """

    async def start(
        self, leg_id: str, fork_id: str, uniqueid: str, direction: Direction, *, speaks: bool
    ) -> None:
        """Ask Asterisk for a leg.

        Args:
            leg_id: From `name_leg`; also the ActionID.
            fork_id: The UUID that the leg shall present to the relay.
            uniqueid: The channel to listen to.
            direction: in: mono frames, none while the party sends none. Else: pairs of in and
                out, 50 a second.
            speaks: Whether what the relay sends is to be heard by the channel's party.

        Raises:
            AmiError: Asterisk cannot be asked, or refuses.
        """

    async def sweep(self, present: Mapping[str, str], keep: Container[str]) -> int:
        """Hang up the legs that an earlier run left behind; return how many.

        Args:
            present: The names of all channels, by uniqueid.
            keep: Ids of the legs that are wanted.

        Raises:
            AmiError: Asterisk cannot be asked.
        """

    def fork_id_of(self, action_id: str) -> str:
        """Return the fork of a leg's id, or nothing."""

    def is_leg(self, uniqueid: str) -> bool:
        """Tell whether a channel is a leg of ours or of another daemon."""
