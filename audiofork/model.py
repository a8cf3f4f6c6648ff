"""What travels between the control plane and the relay.

Commands go down, reports come up. All are small, frozen and made of plain values, so that the
link between the planes may be a function call or a socket.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class Direction(enum.StrEnum):
    """Whose audio a fork carries, seen from the channel, as in ARI."""

    IN = "in"
    """What the channel's own party says (Asterisk's *read*)."""
    OUT = "out"
    """What that party hears (Asterisk's *write*)."""
    BOTH = "both"
    """The two mixed into one."""
    STEREO = "stereo"
    """The two side by side: left in, right out."""

    @property
    def needs_pairs(self) -> bool:
        """Whether the leg has to deliver in and out apart."""
        return self in (Direction.OUT, Direction.STEREO)


class EndReason(enum.StrEnum):
    """Why a fork ended; the first reason stands."""

    HANGUP = "hangup"
    """The channel was hung up."""
    STOPPED = "stopped"
    """Somebody asked for it."""
    SINK_REFUSED = "sink-refused"
    """The WebSocket server said no, or said that it is done."""
    SINK_GONE = "sink-gone"
    """The WebSocket server cannot be reached (any more)."""
    LEG_FAILED = "leg-failed"
    """The leg did not come about, or broke while its channel lived."""
    NO_SUCH_CHANNEL = "no-such-channel"
    """Asterisk does not have the channel."""
    SHUTDOWN = "shutdown"
    """The daemon stops."""
    FAULT = "fault"
    """A bug of ours."""


@dataclass(frozen=True, slots=True)
class ForkSpec:
    """Command: get ready to relay one fork; its leg will connect with `fork_id` as UUID.

    Attributes:
        fork_id: A UUID in its canonical text form.
        channel: Name of the channel, for people to read.
        url: ws:// or wss:// URL of the server.
        direction: What the server is to get.
    """

    fork_id: str
    channel: str
    url: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class EndFork:
    """Command: hang up the leg, give the server what is left, close."""

    fork_id: str
    reason: EndReason
    detail: str = ""


Command = ForkSpec | EndFork


@dataclass(frozen=True, slots=True)
class ForkStats:
    """Frames of 20 ms since a fork began; in = sent + dropped + those that still wait."""

    frames_in: int = 0
    frames_sent: int = 0
    frames_dropped: int = 0


@dataclass(frozen=True, slots=True)
class LegAttached:
    """Report: Asterisk connected the leg."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class LegLost:
    """Report: Asterisk closed the leg; why, only the control plane can find out."""

    fork_id: str
    frames_in: int


@dataclass(frozen=True, slots=True)
class SinkOpened:
    """Report: the WebSocket server accepted the connection."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class Streaming:
    """Report: the first frame went to the server."""

    fork_id: str


@dataclass(frozen=True, slots=True)
class ForkEnded:
    """Report: the leg and the sink are closed; the last thing heard of a fork."""

    fork_id: str
    reason: EndReason
    detail: str
    stats: ForkStats


Report = LegAttached | LegLost | SinkOpened | Streaming | ForkEnded

SendCommand = Callable[[Command], None]
SendReport = Callable[[Report], None]
