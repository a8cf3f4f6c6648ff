"""What the links to AMI and ARI share: attempts to connect, and what is said of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from audiofork.backoff import Backoff

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 10.0


class KeptLink:
    """A link that is made anew whenever it is lost.

    Attributes:
        status: The state of the link, as text for people.
    """

    def __init__(self, status: str, log: logging.Logger) -> None:
        self.status = status
        self._log = log
        self._said = ""
        self._waits = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._retry = asyncio.Event()

    def _is_up(self) -> bool:
        raise NotImplementedError

    def retry_now(self) -> None:
        """Make a link that is down try at once, and say how that went; else do nothing."""
        if not self._is_up():
            self._said = ""
            self._retry.set()

    def _begin_attempt(self) -> None:
        self._retry.clear()

    def _on_success(self) -> None:
        """Let the next pause be a short one."""
        self._waits.reset()

    async def _pause_longer(self) -> None:
        """Wait before the next attempt, twice as long as the last time."""
        await self._pause(self._waits.next_s())

    async def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt, unless somebody has asked for it since the last one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._retry.wait()

    def _say(self, level: int, status: str) -> None:
        """Log a change of the link's state once, not with each attempt."""
        if status != self._said:
            self._log.log(level, "%s", status)
        self.status = self._said = status
