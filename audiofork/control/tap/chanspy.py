"""The ChanSpy tap: an originated AudioSocket leg that runs ChanSpy. It needs nothing but AMI."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Container, Mapping

from audiofork.control.ami import Ami
from audiofork.control.tap.base import LegAddresses
from audiofork.errors import AmiActionFailed
from audiofork.model import Direction

LEG_PREFIX = "audiofork-"
ORIGINATE_TIMEOUT_MS = 5000
_FORK_ID_LENGTH = 36

# q: no beep; u: the target is given by its uniqueid; E: end with the target; S: end when it is
# gone; l: the long queue, which rides out jitter. o: in alone. D: in and out side by side.
_IN_OPTIONS = "quolES"
_PAIR_OPTIONS = "qulDES"


class ChanSpyTap:
    """Implements `Tap`.

    Args:
        ami: The link to Asterisk.
        relay: Knows where Asterisk shall bring the audio.
    """

    def __init__(self, ami: Ami, relay: LegAddresses) -> None:
        self._ami = ami
        self._relay = relay

    def name_leg(self, fork_id: str, *, anew: bool) -> str:
        # A leg without media cannot end, so a fork's first one may still be there.
        return LEG_PREFIX + fork_id + (f"-{secrets.token_hex(4)}" if anew else "")

    async def start(
        self, leg_id: str, fork_id: str, uniqueid: str, direction: Direction, *, speaks: bool
    ) -> None:
        options = _IN_OPTIONS if direction is Direction.IN else _PAIR_OPTIONS
        # w: what the leg sends is whispered to the target. Never unless it is needed: some
        # versions of Asterisk have faults there.
        options += "w" if speaks else ""
        headers = [
            ("Channel", f"AudioSocket/{self._relay.address_of(fork_id)}/{fork_id}/c(slin)"),
            ("ChannelId", leg_id),
            ("Application", "ChanSpy"),
            # The uniqueid, not the name: Asterisk refuses an Originate whose data contains such
            # words as DB or FILE, and a name may.
            ("Data", f"{uniqueid},{options}"),
            ("Timeout", str(ORIGINATE_TIMEOUT_MS)),
            ("Variable", "CDR_PROP(disable)=1"),
            # Otherwise the whole AMI session waits for the leg to answer.
            ("Async", "true"),
        ]
        await self._ami.action("Originate", headers, action_id=leg_id)

    async def sweep(self, present: Mapping[str, str], keep: Container[str]) -> int:
        swept = 0
        # Only those that dial this daemon: another one may share the Asterisk.
        prefixes = tuple(f"AudioSocket/{address}-" for address in self._relay.addresses)
        for uniqueid, name in present.items():
            ours = name.startswith(prefixes) and self.is_leg(uniqueid)
            if ours and uniqueid not in keep:
                with contextlib.suppress(AmiActionFailed):  # it may be gone by now
                    # Not by its name: a fork's earlier leg has the same.
                    await self._ami.action("Hangup", [("Channel", uniqueid)])
                swept += 1
        return swept

    def fork_id_of(self, action_id: str) -> str:
        if not self.is_leg(action_id):
            return ""
        return action_id.removeprefix(LEG_PREFIX)[:_FORK_ID_LENGTH]

    def is_leg(self, uniqueid: str) -> bool:
        return uniqueid.startswith(LEG_PREFIX)
