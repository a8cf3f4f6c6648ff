"""Runs calls that may block, each in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Threads(Generic[T]):
    """Runs functions that may block for long, each in a thread of its own.

    In a pool, a few functions that do not return take all threads; here each takes only its own.
    The process exits without waiting for them.

    Args:
        limit: How many calls may run at once; the caller looks at `is_full`.

    Attributes:
        running: How many calls run, including those whose future was cancelled.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self.running >= self.limit

    def run(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Begin a call, even beyond the limit; return the future of its result or exception.

        Raises:
            OSError: The system cannot start another thread.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        work = (loop, future, function)
        try:
            threading.Thread(target=self._work, args=work, daemon=True).start()
        except RuntimeError as exc:
            raise OSError(errno.EAGAIN, f"no more threads: {exc}") from exc
        self.running += 1
        return future

    def _work(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], function: Callable[[], T]
    ) -> None:
        settle: Callable[[], None]
        try:
            settle = functools.partial(future.set_result, function())
        except Exception as exc:  # noqa: BLE001 (the future passes it on)
            settle = functools.partial(future.set_exception, exc)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._on_done, future, settle)

    def _on_done(self, future: asyncio.Future[T], settle: Callable[[], None]) -> None:
        self.running -= 1
        if not future.cancelled():
            settle()
