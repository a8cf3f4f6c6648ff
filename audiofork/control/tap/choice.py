"""Which tap a fork's legs are had by, and at which sample rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from audiofork.control.channels import Channels
from audiofork.control.tap.base import Tap, is_leg
from audiofork.control.tap.chanspy import ChanSpyTap
from audiofork.errors import RequestRefused

NARROW_RATE = 8000
CHANNELS_OWN_RATE = 0
# A daemon that has just started waits so long for its first attempt to connect to ARI.
FIRST_LINK_TIMEOUT_S = 1.0

_SET_ARI = "set [ari] and [asterisk] tap in audiofork.ini; `audiofork check` tells how"


class ByAri(Tap, Protocol):
    """A tap that depends on the link to ARI: `SnoopTap`, whose module costs memory."""

    @property
    def missing(self) -> str:
        """Why no leg can be had at the moment; empty: it can."""

    async def settle(self, timeout_s: float) -> None:
        """Wait until the first attempt to connect to ARI has come to an end."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a fork gets.

    Attributes:
        tap: Where its legs come from.
        sample_rate: Of its audio, in Hz.
        note: What is not as it was wished for; empty: all is.
    """

    tap: Tap
    sample_rate: int
    note: str = ""


class Taps:
    """All taps there are, and the choice between them.

    Args:
        chanspy: The tap that is always there.
        snoop: The tap by ARI; None where that is not configured, or not wanted.
        channels: Tells a channel's own rate.
        required: Refuse forks while the tap by ARI is not there.

    Attributes:
        sample_rate: Of forks that wish for none, in Hz; 0: the channel's own. May be set anew.
    """

    def __init__(
        self,
        chanspy: ChanSpyTap,
        snoop: ByAri | None,
        channels: Channels,
        *,
        required: bool = False,
        sample_rate: int = NARROW_RATE,
    ) -> None:
        self._chanspy = chanspy
        self._snoop = snoop
        self._required = required
        self._has_settled = False
        self._channels = channels
        self.sample_rate = sample_rate

    async def settle(self) -> None:
        """Wait a moment, once, for a link that is just being made."""
        if self._snoop is not None and not self._has_settled:
            await self._snoop.settle(FIRST_LINK_TIMEOUT_S)
            self._has_settled = True

    async def choose(self, uniqueid: str, wished_rates: Sequence[int]) -> Choice:
        """Choose for a fork that begins.

        Args:
            uniqueid: Its channel.
            wished_rates: Rates in Hz, the best first, 0 for the channel's own; none: as configured.

        Raises:
            RequestRefused: What is wished for cannot be had; the text says what to configure.
            NoSuchChannel, AmiError: Its own rate cannot be asked for.
        """
        await self.settle()
        missing = self._missing()
        if missing and self._required:
            raise RequestRefused(f"[asterisk] tap = snoop: {missing}")
        rates = [await self._rate(uniqueid, rate) for rate in wished_rates or (self.sample_rate,)]
        if not missing and self._snoop is not None:
            return Choice(self._snoop, rates[0])
        if NARROW_RATE not in rates:
            raise RequestRefused(f"{rates[0]} Hz needs the snoop tap: {missing}")
        note = f"{NARROW_RATE} Hz in place of {rates[0]}: {missing}"
        return Choice(self._chanspy, NARROW_RATE, note if rates[0] != NARROW_RATE else "")

    def _missing(self) -> str:
        """Return why legs cannot be had by ARI; empty: they can."""
        if self._snoop is None:
            return _SET_ARI
        return self._snoop.missing

    async def _rate(self, uniqueid: str, wished: int) -> int:
        if wished == CHANNELS_OWN_RATE:
            return await self._channels.sample_rate(uniqueid)
        return wished

    def is_leg(self, name: str, uniqueid: str) -> bool:
        """Tell whether a channel is a leg of ours or of another daemon, or a part of one."""
        return is_leg(uniqueid) or self._chanspy.dials_us(name)

    def left_behind(self, present: Mapping[str, str], keep: Iterable[str]) -> list[str]:
        """Return the uniqueids of our legs that nobody wants any more.

        Args:
            present: The names of all channels, by uniqueid.
            keep: Ids of the legs that are wanted.
        """
        wanted = set(keep)
        taps = [tap for tap in (self._chanspy, self._snoop) if tap is not None]
        return [
            uniqueid
            for uniqueid, name in present.items()
            if uniqueid not in wanted and any(tap.owns(name, uniqueid) for tap in taps)
        ]
