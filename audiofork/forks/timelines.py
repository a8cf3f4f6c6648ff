"""What has happened to each running fork, as short texts with their times."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from audiofork.forks.events import (
    CommandHandled,
    CommandOutcome,
    DomainEvent,
    Ended,
    Failed,
    MessageReceived,
    Muted,
    Pressed,
    Reconnecting,
    Requested,
    Resumed,
    Started,
    Stopped,
)
from audiofork.forks.lifecycle import Away
from audiofork.link.relay import HostOf, this_host
from audiofork.log import without_query
from audiofork.text import printable

# Of each fork: what it began with, and what was last. A server may send 20 texts a second.
FIRST_MOMENTS = 20
MOST_MOMENTS = 200
MOST_CHARACTERS = 500  # of a text
# Of all texts of a fork together, beside the first: a thousand talkative servers must not take
# more memory than all else.
MOST_OF_A_FORK = 20_000
# A moment later, somebody may still ask for it: the history, for one.
KEPT_ENDED = 100

_PARTS = {
    Away.SERVER: "the server",
    Away.RELAY: "the relay process",
    Away.DAEMON: "the daemon",
    Away.IN: "the leg of in",
    Away.OUT: "the leg of out",
}


class Moment(NamedTuple):
    """Something that has happened to a fork.

    Attributes:
        at: When, in seconds since 1970.
        kind: requested, started, reconnecting, resumed, message, dtmf, command, muted, unmuted,
            ended or post-process; of a request that was not granted refused.
        text: What, for people; one line of at most MOST_CHARACTERS characters.
    """

    at: float
    kind: str
    text: str


class _Timeline:
    """The moments of one fork; texts are made harmless only when somebody looks."""

    def __init__(self) -> None:
        self.first: list[Moment] = []
        self.latest: deque[Moment] = deque()
        self._characters = 0

    def add(self, moment: Moment) -> None:
        if len(self.first) < FIRST_MOMENTS:
            self.first.append(moment)
            return
        self.latest.append(moment)
        self._characters += len(moment.text)
        while len(self.latest) > MOST_MOMENTS - FIRST_MOMENTS or self._characters > MOST_OF_A_FORK:
            self._characters -= len(self.latest.popleft().text)

    def moments(self) -> Iterator[Moment]:
        for at, kind, text in chain(self.first, self.latest):
            yield Moment(at, kind, printable(text, "?"))


class Timelines:
    """Keeps what has happened to running forks, and to the KEPT_ENDED that have ended last.

    Owned by the daemon, which subscribes `on_event` to the events of forks. An event costs only the
    entry in a list.

    Args:
        clock: Returns the time in seconds since 1970.
        host_of: Returns the name of the relay host that a fork is on.
    """

    def __init__(self, clock: Callable[[], float] = time.time, host_of: HostOf = this_host) -> None:
        self._clock = clock
        self._host_of = host_of
        self._timelines: OrderedDict[str, _Timeline] = OrderedDict()  # by fork id
        self._ended: deque[str] = deque()

    def of(self, fork_id: str) -> Sequence[Moment]:
        """Return what has happened to a fork, oldest first; nothing if it is unknown.

        These are the first FIRST_MOMENTS and the latest, MOST_MOMENTS at most.
        """
        timeline = self._timelines.get(fork_id)
        return tuple(timeline.moments()) if timeline is not None else ()

    def on_event(self, event: DomainEvent) -> None:
        """Keep an event of a fork."""
        told = moment_of(event)
        if told is not None:
            fork_id, kind, text = told
            if isinstance(event, Started | Resumed) and (host := self._host_of(fork_id)):
                text += f", at the relay host {host}"
            if isinstance(
                event, Requested | Ended
            ):  # of one that cannot be resumed only the latter
                self._timelines.setdefault(fork_id, _Timeline())
            if fork_id in self._timelines:
                moment = Moment(self._clock(), kind, text[:MOST_CHARACTERS])
                self._timelines[fork_id].add(moment)
        if isinstance(event, Stopped | Failed):
            self._on_end(event.fork.id)

    def _on_end(self, fork_id: str) -> None:
        self._ended.append(fork_id)
        if len(self._ended) > KEPT_ENDED:
            self._timelines.pop(self._ended.popleft(), None)


def moment_of(event: DomainEvent) -> tuple[str, str, str] | None:
    """Return the id of an event's fork, the kind of moment, and its text; None: it has no moment.

    The text may hold control characters of others. It holds no key that somebody has pressed, which
    may be secret, and no query of a URL.
    """
    match event:
        case Requested():
            return event.fork.id, *_requested(event)
        case Started():
            chosen = f", subprotocol {event.subprotocol}" if event.subprotocol else ""
            return event.fork.id, "started", f"audio flows{chosen}"
        case Reconnecting():
            text = f"{part(event.what)} is away, attempt {event.attempt} follows: {event.why}"
            return event.fork.id, "reconnecting", text
        case Resumed():
            return event.fork.id, "resumed", _resumed(event)
        case MessageReceived():
            return event.fork.id, "message", event.text
        case Pressed():
            return event.fork.id, "dtmf", f"a key, pressed for {event.duration_ms} ms"
        case Muted():
            sides = _sides(event)
            return event.fork.id, "muted" if sides else "unmuted", sides or "nothing is muted"
        case CommandHandled():
            return event.fork.id, "command", _command(event)
        case Ended():
            return event.fork.id, "ended", _with(event.reason.value, event.detail)
        case Stopped() | Failed() if event.post_process_status:
            return event.fork.id, "post-process", f"exit status {event.post_process_status}"
    return None


def part(what: Away) -> str:
    """Return the name of a part of a fork, for people."""
    return _PARTS.get(what, "the leg")


def _requested(event: Requested) -> tuple[str, str]:
    about = event.fork.about
    what = f"{about.direction} by {about.tap} at {event.fork.sample_rate} Hz"
    text = f"{what} to {without_query(event.fork.url)}"
    if event.fork.from_earlier_run:
        return "resumed", f"taken up from an earlier run of the daemon, {text}"
    door, who = event.request.origin
    asked = " ".join(filter(None, (door, who)))
    return "requested", f"{f'by {asked}, ' if asked else ''}{text}"


def _resumed(event: Resumed) -> str:
    gap = f" after {event.gap_ms} ms" if event.gap_ms is not None else ""
    dropped = f", {event.frames_dropped} frames dropped" if event.frames_dropped else ""
    return f"{part(event.what)} is back{gap}{dropped}"


def _sides(event: Muted) -> str:
    if event.mute_in and event.mute_out:
        return "both"
    return "read" if event.mute_in else "write" if event.mute_out else ""


def _command(event: CommandHandled) -> str:
    what = f"{event.command} {event.value}".strip()
    if event.outcome is CommandOutcome.DONE:
        return f"{what}: done"
    return f"{what}: {event.outcome}: {event.reason}"


def _with(reason: str, detail: str) -> str:
    return f"{reason} ({detail})" if detail else reason
