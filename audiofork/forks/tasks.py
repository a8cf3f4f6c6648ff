"""Background tasks with an owner that waits for them at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Tasks:
    """The running tasks of one owner; an exception of a task is logged and not passed on."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine as a task; never waits."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    async def finish(self) -> None:
        """Wait for the running tasks."""
        await asyncio.gather(*self._tasks, return_exceptions=True)  # `_on_done` logs them

    async def cancel(self) -> None:
        """Cancel the running tasks, and wait for them."""
        for task in self._tasks:
            task.cancel()
        await self.finish()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a task failed unexpectedly", exc_info=exc)
