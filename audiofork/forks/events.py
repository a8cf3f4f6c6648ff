"""What happens to forks: typed events, each emitted once, for whoever subscribes.

A door renders them for its readers, doors/ami_events.py for Asterisk; counters.py counts them, and
attack_log.py logs attacks, whoever noticed them.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass

from audiofork.forks.lifecycle import Away
from audiofork.forks.requests import Request, StartFork
from audiofork.link.messages import EndReason, ForkStats

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ForkInfo:
    """A fork as events name it.

    Attributes:
        url: Where the audio goes, with its query.
        action_id: Of the request that this answers; empty: it had none.
        sample_rate: Of the audio, in Hz; 0 while that is open.
        from_earlier_run: Whether an earlier run of the daemon started it.
    """

    id: str
    channel: str
    uniqueid: str
    url: str
    action_id: str = ""
    sample_rate: int = 0
    from_earlier_run: bool = False


@dataclass(frozen=True, slots=True)
class Requested:
    """A start was granted, or a fork of an earlier run resumed: its legs are asked for next."""

    fork: ForkInfo
    request: StartFork


@dataclass(frozen=True, slots=True)
class Started:
    """The first frame went to the server."""

    fork: ForkInfo


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """Audio does not get through, and another attempt follows.

    Attributes:
        what: What is away.
        attempt: Number of the attempt, from 1.
        was_streaming: Whether audio had flowed before.
    """

    fork: ForkInfo
    what: Away
    attempt: int
    why: str
    was_streaming: bool


@dataclass(frozen=True, slots=True)
class Resumed:
    """Something is back, of a fork whose audio had flowed.

    Attributes:
        what: What is back.
        frames_dropped: Frames that did not fit the backlog meanwhile.
        gap_ms: For how long there was no leg; None: it was not the leg.
        is_streaming: Whether nothing else is away.
    """

    fork: ForkInfo
    what: Away
    frames_dropped: int = 0
    gap_ms: int | None = None
    is_streaming: bool = True


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """The server sent a text message; the text may be anything."""

    fork: ForkInfo
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The audio of a fork has ended; Stopped or Failed follows, after its post-process command.

    Attributes:
        has_failed: Whether Failed follows.
    """

    fork: ForkInfo
    reason: EndReason
    stats: ForkStats
    has_failed: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The last event of a fork.

    Attributes:
        detail: The particulars of the reason, for people; any text.
        age_s: Seconds since the request.
        relays_lost: How many relay processes died with it; `stats` are those of the last.
        post_process_status: Exit status, or why there is none; empty: there was no command.
    """

    fork: ForkInfo
    reason: EndReason
    detail: str
    age_s: float
    stats: ForkStats
    relays_lost: int = 0
    post_process_status: str = ""


class Stopped(_Outcome):
    """A fork is over, after audio flowed or for an ordinary reason."""

    __slots__ = ()


class Failed(_Outcome):
    """A fork is over before audio flowed, and not for an ordinary reason."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was understood and not granted; its door answers the requester."""

    request: Request
    why: str


class AttackKind(enum.StrEnum):
    """What somebody has tried who means harm, or does not know what he does."""

    WRONG_UUID = "wrong-uuid"
    """To connect to the AudioSocket port with a UUID that no leg has, or has no more."""
    CONTESTED_LEG = "contested-leg"
    """To be a fork's leg: two connections presented its UUID."""
    FORGED_EVENT = "forged-event"
    """To have an event of Asterisk say what is not so."""


@dataclass(frozen=True, slots=True)
class Attack:
    """Somebody has tried what only an attacker would; it came to nothing.

    Attributes:
        detail: Who and to what end, as far as that is known, for people; any text.
        count: How often, since the last such event.
    """

    kind: AttackKind
    detail: str
    count: int = 1


DomainEvent = (
    Requested
    | Started
    | Reconnecting
    | Resumed
    | MessageReceived
    | Ended
    | Stopped
    | Failed
    | Refused
    | Attack
)
Emit = Callable[[DomainEvent], None]


class Events:
    """Passes each event to all subscribers, in the order of their subscriptions.

    Owned by the daemon. Subscribers never wait. What one raises is logged and goes no further.
    """

    def __init__(self) -> None:
        self._subscribers: list[Emit] = []

    def subscribe(self, subscriber: Emit) -> None:
        """Have all events from now on."""
        self._subscribers.append(subscriber)

    def emit(self, event: DomainEvent) -> None:
        """Pass an event on."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                log.exception("a fault of a subscriber, at %s", type(event).__name__)
