"""Our own format: JSON texts for all that happens; audio stays binary."""

from __future__ import annotations

import json
from collections.abc import Sequence

from audiofork.audiosocket import PTIME_MS
from audiofork.relay.formats.base import Dtmf, Event, Message
from audiofork.relay.formats.raw import RawFormat


class JsonFormat(RawFormat):
    """Raw with its texts, and one for each gap and each key that is pressed."""

    def gap(self, number: int, frames: int) -> Sequence[Message]:
        gap = {"position_ms": (number - frames) * PTIME_MS, "lost_ms": frames * PTIME_MS}
        return (json.dumps({"event": "gap", **gap}),)

    def event(self, event: Event, number: int) -> Sequence[Message]:
        if not isinstance(event, Dtmf):
            return ()
        key = {"digit": event.digit, "duration_ms": event.duration_ms}
        return (json.dumps({"event": "dtmf", **key, "position_ms": number * PTIME_MS}),)
