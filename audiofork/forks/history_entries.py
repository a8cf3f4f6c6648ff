"""What the history keeps and is asked for: entries, queries, causes; and how a row holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from audiofork.errors import HistoryUnavailable
from audiofork.forks.causes import cause_of
from audiofork.forks.masking import endpoint_of, key_of
from audiofork.forks.timelines import Moment
from audiofork.reading_json import parsed_json

MOST_ENTRIES = 500  # that one search returns
REFUSED = "refused"
"""The reason of an entry whose start was not granted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A fork that has ended, or a start that was not granted; texts are harmless.

    Attributes:
        fork_id: Its id; that of a refused start names nothing else.
        caller_number: As Asterisk has it, or masked; empty if unknown.
        url: The URL, without its query unless the configuration wants that; of a profile @NAME.
        host: The host of the URL, without its port; of a profile @NAME.
        direction, profile, format, tap: As in `About`; empty: unknown, or none.
        sample_rate: In Hz; 0 if it was not chosen.
        requested_at: In seconds since 1970, as all times.
        started_at: When audio began to flow in the last run of the daemon; None: it never did.
        reason: Why it has ended: a value of EndReason, or `refused`.
        failed: Whether an administrator should look at it: it was refused, or ended for a reason
            that is a failure, before audio flowed or later.
        detail: More about the reason, for people.
        totals: As in `ForkStats`; beside them gaps, gap_s, relays_lost and duration_s. Those of
            another run of the daemon are not in them.
        timeline: What has happened to it, oldest first; empty in the results of a search.
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
    totals: Mapping[str, int | float] = field(default_factory=dict)
    timeline: Sequence[Moment] = ()


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """What to search for; each field that is given must fit, an empty one fits all.

    Attributes:
        channel: The whole name of a channel, or its beginning before Asterisk's suffix
            (PJSIP/100), or a uniqueid.
        caller: A number, in any notation with the same digits; or words of a name.
        host: The host of the URL, or @NAME of a profile.
        reason: A value of EndReason, or `refused`.
        text: Words, or beginnings of words, that occur in the channel, the caller, the URL, the
            detail or the timeline.
        failed: Whether it has failed; None: either.
        since: Only those that ended then or later, in seconds since 1970.
        until: Only those that ended before.
        limit: How many at most, up to MOST_ENTRIES.
        cursor: Where the previous page ended: the same query goes on there.
    """

    channel: str = ""
    caller: str = ""
    host: str = ""
    reason: str = ""
    text: str = ""
    failed: bool | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 50
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Cause:
    """Failures of one cause.

    Attributes:
        reason: As in Entry.
        detail: What their details have in common: numbers are N, ids `...`.
        count: How many there are.
        latest_at: When the last one was.
        fork_id: That one's.
    """

    reason: str
    detail: str
    count: int
    latest_at: float
    fork_id: str


# --- As a row ------------------------------------------------------------------------------------

PLAIN = (
    *("fork_id", "channel", "uniqueid", "caller_number", "caller_name", "url", "host"),
    *("direction", "profile", "format", "tap", "sample_rate"),
    *("requested_at", "started_at", "ended_at", "reason", "failed", "detail"),
)
"""The columns that are fields of an entry."""
COLUMNS = (*PLAIN, "totals", "endpoint", "caller_key", "cause", "moments", "texts")
"""All columns: beside the fields of an entry what it is found by."""


def row_of(entry: Entry) -> tuple[Any, ...]:
    """Return the values of COLUMNS for an entry."""
    return (
        *(getattr(entry, name) for name in PLAIN),
        json.dumps(dict(entry.totals)),
        endpoint_of(entry.channel),
        key_of(entry.caller_number),
        cause_of(entry.detail),
        *timeline_row(entry.timeline),
    )


def timeline_row(timeline: Sequence[Moment]) -> tuple[str, str]:
    """Return a timeline as the values of moments and texts.

    The texts, each a line, stand apart from the times, so that words are searched in them alone.
    """
    moments = json.dumps([(moment.at, moment.kind) for moment in timeline])
    return moments, "\n".join(moment.text for moment in timeline)


def entry_of(row: Sequence[Any]) -> Entry:
    """Return the entry of a row: the values of PLAIN, totals, and perhaps moments and texts.

    Raises:
        HistoryUnavailable: It is no such row.
    """
    values = dict(zip(PLAIN, row, strict=False))
    totals, *timeline = row[len(PLAIN) :]
    try:
        moments = timeline_of(*timeline) if timeline else ()
        counts = dict(parsed_json(totals))
    except (TypeError, ValueError) as exc:
        raise HistoryUnavailable(f"the entry {row[0]} cannot be read") from exc
    return Entry(**{**values, "failed": bool(values["failed"])}, totals=counts, timeline=moments)


def timeline_of(moments: str, texts: str) -> tuple[Moment, ...]:
    """Return a timeline from the values of moments and texts.

    Raises:
        TypeError, ValueError: They are no such values.
    """
    times = parsed_json(moments)
    lines = texts.split("\n") if times else []
    return tuple(Moment(at, kind, text) for (at, kind), text in zip(times, lines, strict=True))
