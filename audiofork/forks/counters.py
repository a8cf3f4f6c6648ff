"""Counts the events of forks since the start of the daemon."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from audiofork.errors import Refusal
from audiofork.forks.events import (
    Attack,
    AttackKind,
    DomainEvent,
    Ended,
    Reconnecting,
    Refused,
    Requested,
    Resumed,
    Started,
)
from audiofork.forks.lifecycle import Away
from audiofork.link.messages import EndReason

_LEGS = frozenset({Away.IN, Away.OUT, Away.MIX, Away.PAIRS})


@dataclass(slots=True)
class Counters:
    """Subscribes to the events of forks; no counter ever decreases.

    Attributes:
        requested: Forks granted, and forks resumed from an earlier run.
        refused: Valid requests that were not granted, from all doors.
        refusals: The same by reason.
        started: Forks whose first frame was sent to the server.
        failed: Forks that ended before that for a reason that is a failure.
        ended: Ended forks by reason, with those that failed.
        frames_in, frames_sent, frames_dropped, frames_missing: Frames of 20 ms of ended forks.
        reconnects: How often a server was connected again after a loss.
        legs_lost: How often a leg was lost, or its replacement did not connect.
        relays_lost: How often a fork lost its relay process.
        attacks: Attacks by kind.
    """

    requested: int = 0
    refused: int = 0
    refusals: Counter[Refusal] = field(default_factory=Counter)
    started: int = 0
    failed: int = 0
    ended: Counter[EndReason] = field(default_factory=Counter)
    frames_in: int = 0
    frames_sent: int = 0
    frames_dropped: int = 0
    frames_missing: int = 0
    reconnects: int = 0
    legs_lost: int = 0
    relays_lost: int = 0
    attacks: Counter[AttackKind] = field(default_factory=Counter)

    def on_event(self, event: DomainEvent) -> None:
        """Count an event."""
        if isinstance(event, Requested):
            self.requested += 1
        elif isinstance(event, Started):
            self.started += 1
        elif isinstance(event, Reconnecting):
            self.legs_lost += event.what in _LEGS
            self.relays_lost += event.what is Away.RELAY
        elif isinstance(event, Resumed):
            self.reconnects += event.what is Away.SERVER
        elif isinstance(event, Ended):
            self._on_ended(event)
        elif isinstance(event, Refused):
            self.refused += 1
            self.refusals[event.reason] += 1
        elif isinstance(event, Attack):
            self.attacks[event.kind] += event.count

    def _on_ended(self, event: Ended) -> None:
        self.failed += event.has_failed
        self.ended[event.reason] += 1
        self.frames_in += event.stats.frames_in
        self.frames_sent += event.stats.frames_sent
        self.frames_dropped += event.stats.frames_dropped
        self.frames_missing += event.stats.frames_missing
