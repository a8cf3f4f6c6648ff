"""Chooses the tap and the sample rate of a new fork, by the table in `ways`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from audiofork.asterisk.channels import Channels
from audiofork.asterisk.taps.base import Tap, is_leg
from audiofork.asterisk.taps.chanspy import ChanSpyTap
from audiofork.asterisk.taps.connect import DIAL_WAY, ConnectTap
from audiofork.asterisk.taps.ways import (
    NARROW_RATE,
    Site,
    Way,
    Wish,
    best_way,
    way_named,
    why_none,
    why_not_by_ari,
)
from audiofork.asterisk.versions import AUDIOSOCKET_RATES, WHISPER_LEAKS, Version, releases
from audiofork.config import AsteriskConfig
from audiofork.errors import Refusal, RequestRefused
from audiofork.link.messages import Direction, HeldFork, LegPart

CHANNELS_OWN_RATE = 0
# How long a daemon that has just started waits for its first attempt to connect to ARI.
FIRST_CONNECT_TIMEOUT_S = 1.0

SET_ARI = "set up [ari] (audiofork check says how)"
NOT_BY_ARI = "[asterisk] tap = chanspy rules ARI out"
NOT_BY_CHANSPY = "is ruled out ([asterisk] tap = snoop); audiofork check says how to repair ARI"


class ByAri(Tap, Protocol):
    """A tap that depends on the connection to ARI: `SnoopTap`, whose module costs memory."""

    @property
    def missing(self) -> str:
        """Why the tap cannot make legs now; empty: it can."""

    async def settle(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` seconds for the end of the first attempt to connect to ARI."""


class Connected(Protocol):
    """Knows the version of Asterisk: `Ami`."""

    @property
    def version(self) -> Version:
        """The version of Asterisk."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The tap, way and sample rate of a fork.

    Attributes:
        tap: Requests its legs.
        way: What the legs bring, and how.
        sample_rate: The sample rate in Hz.
        note: What differs from the wish, or is a known fault, for people; empty if nothing.
    """

    tap: Tap
    way: Way
    sample_rate: int
    note: str = ""


class Taps:
    """Chooses the tap (ChanSpy or ARI snoop) and the sample rate of a new fork.

    Args:
        asterisk: Knows the version of Asterisk.
        chanspy: The tap that needs only AMI.
        snoop: The tap by ARI; None if it is not configured, or not allowed.
        connect: The tap of connected forks.
        channels: Asks Asterisk what audio a call has.
        config: Which taps are allowed, and whether the site has only narrowband audio.
        sample_rate: Sample rate in Hz of forks without option L; 0: the channel's own.

    Attributes:
        narrowband: Whether the configuration says that all audio of the site is at 8000 Hz.
        sample_rate: As the argument; may be changed for later forks.
    """

    def __init__(
        self,
        asterisk: Connected,
        chanspy: ChanSpyTap,
        snoop: ByAri | None,
        connect: ConnectTap,
        channels: Channels,
        config: AsteriskConfig,
        sample_rate: int = NARROW_RATE,
    ) -> None:
        self._asterisk = asterisk
        self._chanspy = chanspy
        self._snoop = snoop
        self._connect = connect
        self._config = config
        self.narrowband = config.chanspy_pairs == "narrowband"
        self._has_settled = False
        self._channels = channels
        self.sample_rate = sample_rate

    async def settle(self) -> None:
        """Wait, only once, up to FIRST_CONNECT_TIMEOUT_S for the first connect to ARI."""
        if self._snoop is not None and not self._has_settled:
            await self._snoop.settle(FIRST_CONNECT_TIMEOUT_S)
            self._has_settled = True

    async def choose(self, uniqueid: str, wish: Wish, wished_rates: Sequence[int] = ()) -> Choice:
        """Choose the tap and sample rate of a new fork.

        Args:
            uniqueid: Its channel.
            wish: What it needs; the sample rate in it is ignored.
            wished_rates: Rates in Hz, the preferred one first, 0 for the channel's own; empty for
                the configured rate.

        Raises:
            RequestRefused: No tap can provide correct audio; the text says what to configure.
            NoSuchChannel: The channel does not exist.
            AmiError: Asterisk cannot be asked.
        """
        await self.settle()
        site = self.site()
        rates = [await self._rate(uniqueid, rate) for rate in wished_rates or (self.sample_rate,)]
        for rate in rates:
            wish = replace(wish, sample_rate=rate)
            way = best_way(wish, site)
            if way is not None and LegPart.PAIRS in way.parts[wish.direction]:
                way = await self._unless_wide(uniqueid, way, wish, site)
            if way is not None:
                return self._choice(way, wish, rates[0], site)
        text = why_none(replace(wish, sample_rate=rates[0]), site)
        raise RequestRefused(text, Refusal.NO_TAP)

    async def connecting(self, uniqueid: str, wished_rates: Sequence[int] = ()) -> Choice:
        """Choose the way and the sample rate of a connected fork.

        Args:
            uniqueid: Its channel.
            wished_rates: As for `choose`.

        Raises:
            NoSuchChannel: The channel does not exist.
            AmiError: Asterisk cannot be asked.
            RequestRefused: This Asterisk can carry none of the rates to a connected server.
        """
        version = self._asterisk.version
        rates = [await self._rate(uniqueid, rate) for rate in wished_rates or (self.sample_rate,)]
        for rate in rates:
            if rate == NARROW_RATE or version.has(AUDIOSOCKET_RATES):
                return Choice(self._connect, DIAL_WAY, rate)
        raise RequestRefused(
            f"{rates[0]} Hz: a connected server has 8000 Hz alone on Asterisk {version} (more from "
            f"{releases(AUDIOSOCKET_RATES)} on): leave L out, or write L({rates[0]},8000)",
            Refusal.NO_TAP,
        )

    def made_before(self, held: HeldFork, direction: Direction) -> Choice | None:
        """Return what an earlier run of the daemon has chosen; None: it is not to be had any more.

        Args:
            held: The fork.
            direction: What its server gets.
        """
        if held.way == DIAL_WAY.name and DIAL_WAY.parts.get(direction) == held.legs:
            return Choice(self._connect, DIAL_WAY, held.sample_rate)
        way = way_named(held.way, direction, held.legs)
        if way is None or (way.tap == "snoop" and self._snoop is None):
            return None
        return Choice(self._tap_of(way), way, held.sample_rate)

    def _tap_of(self, way: Way) -> Tap:
        return self._snoop if self._snoop is not None and way.tap == "snoop" else self._chanspy

    async def _unless_wide(self, uniqueid: str, pairs: Way, wish: Wish, site: Site) -> Way:
        """Return the way of pairs; another way if the call has wideband audio.

        Raises:
            RequestRefused: The call has wideband audio, and there is no other way.
        """
        wide = await self.wide(uniqueid)
        if not wide:
            return pairs
        other = best_way(wish, replace(site, narrowband=False))
        if other is None:
            raise RequestRefused(self.why_wide(wish, wide), Refusal.NO_TAP)
        return other

    def _choice(self, way: Way, wish: Wish, wished_rate: int, site: Site) -> Choice:
        notes = [way.flaw_on(site.version)]
        if wish.speaks and site.version.has(WHISPER_LEAKS):
            notes.append(f"beeps leak memory while the party hears nothing on {site.version}")
        if wish.sample_rate != wished_rate:
            why = why_not_by_ari(replace(wish, sample_rate=wished_rate), site)
            notes.append(f"{wish.sample_rate} Hz in place of {wished_rate}: {why}")
        return Choice(self._tap_of(way), way, wish.sample_rate, "; ".join(filter(None, notes)))

    def site(self) -> Site:
        """Return which taps are available now."""
        no_ari = self._snoop.missing if self._snoop is not None else SET_ARI
        return site_of(self._config, self._asterisk.version, no_ari)

    async def wide(self, uniqueid: str) -> str:
        """Return a wideband format of a call, for people; empty if it has none."""
        return await self._channels.wide_format(uniqueid)

    def why_wide(self, wish: Wish, wide: str) -> str:
        """Return why ChanSpy cannot keep in and out apart in a call with wideband audio."""
        return (
            f"the call has wideband audio ({wide}), though [asterisk] chanspy_pairs = narrowband: "
            f"ChanSpy gets in and out wrong; {why_not_by_ari(wish, self.site())}"
        )

    async def _rate(self, uniqueid: str, wished: int) -> int:
        if wished == CHANNELS_OWN_RATE:
            return await self._channels.sample_rate(uniqueid)
        return wished

    def is_leg(self, name: str, uniqueid: str) -> bool:
        """Return whether a channel is a leg of any daemon, or part of a leg of this daemon."""
        return is_leg(uniqueid) or self._chanspy.dials_us(name)

    def stray_legs(self, present: Mapping[str, str], keep: Iterable[str]) -> list[str]:
        """Return the uniqueids of legs of this daemon that no fork needs.

        Args:
            present: The names of all channels, by uniqueid.
            keep: Ids of the legs that forks need.
        """
        wanted = set(keep)
        taps = [tap for tap in (self._chanspy, self._snoop) if tap is not None]
        return [
            uniqueid
            for uniqueid, name in present.items()
            if uniqueid not in wanted and any(tap.owns(name, uniqueid) for tap in taps)
        ]


def site_of(config: AsteriskConfig, version: Version, no_ari: str) -> Site:
    """Return which taps are available.

    Args:
        config: Which taps are allowed, and whether the site has only narrowband audio.
        version: The version of Asterisk.
        no_ari: Why ARI cannot be used even if it is allowed; empty if it can.
    """
    return Site(
        version,
        NOT_BY_ARI if config.tap == "chanspy" else no_ari,
        NOT_BY_CHANSPY if config.tap == "snoop" else "",
        config.chanspy_pairs == "narrowband",
    )
