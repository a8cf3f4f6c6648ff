"""Adds up what the relay counts of all forks, running and ended; no sum ever decreases."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from audiofork.forks.events import DomainEvent, Ended, Reconnecting, Requested
from audiofork.forks.lifecycle import Away
from audiofork.link.messages import ForkStats

COUNTED = (
    *("frames_in", "frames_sent", "frames_dropped", "frames_missing"),
    *("frames_played", "frames_cleared", "frames_unplayed", "underruns"),
    *("commands_refused", "messages_ignored", "messages_unused"),
)
"""The fields of `ForkStats` that are added up."""
_values = operator.attrgetter(*COUNTED)
_NOTHING = _values(ForkStats())


@dataclass(slots=True)
class _Running:
    """What is known of a running fork, in the order of COUNTED.

    Attributes:
        before: Of relay processes that it has lost.
        latest: Of the one that has it now, as last heard of; frames that come back from a broken
            connection do not make it less.
        lost: The number of the loss, counted over all forks, after which that one began.
    """

    before: Sequence[int] = _NOTHING
    latest: Sequence[int] = _NOTHING
    lost: int = 0


@dataclass(slots=True)
class Totals:
    """Subscribes to the events of forks, and takes the statistics of those that run.

    A relay process that dies takes its counts along: what was heard of them before stays.
    """

    _ended: Sequence[int] = _NOTHING
    _running: dict[str, _Running] = field(default_factory=dict)
    _losses: int = 0

    def on_event(self, event: DomainEvent) -> None:
        """Note a fork's begin and end, and the loss of its relay process."""
        if isinstance(event, Requested):
            self._running[event.fork.id] = _Running(lost=self._losses)
        elif isinstance(event, Ended):
            fork = self._running.pop(event.fork.id, None) or _Running()
            latest = map(max, fork.latest, _values(event.stats))
            self._ended = tuple(map(sum, zip(self._ended, fork.before, latest, strict=True)))
        elif isinstance(event, Reconnecting) and event.what is Away.RELAY:
            self._on_relay_lost(event.fork.id)

    def _on_relay_lost(self, fork_id: str) -> None:
        self._losses += 1
        if (fork := self._running.get(fork_id)) is not None:
            fork.before = tuple(map(sum, zip(fork.before, fork.latest, strict=True)))
            fork.latest, fork.lost = _NOTHING, self._losses

    def ask(self) -> int:
        """Return what to give to `take` with the answer; call it before the relay is asked.

        So an answer that is older than the loss of a process is not taken for the next one's.
        """
        return self._losses

    def take(self, stats: Mapping[str, ForkStats], asked: int) -> None:
        """Take statistics by fork id; of forks that have ended meanwhile they are ignored."""
        for fork_id, one in stats.items():
            fork = self._running.get(fork_id)
            if fork is not None and fork.lost <= asked:
                fork.latest = tuple(map(max, fork.latest, _values(one)))

    def counts(self) -> dict[str, int]:
        """Return the sums by the names of COUNTED."""
        rows = [self._ended]
        for fork in self._running.values():
            rows += (fork.before, fork.latest)
        return dict(zip(COUNTED, map(sum, zip(*rows, strict=True)), strict=True))
