"""What the forks of a relay host have counted: asks the worker for all who want to know."""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import Callable, Container, Sequence

from audiofork.link.messages import ForkEnded, ForkStats, StatsTaken, TakeStats

COUNTED = ("frames_in", "frames_sent", "frames_dropped", "frames_missing")
"""The fields of `ForkStats` that are added up."""
_values = operator.attrgetter(*COUNTED)
_NOTHING = _values(ForkStats())


class HostStats:
    """Asks for statistics, and adds up those of all forks, running and ended.

    Args:
        handle: Has the worker execute a command.
    """

    def __init__(self, handle: Callable[[TakeStats], None]) -> None:
        self._handle = handle
        self._tickets = itertools.count()
        self._asked: dict[int, Callable[[StatsTaken], None]] = {}
        self._ended: Sequence[int] = _NOTHING
        self._running: dict[str, Sequence[int]] = {}  # as last heard of

    def ask(self, take: Callable[[StatsTaken], None]) -> None:
        """Have a function called with the statistics of all forks that run."""
        ticket = next(self._tickets)
        self._asked[ticket] = take
        self._handle(TakeStats(ticket))

    def on_taken(self, report: StatsTaken) -> None:
        """Pass the answer of the worker on to who has asked."""
        self._asked.pop(report.ticket)(report)

    async def take(self, running: Container[str]) -> StatsTaken:
        """Return the statistics of all forks that run, and note them for `counts`.

        Args:
            running: Those that run; read when the answer has come, as some may have ended.
        """
        taken: asyncio.Future[StatsTaken] = asyncio.get_running_loop().create_future()
        self.ask(lambda report: None if taken.done() else taken.set_result(report))
        report = await taken
        for fork_id, one in report.stats.items():
            if fork_id in running:
                self._running[fork_id] = self._latest(fork_id, one)
        return report

    def _latest(self, fork_id: str, stats: ForkStats) -> Sequence[int]:
        # Frames that come back from a broken connection do not count as sent any more.
        return tuple(map(max, self._running.get(fork_id, _NOTHING), _values(stats)))

    def on_ended(self, report: ForkEnded) -> None:
        """Note the last statistics of a fork."""
        latest = self._latest(report.fork_id, report.stats)
        self._running.pop(report.fork_id, None)
        self._ended = _sum(self._ended, latest)

    def counts(self) -> dict[str, int]:
        """Return the sums by the names of COUNTED; none ever decreases."""
        return dict(zip(COUNTED, _sum(self._ended, *self._running.values()), strict=True))


def _sum(*rows: Sequence[int]) -> Sequence[int]:
    return tuple(map(sum, zip(*rows, strict=True)))
