"""Forks whose formats are tried."""

from __future__ import annotations

from typing import Any

from audiofork.link.messages import Direction, ForkSpec, Format, Metadata
from audiofork.relay.formats.base import MessageFormat
from audiofork.relay.formats.choice import format_of

FORK_ID = "3f2a91c0-d1e8-4c52-9a7b-0123456789ab"
CALL = {
    "channel": "PJSIP/100-0000002a",
    "uniqueid": "pbx-1700000000.1",
    "caller_number": "+49301234",
    "caller_name": 'Zoë "Z"',
    "exten": "100",
    "dnid": "",
    "sip_call_id": "x@y",
}
PARAMS = {"ticket": "47 & 11"}


# Those whose server need not answer before it gets audio, and that say of the call what it is.
ONE_WAY = tuple(one for one in Format if one is not Format.OPENAI_REALTIME)


def make(
    format_: Format,
    direction: Direction = Direction.IN,
    params: dict[str, str] = PARAMS,
    **wishes: Any,
) -> MessageFormat:
    """Return the format of a fork."""
    spec = ForkSpec(
        *(FORK_ID, CALL["channel"], "ws://h/", direction),
        format=format_,
        metadata=Metadata(CALL, params),
        **wishes,
    )
    return format_of(spec, 20)
