"""Lets TLS handshakes take turns: hundreds at once would leave the heap full of holes.

OpenSSL holds 25 kB for a handshake until it is over, between blocks that stay. Where all forks of a
busy host connect at once, that is a third of their memory, which only later forks can use again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

# They keep the processor busy, ours and that of most servers.
MOST_AT_ONCE = 4
# How long those that are under way let the next one wait. So servers that do not answer cost others
# this time for each, however busy the event loop is.
PATIENCE_S = 0.002


class HandshakeTurns:
    """The turns of one event loop: first come, first served.

    As a context it holds a turn. One begins while fewer than MOST_AT_ONCE are held, else when one
    ends; or if none has begun for PATIENCE_S.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        # When the next begins, whatever those under way do.
        self._due = self.loop.time() + PATIENCE_S

    async def __aenter__(self) -> None:
        turn: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(turn)
        if self._held < MOST_AT_ONCE:
            self._begin_next()
        elif self._timer is None:
            self._start_timer()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it had begun
                self._end()
            turn.cancel()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._held -= 1
        if self._held < MOST_AT_ONCE:
            self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else who waited for it was cancelled
                self._held += 1
                self._due = self.loop.time() + PATIENCE_S
                turn.set_result(None)
                return

    def _start_timer(self) -> None:
        self._timer = self.loop.call_at(self._due, self._on_impatience)

    def _on_impatience(self) -> None:
        """Begin as many as are due: a busy loop calls this late."""
        due, now = self._due, self.loop.time()
        while self._waiting and due <= now:
            self._begin_next()
            due += PATIENCE_S
        self._timer = None
        if self._waiting:
            self._start_timer()


_of_loop: HandshakeTurns | None = None


def handshake_turns() -> HandshakeTurns:
    """Return the turns of the running event loop; a process has one loop, tests have more."""
    global _of_loop
    if _of_loop is None or _of_loop.loop is not asyncio.get_running_loop():
        _of_loop = HandshakeTurns()
    return _of_loop
