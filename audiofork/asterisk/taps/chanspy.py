"""The ChanSpy tap: originates an AudioSocket channel that runs ChanSpy. It needs only AMI."""

from __future__ import annotations

import secrets

from audiofork.asterisk.ami import Ami
from audiofork.asterisk.taps.base import LegAddresses, LegOrder, dials, is_leg, leg_name
from audiofork.config import Address
from audiofork.errors import AmiActionFailed, AmiError, LegRefused, LegUncertain
from audiofork.link.messages import LegPart

ORIGINATE_TIMEOUT_MS = 5000

# q: no beep; u: the target is given by its uniqueid; E: end with the target; S: end when it is
# gone; l: the long queue, which absorbs jitter. o: only in. D: in and out interleaved. D is wrong
# if the call has wideband audio: it takes only the first 160 samples of each frame.
OPTIONS = {LegPart.IN: "quolES", LegPart.PAIRS: "qulDES", LegPart.MIX: "qulES"}


class ChanSpyTap:
    """Implements `Tap`.

    Args:
        ami: The connection to Asterisk.
        relay: Knows the addresses that legs must connect to.
    """

    name = "chanspy"
    early_hangup_detail = ""  # a failed OriginateResponse reports it

    def __init__(self, ami: Ami, relay: LegAddresses) -> None:
        self._ami = ami
        self._relay = relay

    def name_leg(self, fork_id: str, part: LegPart, *, anew: bool) -> str:  # noqa: ARG002 (of Tap)
        # A leg without media cannot end, so an earlier leg of the fork may still have the plain id.
        return leg_name(fork_id, *((secrets.token_hex(4),) if anew else ()))

    async def start(self, leg: LegOrder) -> None:
        headers = originate_headers(
            leg.leg_id,
            self._relay.address_of(leg.fork_id),
            leg.uuid,
            "ChanSpy",
            spy_data(leg.uniqueid, leg.part, whispers=leg.heard_by is not None),
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


def spy_data(uniqueid: str, part: LegPart, *, whispers: bool = False) -> str:
    """Return the arguments of ChanSpy for a part of a channel's audio."""
    # The uniqueid, not the name: Asterisk refuses an Originate whose data contains words such as
    # DB or FILE, and a name may contain them. w: whisper what the leg sends to the target. Only if
    # needed, because some versions of Asterisk have faults there (WHISPER_LEAKS).
    return f"{uniqueid},{OPTIONS[part]}" + ("w" if whispers else "")


def originate_headers(
    leg_id: str, address: Address, presents: str, application: str, data: str
) -> list[tuple[str, str]]:
    """Return the headers of the Originate of a leg: an AudioSocket channel, at 8000 Hz.

    Args:
        leg_id: Its uniqueid.
        address: The address that it connects to.
        presents: The UUID that it presents there.
        application: The application that it runs.
        data: The arguments of the application.
    """
    return originate(f"AudioSocket/{address}/{presents}/c(slin)", leg_id, application, data)


def originate(channel: str, channel_id: str, application: str, data: str) -> list[tuple[str, str]]:
    """Return the headers of the Originate of a channel that leaves no call detail record.

    Args:
        channel: What to dial.
        channel_id: The channel's uniqueid.
        application: The application that it runs.
        data: The arguments of the application.
    """
    return [
        ("Channel", channel),
        ("ChannelId", channel_id),
        ("Application", application),
        ("Data", data),
        ("Timeout", str(ORIGINATE_TIMEOUT_MS)),
        ("Variable", "CDR_PROP(disable)=1"),
        # Without this, the whole AMI session waits until the leg answers.
        ("Async", "true"),
    ]
