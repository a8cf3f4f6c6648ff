"""An entry of the history as the commands that show it are tested with."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from audiofork.doors.history_answers import as_dict
from audiofork.forks.history import Entry
from audiofork.forks.timelines import Moment

ENTRY = Entry(
    fork_id="3f2a91c0-0000-4000-8000-000000000001",
    channel="PJSIP/100-0000002a",
    uniqueid="1700000000.42",
    caller_number="+4930123456",
    caller_name="Zoë",
    url="wss://example.org/live?...",
    host="example.org",
    direction="both",
    profile="",
    format="json",
    tap="snoop",
    sample_rate=16000,
    requested_at=1_700_000_000.25,
    started_at=1_700_000_000.75,
    ended_at=1_700_000_061.5,
    reason="sink-gone",
    failed=True,
    detail="the connection broke",
    totals={
        **{"frames_in": 3050, "frames_sent": 3000, "frames_dropped": 50, "reconnects": 0},
        **{"gap_s": 0.25, "duration_s": 61.25},
    },
    timeline=(
        Moment(1_700_000_000.25, "requested", "both by snoop"),
        Moment(1_700_000_000.75, "started", "audio flows"),
        Moment(1_700_000_061.5, "ended", "sink-gone (the connection broke)"),
    ),
)


def as_listed(*, with_timeline: bool = False, **changes: Any) -> dict[str, Any]:
    """Return the entry as the control socket gives it."""
    entry = dataclasses.replace(ENTRY, **changes)
    if not with_timeline:
        entry = dataclasses.replace(entry, timeline=())
    listed: dict[str, Any] = json.loads(json.dumps(as_dict(entry)))
    return listed
