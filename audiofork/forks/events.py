"""The events of forks: typed, each emitted once, for all subscribers.

Each door turns them into messages for its readers; doors/ami_events.py does so for Asterisk.
counters.py counts them, and attack_log.py logs attacks.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from audiofork.forks.lifecycle import Away
from audiofork.forks.requests import Request, StartFork
from audiofork.link.messages import EndReason, ForkStats, ServerCommand

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ForkInfo:
    """A fork as events describe it.

    Attributes:
        url: The URL that the audio goes to, with its query.
        action_id: The ActionID of the request that events answer; empty if it had none.
        sample_rate: The sample rate in Hz; 0 while it is not chosen.
        from_earlier_run: Whether an earlier run of the daemon started it.
        speaks: Whether its server may be heard in the call.
        connects: Whether its server is the other party of the call.
    """

    id: str
    channel: str
    uniqueid: str
    url: str
    action_id: str = ""
    sample_rate: int = 0
    from_earlier_run: bool = False
    speaks: bool = False
    connects: bool = False


@dataclass(frozen=True, slots=True)
class Requested:
    """A start was granted, or a fork of an earlier run is resumed; its legs are requested next.

    Attributes:
        call: What the server is told of the call, by name; empty: nothing.
    """

    fork: ForkInfo
    request: StartFork
    call: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Started:
    """The first frame was sent to the server.

    Attributes:
        subprotocol: The subprotocol that the server has chosen; empty: none.
    """

    fork: ForkInfo
    subprotocol: str = ""


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """Audio does not reach the server, and another attempt follows.

    Attributes:
        what: The part that is missing.
        attempt: Number of the attempt, from 1.
        why: Why it is missing, for people; any text.
        was_streaming: Whether audio had flowed before.
    """

    fork: ForkInfo
    what: Away
    attempt: int
    why: str
    was_streaming: bool


@dataclass(frozen=True, slots=True)
class Resumed:
    """A missing part is back, in a fork whose audio had flowed.

    Attributes:
        what: The part that is back.
        frames_dropped: Frames that did not fit in the backlog meanwhile.
        gap_ms: How many milliseconds there was no leg; None if the part is not a leg.
        is_streaming: Whether no other part is missing.
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
class Pressed:
    """The channel's party has pressed a key, and the server is told of it."""

    fork: ForkInfo
    digit: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Muted:
    """Somebody has asked to mute or unmute a fork.

    Attributes:
        mute_in: Whether in is muted now.
        mute_out: Whether out is muted now.
    """

    fork: ForkInfo
    mute_in: bool
    mute_out: bool


class CommandOutcome(enum.StrEnum):
    """What came of a command of a server."""

    DONE = "done"
    REFUSED = "refused"
    """It may not be, or cannot be understood."""
    FAILED = "failed"
    """Asterisk could not be asked, or has refused."""


@dataclass(frozen=True, slots=True)
class CommandHandled:
    """A server has asked for what only Asterisk can do.

    Attributes:
        command: What it has asked for: HANGUP, DTMF or TRANSFER.
        value: Its argument, for people; of keys only how many there are.
        outcome: What came of it.
        reason: Why it was not done, for people; any text.
    """

    fork: ForkInfo
    command: ServerCommand
    value: str
    outcome: CommandOutcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Parting:
    """A connected fork ends, and its call may go on: comes once, before Ended.

    That follows when the server has got all that waits, or does not take it.

    Attributes:
        has_failed: Whether it ends before audio flowed, by a failure.
    """

    fork: ForkInfo
    reason: EndReason
    has_failed: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The audio of a fork has ended; Stopped or Failed follows, after its post-process command.

    Attributes:
        has_failed: Whether Failed follows.
        detail: More about the reason, for people; any text.
    """

    fork: ForkInfo
    reason: EndReason
    stats: ForkStats
    has_failed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The last event of a fork.

    Attributes:
        detail: More about the reason, for people; any text.
        age_s: Seconds since the request.
        relays_lost: How many relay processes the fork has lost; `stats` is from the last one only.
        post_process_status: The command's exit status, or why there is none; empty if no command.
    """

    fork: ForkInfo
    reason: EndReason
    detail: str
    age_s: float
    stats: ForkStats
    relays_lost: int = 0
    post_process_status: str = ""


class Stopped(_Outcome):
    """A fork has ended: audio had flowed, or the reason is not a failure."""

    __slots__ = ()


class Failed(_Outcome):
    """A fork has ended before audio flowed, for a reason that is a failure."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A valid request was not granted; its door answers the requester."""

    request: Request
    why: str


class AttackKind(enum.StrEnum):
    """Kinds of attacks; a mistake of a harmless client may look the same."""

    WRONG_UUID = "wrong-uuid"
    """A connection to the AudioSocket port with a UUID that was not issued or is void."""
    CONTESTED_LEG = "contested-leg"
    """Another client acts as a fork's leg: two connections presented its UUID, for example."""
    FORGED_EVENT = "forged-event"
    """An AMI event with forged content."""


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack was noticed and had no effect.

    Attributes:
        kind: The kind of attack.
        detail: Who attacked and what was the target, as far as known, for people; any text.
        count: How often, since the last event of this kind.
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
    | Pressed
    | Muted
    | CommandHandled
    | Parting
    | Ended
    | Stopped
    | Failed
    | Refused
    | Attack
)
Emit = Callable[[DomainEvent], None]


class Events:
    """Passes each event to all subscribers, in the order of their subscriptions.

    Owned by the daemon. Subscribers never wait. An exception of one is logged and not passed on.
    """

    def __init__(self) -> None:
        self._subscribers: list[Emit] = []

    def subscribe(self, subscriber: Emit) -> None:
        """Call `subscriber` with all events from now on."""
        self._subscribers.append(subscriber)

    def emit(self, event: DomainEvent) -> None:
        """Pass an event to all subscribers."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                log.exception("a subscriber failed on %s", type(event).__name__)
