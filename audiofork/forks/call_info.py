"""Asks Asterisk, with one question, for the details of a call that servers are told."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from audiofork.asterisk.channels import Channels

# The expression to ask Asterisk for, by the name of the field.
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
CALLER = {name: EXPRESSIONS[name] for name in ("caller_number", "caller_name")}
"""Those of the caller."""
# Only PJSIP channels have this; for others Asterisk logs a warning.
_CALL_ID = {"sip_call_id": "CHANNEL(pjsip,call-id)"}
FIELDS = ("fork_id", "channel", "uniqueid", "call_started", *EXPRESSIONS, *_CALL_ID)
"""The names of all fields; a field that the call does not have is empty."""

# A request of the shipped dialplan comes from within its Gosub, so ask for the caller of that.
_GOSUB_CONTEXT = "audiofork"
_CALLER_OF_GOSUB = {"context": "STACK_PEEK(1,c,1)", "exten": "STACK_PEEK(1,e,1)"}
# A uniqueid contains the time when Asterisk created the channel: [SYSTEMNAME-]SECONDS.NUMBER.
_UNIQUEID = re.compile(r"(?:.*-)?([0-9]{9,11})\.[0-9]+", re.DOTALL)


async def ask(channels: Channels, channel: str, uniqueid: str) -> dict[str, str]:
    """Return the details of a call, by the names of FIELDS; a caller may have chosen any of them.

    Raises:
        NoSuchChannel: The channel is gone.
        AmiError: Asterisk cannot be asked.
    """
    wanted = {**EXPRESSIONS, **(_CALL_ID if channel.startswith("PJSIP/") else {})}
    found = dict(zip(wanted, await channels.at_once(uniqueid, wanted.values()), strict=True))
    if found["context"] == _GOSUB_CONTEXT:
        outer = await channels.at_once(uniqueid, _CALLER_OF_GOSUB.values())
        found.update(zip(_CALLER_OF_GOSUB, outer, strict=True))
    return {"channel": channel, "uniqueid": uniqueid, "call_started": _started(uniqueid), **found}


def _started(uniqueid: str) -> str:
    """Return when the channel was created: ISO 8601, UTC; empty if the uniqueid does not say."""
    known = _UNIQUEID.fullmatch(uniqueid)
    if known is None:
        return ""
    return datetime.fromtimestamp(int(known[1]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
