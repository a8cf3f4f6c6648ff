"""The states of a sink as a table; the diagram in docs/architecture.md is generated from it."""

from __future__ import annotations

import enum

from audiofork.states import StateTable


class SinkState(enum.Enum):
    """The state of a sink's connection to its server."""

    CONNECTING = "connecting"
    """A connection is being opened."""
    PROVING = "proving"
    """A connection was opened; the server must answer the opening, or a ping, before it gets
    frames."""
    OPEN = "open"
    """The server gets frames, as fast as it reads them."""
    AWAY = "away"
    """There is no connection; another attempt may follow."""
    ENDED = "ended"


class SinkEvent(enum.Enum):
    """What changes the state of a sink."""

    ACCEPTED = "server accepts"
    RETURNED = "server accepts, and has to answer"
    PROVED = "answered, or no pong in time"
    FAILED = "attempt failed"
    LOST = "connection lost"
    DUE = "next attempt due"
    END = "all delivered, or given up"


SINK_LIFE = StateTable(
    {
        (SinkState.CONNECTING, SinkEvent.ACCEPTED): SinkState.OPEN,
        (SinkState.CONNECTING, SinkEvent.RETURNED): SinkState.PROVING,
        (SinkState.CONNECTING, SinkEvent.FAILED): SinkState.AWAY,
        (SinkState.CONNECTING, SinkEvent.END): SinkState.ENDED,
        (SinkState.PROVING, SinkEvent.PROVED): SinkState.OPEN,
        (SinkState.PROVING, SinkEvent.LOST): SinkState.AWAY,
        (SinkState.PROVING, SinkEvent.END): SinkState.ENDED,
        (SinkState.OPEN, SinkEvent.LOST): SinkState.AWAY,
        (SinkState.OPEN, SinkEvent.END): SinkState.ENDED,
        (SinkState.AWAY, SinkEvent.DUE): SinkState.CONNECTING,
        (SinkState.AWAY, SinkEvent.END): SinkState.ENDED,
    },
    first=SinkState.CONNECTING,
    last=SinkState.ENDED,
)
