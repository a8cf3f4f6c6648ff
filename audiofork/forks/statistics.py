"""Asks the relay for the statistics of the running forks, and where they are."""

from __future__ import annotations

import asyncio
import itertools

from audiofork.link.messages import SendCommand, StatsTaken, TakeStats
from audiofork.link.relay import HostOf, this_host

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

    def on_taken(self, report: StatsTaken) -> None:
        """Handle an answer; ignore one that is late."""
        answer = self._asked.get(report.ticket)
        if answer is not None and not answer.done():
            answer.set_result(report)
