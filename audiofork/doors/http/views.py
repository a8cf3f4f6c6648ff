"""The forks for many readers: asks the relay once for all who ask at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from audiofork.forks.view import ForkView

RECENT_S = 0.5
# Rendered in one turn of the event loop, which has audio to relay: half a millisecond.
AT_ONCE = 25


class Views:
    """Returns all forks.

    Args:
        ask: Asks the registry, and through it the relay; raises TimeoutError.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[list[ForkView]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._asked: asyncio.Task[list[ForkView]] | None = None
        self._asked_at = float("-inf")

    async def recent(self) -> list[ForkView]:
        """Return all forks as they were RECENT_S ago, or later.

        Raises:
            TimeoutError: The relay does not answer in time.
        """
        asked, now = self._asked, self._clock()
        failed = asked is not None and asked.done() and (asked.cancelled() or asked.exception())
        if asked is None or failed or now - self._asked_at > RECENT_S:
            self._asked_at = now
            asked = self._asked = asyncio.create_task(self._now())
        # Those who ask at the same time must not lose their answer because one of them leaves.
        return await asyncio.shield(asked)

    async def now(self) -> list[ForkView]:
        """Return all forks as they are now; raises as `recent`."""
        return await self._ask()

    async def _now(self) -> list[ForkView]:
        return await self._ask()

    async def one(self, fork_id: str) -> ForkView | None:
        """Return a fork as it is now; None: there is none. Raises as `recent`."""
        return next((view for view in await self.now() if view.id == fork_id), None)


async def in_slices(views: Sequence[ForkView]) -> AsyncIterator[ForkView]:
    """Yield forks, and let others have their turn after each AT_ONCE of them."""
    for number, view in enumerate(views, 1):
        yield view
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
