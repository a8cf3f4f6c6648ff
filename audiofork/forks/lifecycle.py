"""The life of a fork as a table; the diagram in docs/architecture.md is made from it.

A pair that is not in the table is a bug.
"""

from __future__ import annotations

import enum

from audiofork.errors import InvalidTransition
from audiofork.link.messages import LegPart


class ForkState(enum.Enum):
    """Where a fork stands."""

    REQUESTED = "requested"
    """Its channel is being looked up."""
    ATTACHING = "attaching"
    """The leg and the WebSocket connection are under way."""
    STREAMING = "streaming"
    """Audio flows to the server."""
    RECONNECTING = "reconnecting"
    """The server is away, and audio waits in the backlog; or the leg is away."""
    ENDED = "ended"


class ForkEvent(enum.Enum):
    """What moves a fork on."""

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


TRANSITIONS: dict[tuple[ForkState, ForkEvent], ForkState] = {
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
}


def next_state(state: ForkState, event: ForkEvent) -> ForkState:
    """Return the state that follows.

    Raises:
        InvalidTransition: The table does not have the pair.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(f"{event.name} in state {state.name}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {ForkState.REQUESTED.name}"]
    for (state, event), following in TRANSITIONS.items():
        lines.append(f"    {state.name} --> {following.name}: {event.value}")
    lines.append(f"    {ForkState.ENDED.name} --> [*]")
    return "\n".join(lines) + "\n"
