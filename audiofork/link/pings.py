"""The pings to a relay host, and what has waited for their answers."""

from __future__ import annotations

import asyncio
from collections import deque

PING_INTERVAL_S = 1.0


class Pings:
    """The pings of a session that are not answered yet, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._sent_at = -1e9

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether it is time for another."""
        since_s = asyncio.get_running_loop().time() - self._sent_at
        return not self._waiting and since_s >= PING_INTERVAL_S

    def add(self) -> asyncio.Future[bool]:
        """Note one that is sent; the result says whether it was answered in its session."""
        loop = asyncio.get_running_loop()
        ping: asyncio.Future[bool] = loop.create_future()
        self._sent_at = loop.time()
        self._waiting.append(ping)
        return ping

    def on_pong(self) -> None:
        """Take the answer to the oldest."""
        if self._waiting and not (ping := self._waiting.popleft()).done():
            ping.set_result(True)

    def end(self) -> None:
        """Wait for no answers any more: the session is over."""
        for ping in self._waiting:
            if not ping.done():
                ping.set_result(False)
        self._waiting.clear()
