"""The snoop tap: legs by ARI, one for each side, complete under jitter and silence, at any rate.

ARI creates a snoop channel, which enters our Stasis application. Then it is sent to the context of
extensions_audiofork.conf that connects it to the relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from audiofork.asterisk.ari import Ari, segment
from audiofork.asterisk.taps.base import LegAddresses, LegOrder, is_snoop_leg, leg_name
from audiofork.asterisk.taps.ways import CONTEXT, EXTENSIONS, Audience, Connects
from audiofork.config import AriConfig
from audiofork.errors import (
    AriError,
    AriLoginRefused,
    AriRefused,
    LegRefused,
    LegUncertain,
    NoSuchChannel,
)
from audiofork.link.messages import LegPart

VARIABLE = "AUDIOFORK_LEG"
# A channel usually enters the application within 2 ms.
ENTER_TIMEOUT_S = 3.0
# How long a leg waits for the event connection to ARI, if that is down.
READY_TIMEOUT_S = 5.0

_CHANNEL_GONE = 404
# What the party hears is the channel's out; what its peer hears is the channel's in.
_WHISPERS = {Audience.PARTY: "out", Audience.PEER: "in"}


class SnoopTap:
    """Implements `Tap`.

    Args:
        ari: The connection to ARI.
        config: Contains the name of our application.
        relay: Knows the addresses that legs must connect to.
    """

    name = "snoop"
    early_hangup_detail = (
        f"Asterisk ended the leg before it connected: the context {CONTEXT} of "
        "extensions_audiofork.conf is missing or old, or Asterisk cannot reach [audiosocket] "
        "advertise; audiofork check tells"
    )

    def __init__(self, ari: Ari, config: AriConfig, relay: LegAddresses) -> None:
        self._ari = ari
        self._app = config.app
        self._relay = relay

    @property
    def missing(self) -> str:
        """Why the tap cannot make legs now; empty: it can."""
        return "" if self._ari.ready else self._ari.status

    async def settle(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` seconds for the end of the first attempt to connect to ARI."""
        await self._ari.settled(timeout_s)

    def name_leg(self, fork_id: str, part: LegPart, *, anew: bool) -> str:
        suffix = (secrets.token_hex(4),) if anew else ()
        return leg_name(fork_id, self._app, part.value, *suffix)

    async def start(self, leg: LegOrder) -> None:
        try:
            await self._ari.wait_ready(READY_TIMEOUT_S)
            with self._ari.starting(leg.leg_id) as entered:
                await self._snoop(leg)
                await self._lead(leg, entered)
        except (AriRefused, AriLoginRefused) as exc:
            raise LegRefused(f"ARI: {exc}") from exc
        except AriError as exc:
            raise LegUncertain(f"ARI: {exc}") from exc

    async def _lead(self, leg: LegOrder, entered: asyncio.Future[None]) -> None:
        """Send the new channel from our application to the relay; hang it up if that fails.

        Raises:
            LegRefused: It did not enter our application in time.
            AriError: A request failed.
        """
        try:
            async with asyncio.timeout(ENTER_TIMEOUT_S):
                await entered  # Asterisk refuses the other requests before that
            await self._tell_where(leg)
            await self._send_on(leg)
        except TimeoutError:
            await self._discard(leg)
            raise LegRefused(f"ARI: the leg did not enter {self._app} in time") from None
        except AriError:
            await self._discard(leg)
            raise

    async def _discard(self, leg: LegOrder) -> None:
        """Hang up a channel that would otherwise stay in the application for ever."""
        with contextlib.suppress(AriError):  # it may be gone; else the next start hangs it up
            await self._ari.delete(f"/channels/{segment(leg.leg_id)}")

    async def _snoop(self, leg: LegOrder) -> None:
        """Create the snoop channel of the target.

        Raises:
            NoSuchChannel: The target does not exist any more.
            AriError: The request failed.
        """
        path = f"/channels/{segment(leg.uniqueid)}/snoop/{segment(leg.leg_id)}"
        whisper = {"whisper": _WHISPERS[leg.heard_by]} if leg.heard_by is not None else {}
        try:
            await self._ari.post(path, spy=leg.part.value, app=self._app, **whisper)
        except AriRefused as exc:
            if exc.status == _CHANNEL_GONE:
                raise NoSuchChannel from exc
            raise

    async def _tell_where(self, leg: LegOrder) -> None:
        """Set the channel variable that tells the dialplan where to connect the leg."""
        address = self._relay.address_of(leg.fork_id)
        if leg.connects is Connects.DIAL:
            codec = "slin" if leg.sample_rate == 8000 else f"slin{leg.sample_rate // 1000}"
            target = f"AudioSocket/{address}/{leg.uuid}/c({codec})"
        else:
            target = f"{leg.uuid},{address}"
        await self._ari.post(
            f"/channels/{segment(leg.leg_id)}/variable", variable=VARIABLE, value=target
        )

    async def _send_on(self, leg: LegOrder) -> None:
        """Send the channel to the dialplan; it leaves the application."""
        await self._ari.post(
            f"/channels/{segment(leg.leg_id)}/continue",
            context=CONTEXT,
            extension=EXTENSIONS[leg.connects],
            priority="1",
        )

    def owns(self, name: str, uniqueid: str) -> bool:
        return is_snoop_leg(name, uniqueid, self._app)
