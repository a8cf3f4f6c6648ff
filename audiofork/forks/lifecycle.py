"""The states of a fork as a table; the diagram in docs/architecture.md is generated from it."""

from __future__ import annotations

import enum

from audiofork.link.messages import LegPart
from audiofork.states import StateTable


class ForkState(enum.Enum):
    """The state of a fork."""

    REQUESTED = "requested"
    """Its channel is being looked up."""
    ATTACHING = "attaching"
    """The legs and the WebSocket connection are being set up."""
    STREAMING = "streaming"
    """Audio flows to the server."""
    RECONNECTING = "reconnecting"
    """The server is missing, and audio waits in the backlog; or a leg or the relay is missing."""
    ENDED = "ended"


class ForkEvent(enum.Enum):
    """What changes the state of a fork."""

    RESOLVED = "channel found"
    REFUSED = "request refused"
    FIRST_FRAME = "first frame sent"
    LOST = "server or leg away"
    BACK = "server and leg back"
    END = "leg and sink closed"


class Away(enum.Enum):
    """What may be missing between a call and its server."""

    SERVER = "server"
    RELAY = "relay process"
    DAEMON = "daemon"
    IN = LegPart.IN
    OUT = LegPart.OUT
    MIX = LegPart.MIX
    PAIRS = LegPart.PAIRS


FORK_LIFE = StateTable(
    {
        (ForkState.REQUESTED, ForkEvent.RESOLVED): ForkState.ATTACHING,
        (ForkState.REQUESTED, ForkEvent.REFUSED): ForkState.ENDED,
        (ForkState.ATTACHING, ForkEvent.FIRST_FRAME): ForkState.STREAMING,
        (ForkState.ATTACHING, ForkEvent.LOST): ForkState.ATTACHING,
        (ForkState.ATTACHING, ForkEvent.END): ForkState.ENDED,
        (ForkState.STREAMING, ForkEvent.LOST): ForkState.RECONNECTING,
        (ForkState.STREAMING, ForkEvent.END): ForkState.ENDED,
        (ForkState.RECONNECTING, ForkEvent.LOST): ForkState.RECONNECTING,
        (ForkState.RECONNECTING, ForkEvent.BACK): ForkState.STREAMING,
        (ForkState.RECONNECTING, ForkEvent.END): ForkState.ENDED,
    },
    first=ForkState.REQUESTED,
    last=ForkState.ENDED,
)
