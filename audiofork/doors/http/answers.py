"""The objects that the HTTP interface takes and gives; those of the history stand elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from audiofork.doors.http.schema import Bounds
from audiofork.forks.view import ForkView

MAX_TEXT = 1000
Text = Annotated[str, Bounds(max_length=MAX_TEXT)]
MAX_PAGE = 1000
Cursor = Annotated[
    str,
    Bounds(pattern=r"([0-9]{1,9}\.[0-9a-f-]{36})?", expected="next_cursor of another answer"),
]

# --- Forks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWish:
    """A fork to start: of a channel by its name or its uniqueid, to a server or a profile.

    Attributes:
        asterisk: In a cluster, the Asterisk that has the call, by its name there; may be left out
            where the controller serves one alone.
        channel: The name of the channel, PJSIP/100-0000002a.
        uniqueid: Its uniqueid; one of the two is enough.
        url: Where the audio is sent: ws:// or wss://, or @NAME of a profile.
        options: The option string, as everywhere: D(stereo)x(json).
        params: Parameters for the server.
        post_process: A command to run when the fork has ended, if the configuration allows it.
        connect: Whether the server becomes the other party of the call.
        wait: Whether the answer comes when audio flows, or the fork has ended, or after 30 s.
    """

    url: Text
    channel: Text = ""
    uniqueid: Text = ""
    options: Annotated[str, Bounds(max_length=16_000)] = ""
    params: Annotated[dict[str, str], Bounds(max_items=100)] = field(default_factory=dict)
    post_process: Text = ""
    connect: bool = False
    wait: bool = False
    asterisk: Text = ""


@dataclass(frozen=True, slots=True)
class StartedFork:
    """A fork that was started.

    Attributes:
        id: Its id.
        result: granted, if nobody has waited; else waiting, streaming or ended.
        ms: Milliseconds from the request to the first frame; null before that.
        reason: Why it has ended; empty if it has not.
        detail: More about that, for people.
    """

    id: str
    result: str = "granted"
    ms: int | None = None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Sides:
    """Which sides of a fork become silent (true) or are heard again (false).

    Attributes:
        in: What the party says; left out: as it is.
        out: What it hears; left out: as it is.
    """

    in_: bool | None = None
    out: bool | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What is changed of a fork.

    Attributes:
        mute: Which sides become silent, or are heard again.
    """

    mute: Sides


@dataclass(frozen=True, slots=True)
class Fork(ForkView):
    """A fork.

    Attributes:
        id: Its id.
        channel: The name of its channel.
        uniqueid: The uniqueid of its channel.
        url: Where its audio goes, without the query; @NAME for a profile is resolved.
        direction: in, out, both or stereo.
        frames_in: Frames of 20 ms that have come.
        frames_sent: Of these, those that were sent.
        frames_dropped: Those that were dropped.
        frames_missing: Those that should have come and did not.
        host: The host of the URL, and its port if there is one.
        relay_host: The name of the relay host that it is on; empty without a cluster.
        asterisk: The name of the Asterisk that has its call; empty without a cluster.
    """

    host: str = ""
    asterisk: str = ""


@dataclass(frozen=True, slots=True)
class MomentOfFork:
    """Something that has happened to a fork.

    Attributes:
        at: When, in seconds since 1970.
        kind: What: requested, started, reconnecting, resumed, message, dtmf, command, ended, ...
        text: More about it, for people.
    """

    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class ForkWithTimeline(Fork):
    """A fork, and what has happened to it.

    Attributes:
        timeline: What has happened, oldest first.
    """

    timeline: list[MomentOfFork] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ForksQuery:
    """Which forks are listed; all words are parts of what is compared, in any case.

    Attributes:
        state: requested, attaching, streaming or reconnecting.
        channel: A part of the channel's name, or its uniqueid.
        caller: A part of the caller's number or name.
        host: A part of the server's host.
        asterisk: In a cluster, a part of the name of the Asterisk.
        relay_host: In a cluster, a part of the name of the relay host.
        q: A part of any of these, or of the id.
        limit: How many forks at most.
        cursor: Where to go on, from the last answer.
    """

    state: Text = ""
    channel: Text = ""
    caller: Text = ""
    host: Text = ""
    asterisk: Text = ""
    relay_host: Text = ""
    q: Text = ""
    limit: Annotated[int, Bounds(minimum=1, maximum=MAX_PAGE)] = 100
    cursor: Cursor = ""


@dataclass(frozen=True, slots=True)
class ForkList:
    """Some of the forks, oldest first.

    Attributes:
        forks: These forks.
        total: How many forks match.
        next_cursor: Where to go on; empty: these are the last.
        legs_left: How many legs of ended forks Asterisk still has; see usage.md, Limits.
        missing: In a cluster, each Asterisk whose forks are not among these, and why.
    """

    forks: list[Fork]
    total: int
    next_cursor: str
    legs_left: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)


# --- The daemon ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AsteriskStatus:
    """The connection to Asterisk.

    Attributes:
        up: Whether it is open.
        version: Asterisk's version; empty: unknown.
        text: Its state, for people.
        rtt_ms: How long the last answer took; null: unknown.
    """

    up: bool
    version: str
    text: str
    rtt_ms: float | None = None


@dataclass(frozen=True, slots=True)
class AriStatus:
    """The connection to Asterisk's REST interface.

    Attributes:
        configured: Whether it is wanted.
        up: Whether it is open.
        text: Its state, for people.
        rtt_ms: How long the last answer took; null: unknown.
    """

    configured: bool
    up: bool
    text: str
    rtt_ms: float | None = None


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """A process, or in a cluster a host, that relays audio.

    Attributes:
        name: Of the host in a cluster; of a process the address at which Asterisk reaches it.
        up: Whether it runs.
        forks: How many forks it has.
    """

    name: str
    up: bool
    forks: int


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """A controller of a cluster.

    Attributes:
        name: Its name.
        asterisk: The name of its Asterisk.
        state: leads, stands by or dead.
    """

    name: str
    asterisk: str
    state: str


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the daemon.

    Attributes:
        version: The daemon's version.
        run: The id of this run; another one after each start.
        uptime_s: Seconds since its start.
        relays: Its relay processes.
        forks: How many forks there are.
        counters: What has happened since the start, by name.
        viewers: How many read the events now.
        history: Whether ended forks are kept.
        controller: The name of the controller that answers; empty without a cluster.
        controllers: All controllers of the cluster; empty without one.
    """

    version: str
    run: str
    uptime_s: float
    asterisk: AsteriskStatus
    ari: AriStatus
    relays: list[RelayStatus]
    forks: int
    counters: Mapping[str, Any]
    viewers: int = 0
    history: bool = False
    controller: str = ""
    controllers: list[ControllerStatus] = field(default_factory=list)

    @property
    def has_relay(self) -> bool:
        """Whether a relay process runs."""
        return any(relay.up for relay in self.relays)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether forks can be started now.

    Attributes:
        ready: Whether both are up.
        asterisk: up or down.
        relay: up or down.
    """

    ready: bool
    asterisk: str
    relay: str


@dataclass(frozen=True, slots=True)
class ProfileList:
    """The servers that a fork may name.

    Attributes:
        profiles: Their names; @NAME stands for one in place of a URL.
    """

    profiles: list[str]


@dataclass(frozen=True, slots=True)
class FindingOfCheck:
    """One line of a check.

    Attributes:
        status: ok, warn, fail or skip.
        name: What was looked at.
        text: What was found, for people.
        remedy: What to do about it; empty: nothing.
    """

    status: str
    name: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of a check, as `audiofork check` prints it.

    Attributes:
        at: When it was begun, in seconds since 1970.
        exit_code: 0: no fault; 1: there are faults; 3: the configuration; 4: Asterisk is away.
        findings: What was found.
    """

    at: float
    exit_code: int
    findings: list[FindingOfCheck]


@dataclass(frozen=True, slots=True)
class SeriesQuery:
    """How far back.

    Attributes:
        hours: How many hours.
    """

    hours: Annotated[int, Bounds(minimum=1, maximum=24)] = 6


@dataclass(frozen=True, slots=True)
class MinuteOfSeries:
    """What has happened in one minute.

    Attributes:
        at: When the minute began, in seconds since 1970.
        started: Forks whose audio began to flow.
        ended: Forks that ended.
        failed: Of these, those that failed.
        refused: Requests that were refused.
        reconnects: Servers that were connected again.
        frames_dropped: Frames of ended forks that were dropped.
    """

    at: int
    started: int
    ended: int
    failed: int
    refused: int
    reconnects: int
    frames_dropped: int


@dataclass(frozen=True, slots=True)
class SeriesAnswer:
    """The last hours.

    Attributes:
        minutes: Each minute, oldest first.
        missing: In a cluster, each Asterisk whose forks are not counted, and why.
    """

    minutes: list[MinuteOfSeries]
    missing: Mapping[str, str] = field(default_factory=dict)


# --- Sessions and events -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenWish:
    """A token, for a session.

    Attributes:
        token: The token.
    """

    token: Annotated[str, Bounds(max_length=500)]


@dataclass(frozen=True, slots=True)
class SessionAnswer:
    """Who asks.

    Attributes:
        name: The name of the token.
        roles: What it may do: view, listen, control.
    """

    name: str
    roles: list[str]


@dataclass(frozen=True, slots=True)
class EventsQuery:
    """Which events are sent.

    Attributes:
        fork: Only those of this fork.
        types: Only these, with commas between them: fork.started,fork.ended.
        levels: Whether levels and statistics are sent, too.
        last_event_id: As the header Last-Event-ID, for those who cannot send it.
    """

    fork: Text = ""
    types: Text = ""
    levels: bool = False
    last_event_id: Text = ""
