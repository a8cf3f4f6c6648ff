"""The objects that the HTTP interface takes and gives of forks that have ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from audiofork.doors.http.answers import MAX_PAGE, MomentOfFork, Text
from audiofork.doors.http.schema import Bounds


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Which ended forks are searched.

    Attributes:
        channel: A part of the channel's name, or its uniqueid.
        caller: A part of the caller's number or name.
        host: A part of the server's host.
        reason: Why it ended, one of the reasons.
        text: A part of any of these, or of the detail.
        failed: Only those that failed, or that did not.
        since: Those that ended at this time or later, in seconds since 1970.
        until: Those that ended before this time.
        limit: How many at most.
        cursor: Where to go on, from the last answer.
        asterisk: In a cluster, only those of the Asterisk of this name.
    """

    channel: Text = ""
    caller: Text = ""
    host: Text = ""
    reason: Text = ""
    text: Text = ""
    failed: bool | None = None
    since: Annotated[float | None, Bounds(minimum=0, maximum=1e11)] = None
    until: Annotated[float | None, Bounds(minimum=0, maximum=1e11)] = None
    limit: Annotated[int, Bounds(minimum=1, maximum=MAX_PAGE)] = 50
    cursor: Text = ""
    asterisk: Text = ""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A fork that has ended.

    Attributes:
        started_at: When its audio began to flow; null: never.
        reason: Why it ended.
        failed: Whether that was a failure.
        detail: More about the reason, for people.
        totals: What was counted: frames_in, frames_sent, ...
        timeline: What has happened to it, oldest first; empty in a list.
        asterisk: The name of the Asterisk that had its call; empty without a cluster.
        controller: The name of the controller that has kept this; empty without a cluster.
    """

    fork_id: str
    channel: str
    uniqueid: str
    caller_number: str
    caller_name: str
    url: str
    host: str
    direction: str
    profile: str
    format: str
    tap: str
    sample_rate: int
    requested_at: float
    started_at: float | None
    ended_at: float
    reason: str
    failed: bool
    detail: str
    totals: Mapping[str, float]
    timeline: list[MomentOfFork]
    asterisk: str = ""
    controller: str = ""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some ended forks, the latest first.

    Attributes:
        entries: These forks.
        next_cursor: Where to go on; empty: these are the last.
        missing: In a cluster, each controller that has not answered, and why.
    """

    entries: list[HistoryEntry]
    next_cursor: str
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CausesQuery:
    """How far back.

    Attributes:
        since: Those that ended at this time or later, in seconds since 1970.
    """

    since: Annotated[float, Bounds(minimum=0, maximum=1e11)] = 0.0


@dataclass(frozen=True, slots=True)
class CauseOfFailures:
    """Why forks have failed.

    Attributes:
        reason: The reason.
        detail: More about it, for people.
        count: How many forks.
        latest_at: When the latest of them ended.
        fork_id: The id of that one.
    """

    reason: str
    detail: str
    count: int
    latest_at: float
    fork_id: str


@dataclass(frozen=True, slots=True)
class Causes:
    """Why forks have failed, the most frequent cause first.

    Attributes:
        causes: The causes.
        missing: In a cluster, each controller that has not answered, and why.
    """

    causes: list[CauseOfFailures]
    missing: Mapping[str, str] = field(default_factory=dict)
