"""Logs attacks: at most one line a second for each kind, with the number of attempts."""

from __future__ import annotations

import logging

from audiofork.forks.events import Attack, AttackKind, DomainEvent
from audiofork.log import CounterLine
from audiofork.text import harmless

log = logging.getLogger(__name__)


class AttackLog:
    """Subscribes to the events of forks."""

    def __init__(self) -> None:
        self._lines = {kind: CounterLine(log, f"attack, {kind}") for kind in AttackKind}

    def on_event(self, event: DomainEvent) -> None:
        """Log the event if it is an attack."""
        if isinstance(event, Attack):
            self._lines[event.kind].count(harmless(event.detail), event.count)
