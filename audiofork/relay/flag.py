"""An event that others wait for, which takes little memory while nobody does."""

from __future__ import annotations

import asyncio


class Flag:
    """As `asyncio.Event`, whose queue takes three quarters of a kB though nobody may ever wait."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Let those who come now wait until it is set again."""
        self._is_set = False

    async def wait(self) -> None:
        """Return when it is set, at once if it is already."""
        if self._is_set:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
