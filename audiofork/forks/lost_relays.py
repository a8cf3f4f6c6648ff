"""Moves forks whose relay is lost to another one."""

from __future__ import annotations

import asyncio

from audiofork.forks.admission import Admission
from audiofork.forks.ending import Ending
from audiofork.forks.fork import Fork
from audiofork.forks.legs import Legs
from audiofork.forks.moving import Moving
from audiofork.forks.relocation import Relocation
from audiofork.forks.starting import Starting
from audiofork.forks.table import ForkTable
from audiofork.forks.waiting_calls import WaitingCalls
from audiofork.link.messages import (
    EndReason,
    ForkEnded,
    ForkStats,
    RelayAway,
    RelayBack,
    RelayLost,
    RelaysFound,
    RelaysReport,
    TakenOver,
)

RELAY_DIED = "a relay process died"


class LostRelays:
    """Handles what the relay reports of processes, or hosts, that have died.

    Owned by the registry of forks.

    Args:
        table: All forks.
        admission: Knows how many forks a second may start.
        legs: Hangs up and requests the legs of forks.
        starting: Starts forks again.
        ending: Ends those that cannot be started again.
        relocation: Moves forks from relay hosts that are drained.
        waiting: Ends forks of calls that do not wait for another relay.
    """

    def __init__(
        self,
        table: ForkTable,
        admission: Admission,
        legs: Legs,
        starting: Starting,
        ending: Ending,
        relocation: Relocation,
        waiting: WaitingCalls,
    ) -> None:
        self._table = table
        self._legs = legs
        self._starting = starting
        self._ending = ending
        self._relocation = relocation
        self._waiting = waiting
        self._moving = Moving(lambda: admission.security.max_starts, self._replace_relay)

    def on_report(self, report: RelaysReport) -> None:
        """Handle a report of what becomes of forks when relays come and go."""
        if isinstance(report, RelayAway):
            self._on_away(report)
        elif isinstance(report, RelayBack):
            self._on_back(report)
        elif isinstance(report, RelayLost):
            self._on_lost(report)
        elif not isinstance(report, RelaysFound):  # which is the recovery's
            self._relocation.on_report(report)

    def on_taken_over(self, fork: Fork, report: TakenOver) -> None:
        """Handle the report of a relay that has gone on with a fork."""
        self._relocation.on_taken_over(fork, report)

    def _on_away(self, report: RelayAway) -> None:
        """Mark forks that have no relay process for now: none of their legs can connect."""
        for fork_id in report.fork_ids:
            if (fork := self._table.get(fork_id)) is not None:
                fork.progress.relay_away = True
                self._waiting.watch(fork)

    def _on_back(self, report: RelayBack) -> None:
        """Go on with forks whose relay process is there again."""
        for fork_id in report.fork_ids:
            if (fork := self._table.get(fork_id)) is not None:
                fork.progress.relay_away = False
                self._legs.on_relay_back(fork)

    def _on_lost(self, report: RelayLost) -> None:
        """Start forks again in another relay process; their old legs are hung up."""
        lost_at = asyncio.get_running_loop().time() - report.away_s
        found = map(self._table.get, report.fork_ids)
        forks = [fork for fork in found if fork is not None]
        for fork in forks:
            fork.progress.relay_away = True
            fork.progress.relays_lost += 1
            self._waiting.watch(fork)
        self._moving.add(forks, lost_at)

    def _replace_relay(self, fork: Fork, lost_at: float) -> None:
        if fork not in self._table:
            return
        fork.progress.relay_away = False
        # Some versions do not end a leg when its connection closes; such a leg may use 100 % CPU.
        self._legs.hang_up(fork)
        if fork.is_ending:
            self._end_without_relay(fork, fork.progress.end_asked or EndReason.HANGUP, RELAY_DIED)
        elif in_vain := self._legs.lose_all(fork, lost_at, RELAY_DIED):
            self._end_without_relay(fork, EndReason.LEG_FAILED, in_vain)
        else:
            self._starting.order(fork, anew=True)

    def forget(self) -> None:
        """Leave all forks that wait as they are."""
        self._moving.close()
        self._relocation.forget()

    def close(self) -> None:
        """Start no forks again any more, and move none."""
        self._moving.close()
        self._relocation.close()

    def _end_without_relay(self, fork: Fork, reason: EndReason, detail: str) -> None:
        self._ending.on_ended(fork, ForkEnded(fork.id, reason, detail, ForkStats()))
