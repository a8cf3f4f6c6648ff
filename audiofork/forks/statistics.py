"""Asks the relay for the statistics of the running forks, and where they are."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping

from audiofork.link.messages import ForkStats, SendCommand, StatsTaken, TakeStats
from audiofork.link.relay import HostOf, this_host

log = logging.getLogger(__name__)

STATS_TIMEOUT_S = 2.0


class Statistics:
    """Requests statistics, and matches the answers; owned by the registry, which passes them on.

    Args:
        send: Sends a command to the relay.
        host_of: Returns the name of the relay host that a fork is on.
    """

    def __init__(self, send: SendCommand, host_of: HostOf = this_host) -> None:
        self._send = send
        self.host_of = host_of
        self._tickets = itertools.count(1)
        self._asked: dict[int, asyncio.Future[StatsTaken]] = {}
        self._last: Mapping[str, ForkStats] = {}

    def __len__(self) -> int:
        """Return how many requests wait for an answer."""
        return len(self._asked)

    async def take(self) -> StatsTaken:
        """Return the statistics of all forks that the relay has.

        Raises:
            TimeoutError: The relay does not answer within STATS_TIMEOUT_S.
        """
        ticket = next(self._tickets)
        answer: asyncio.Future[StatsTaken] = asyncio.get_running_loop().create_future()
        self._asked[ticket] = answer
        self._send(TakeStats(ticket))
        try:
            async with asyncio.timeout(STATS_TIMEOUT_S):
                return await answer
        finally:
            del self._asked[ticket]

    async def latest(self) -> Mapping[str, ForkStats]:
        """Return the statistics of each fork; those of the last time where no answer comes."""
        try:
            return (await self.take()).stats
        except TimeoutError:
            log.warning("the relay tells no statistics in time: those shown are of the last time")
            return self._last

    def on_taken(self, report: StatsTaken) -> None:
        """Handle an answer; ignore one that is late, but for those who get none."""
        self._last = report.stats
        answer = self._asked.get(report.ticket)
        if answer is not None and not answer.done():
            answer.set_result(report)
