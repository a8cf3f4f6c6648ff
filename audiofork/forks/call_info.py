"""What servers are told of the call: asked from Asterisk with one question."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from audiofork.asterisk.channels import Channels

# By name, the expression that Asterisk is asked for.
EXPRESSIONS = {
    "linkedid": "CHANNEL(linkedid)",
    "caller_number": "CALLERID(num)",
    "caller_name": "CALLERID(name)",
    "connected_number": "CONNECTEDLINE(num)",
    "connected_name": "CONNECTEDLINE(name)",
    "dnid": "CALLERID(DNID)",
    "context": "CONTEXT",
    "exten": "EXTEN",
    "account_code": "CHANNEL(accountcode)",
    "language": "CHANNEL(language)",
    "native_format": "CHANNEL(audionativeformat)",
    "system_name": "SYSTEMNAME",
}
# Only a channel of PJSIP can be asked for this; Asterisk logs a warning for another.
_CALL_ID = {"sip_call_id": "CHANNEL(pjsip,call-id)"}
FIELDS = ("fork_id", "channel", "uniqueid", "call_started", *EXPRESSIONS, *_CALL_ID)
"""The names of all fields; one that the call does not have is empty."""

# A request of the shipped dialplan comes from within its Gosub; the caller of that is asked for.
_GOSUB_CONTEXT = "audiofork"
_CALLER_OF_GOSUB = {"context": "STACK_PEEK(1,c,1)", "exten": "STACK_PEEK(1,e,1)"}
# Asterisk makes uniqueids of the time when it made the channel: [SYSTEMNAME-]SECONDS.NUMBER.
_UNIQUEID = re.compile(r"(?:.*-)?([0-9]{9,11})\.[0-9]+", re.DOTALL)


async def ask(channels: Channels, channel: str, uniqueid: str) -> dict[str, str]:
    """Return what is known of a call, by the names of FIELDS; a caller may have chosen any of it.

    Raises:
        NoSuchChannel: It has gone.
        AmiError: Asterisk cannot be asked.
    """
    wanted = {**EXPRESSIONS, **(_CALL_ID if channel.startswith("PJSIP/") else {})}
    found = dict(zip(wanted, await channels.at_once(uniqueid, wanted.values()), strict=True))
    if found["context"] == _GOSUB_CONTEXT:
        outer = await channels.at_once(uniqueid, _CALLER_OF_GOSUB.values())
        found.update(zip(_CALLER_OF_GOSUB, outer, strict=True))
    return {"channel": channel, "uniqueid": uniqueid, "call_started": _started(uniqueid), **found}


def _started(uniqueid: str) -> str:
    """Return when the channel was made: ISO 8601, UTC; empty if the uniqueid does not tell."""
    known = _UNIQUEID.fullmatch(uniqueid)
    if known is None:
        return ""
    return datetime.fromtimestamp(int(known[1]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
