"""What has happened to forks in each minute of the last day, in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from audiofork.forks.events import (
    FAILURES,
    DomainEvent,
    Ended,
    Refused,
    Requested,
    Resumed,
    Started,
)
from audiofork.forks.lifecycle import Away
from audiofork.forks.requests import StartFork

MINUTE_S = 60
MOST_HOURS = 24


@dataclass(slots=True)
class Minute:
    """Counts of what has happened to forks in a minute.

    Attributes:
        at: When it began, in seconds since 1970.
        started: Forks whose first frame was sent.
        ended: Forks that have ended, with those that failed.
        failed: Those that ended for a failure, before audio flowed or later.
        refused: Starts that were not granted.
        reconnects: How often a server was connected again after a loss.
        frames_dropped: Frames of 20 ms that were lost: of an outage when it is over, of a server
            that is too slow when the fork has ended.
    """

    at: int
    started: int = 0
    ended: int = 0
    failed: int = 0
    refused: int = 0
    reconnects: int = 0
    frames_dropped: int = 0


class Series:
    """Counts events of forks by the minute, for MOST_HOURS.

    Owned by the daemon, which subscribes `on_event` to the events of forks.

    Args:
        clock: Returns the time in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Only those in which something has happened; a minute that the clock goes through twice,
        # because it was set back, is counted as one.
        self._minutes: deque[Minute] = deque(maxlen=MOST_HOURS * MINUTE_S)
        self._dropped: dict[str, int] = {}  # of running forks, as far as counted, by id

    def minutes(self, hours: int) -> list[Minute]:
        """Return each minute of the last hours, oldest first, the current one last.

        Args:
            hours: How many, from 1 to MOST_HOURS; others are taken for the nearest of these.
        """
        now = self._this_minute()
        count = min(max(hours, 1), MOST_HOURS) * MINUTE_S
        known = {minute.at: minute for minute in self._minutes}
        times = range(now - (count - 1) * MINUTE_S, now + 1, MINUTE_S)
        return [known.get(at) or Minute(at) for at in times]

    def on_event(self, event: DomainEvent) -> None:
        """Count an event."""
        if isinstance(event, Requested):
            self._dropped[event.fork.id] = 0
        elif isinstance(event, Started):
            self._now().started += 1
        elif isinstance(event, Resumed):
            self._on_resumed(event)
        elif isinstance(event, Ended):
            self._on_ended(event)
        elif isinstance(event, Refused) and isinstance(event.request, StartFork):
            self._now().refused += 1

    def _on_resumed(self, event: Resumed) -> None:
        minute = self._now()
        minute.reconnects += event.what is Away.SERVER
        if event.frames_dropped and event.fork.id in self._dropped:
            minute.frames_dropped += event.frames_dropped
            self._dropped[event.fork.id] += event.frames_dropped

    def _on_ended(self, event: Ended) -> None:
        minute = self._now()
        minute.ended += 1
        minute.failed += event.reason in FAILURES
        counted = self._dropped.pop(event.fork.id, 0)
        minute.frames_dropped += max(0, event.stats.frames_dropped - counted)

    def _this_minute(self) -> int:
        return int(self._clock()) // MINUTE_S * MINUTE_S

    def _now(self) -> Minute:
        at = self._this_minute()
        if not self._minutes or self._minutes[-1].at < at:
            self._minutes.append(Minute(at))
        return self._minutes[-1]
