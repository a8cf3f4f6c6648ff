"""The common part of the AMI and ARI connections: connect attempts, and their log lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from audiofork.backoff import Backoff

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 10.0


class ReconnectingClient:
    """A connection to Asterisk that is opened again whenever it is lost.

    Attributes:
        status: The state of the connection, as text for people.
    """

    def __init__(self, status: str, log: logging.Logger) -> None:
        self.status = status
        self._log = log
        self._said = ""
        self._waits = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._retry = asyncio.Event()

    def _is_up(self) -> bool:
        raise NotImplementedError

    @property
    def is_up(self) -> bool:
        """Whether the connection is open."""
        return self._is_up()

    def retry_now(self) -> None:
        """Try to connect at once and log the result; no effect on an open connection."""
        if not self._is_up():
            self._said = ""
            self._retry.set()

    def _begin_attempt(self) -> None:
        self._retry.clear()

    def _on_success(self) -> None:
        """Reset the next pause to the shortest."""
        self._waits.reset()

    async def _pause_longer(self) -> None:
        """Wait before the next attempt; the pause grows with each failure."""
        await self._pause(self._waits.next_s())

    async def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt; return at once if `retry_now` was called since the last."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._retry.wait()

    def _say(self, level: int, status: str) -> None:
        """Set the status; log it only if it has changed, not at each attempt."""
        if status != self._said:
            self._log.log(level, "%s", status)
        self.status = self._said = status
