"""The ChanSpy tap: an originated AudioSocket leg that runs ChanSpy. It needs nothing but AMI."""

from __future__ import annotations

import secrets

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.taps.base import LegAddresses, LegOrder, dials, is_leg, leg_name
from audiofork.config import Address
from audiofork.errors import AmiActionFailed, AmiError, LegRefused, LegUncertain
from audiofork.link.messages import LegPart

ORIGINATE_TIMEOUT_MS = 5000

# q: no beep; u: the target is given by its uniqueid; E: end with the target; S: end when it is
# gone; l: the long queue, which rides out jitter. o: in alone. D: in and out side by side, which
# is wrong where the call has wideband audio: of each frame its first 160 samples alone are taken.
OPTIONS = {LegPart.IN: "quolES", LegPart.PAIRS: "qulDES", LegPart.MIX: "qulES"}


class ChanSpyTap:
    """Implements `Tap`.

    Args:
        ami: The link to Asterisk.
        relay: Knows where Asterisk shall bring the audio.
    """

    name = "chanspy"
    early_hangup_detail = ""  # a failed OriginateResponse reports it

    def __init__(self, ami: Ami, relay: LegAddresses) -> None:
        self._ami = ami
        self._relay = relay

    def name_leg(self, fork_id: str, part: LegPart, *, anew: bool) -> str:  # noqa: ARG002 (of Tap)
        # A leg without media cannot end, so a fork's first one may still be there.
        return leg_name(fork_id, *((secrets.token_hex(4),) if anew else ()))

    async def start(self, leg: LegOrder) -> None:
        headers = originate_headers(
            leg.leg_id,
            self._relay.address_of(leg.fork_id),
            leg.uuid,
            "ChanSpy",
            spy_data(leg.uniqueid, leg.part, speaks=leg.speaks),
        )
        try:
            await self._ami.action("Originate", headers, action_id=leg.leg_id)
        except AmiActionFailed as exc:
            raise LegRefused(str(exc)) from exc
        except AmiError as exc:
            raise LegUncertain(str(exc)) from exc

    def owns(self, name: str, uniqueid: str) -> bool:
        return is_leg(uniqueid) and self.dials_us(name)

    def dials_us(self, name: str) -> bool:
        """Return whether a channel is an AudioSocket connection to this daemon."""
        return dials(name, self._relay.addresses)


def spy_data(uniqueid: str, part: LegPart, *, speaks: bool = False) -> str:
    """Return the arguments of the ChanSpy that brings a part of a channel's audio."""
    # The uniqueid, not the name: Asterisk refuses an Originate whose data contains such words as
    # DB or FILE, and a name may. w: what the leg sends is whispered to the target. Never unless it
    # is needed: some versions of Asterisk have faults there.
    return f"{uniqueid},{OPTIONS[part]}" + ("w" if speaks else "")


def originate_headers(
    leg_id: str, address: Address, presents: str, application: str, data: str
) -> list[tuple[str, str]]:
    """Return the headers of the Originate of a leg: an AudioSocket channel, at 8000 Hz.

    Args:
        leg_id: Its uniqueid.
        address: Where it connects to.
        presents: The UUID that it sends there.
        application: What it runs, with `data`.
    """
    return [
        ("Channel", f"AudioSocket/{address}/{presents}/c(slin)"),
        ("ChannelId", leg_id),
        ("Application", application),
        ("Data", data),
        ("Timeout", str(ORIGINATE_TIMEOUT_MS)),
        ("Variable", "CDR_PROP(disable)=1"),
        # Otherwise the whole AMI session waits for the leg to answer.
        ("Async", "true"),
    ]
