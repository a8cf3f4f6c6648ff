"""WebSocket servers that do as a test says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

Behave = Callable[[ServerConnection], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(behave: Behave) -> AsyncIterator[str]:
    """Run a server; yield its URL."""

    async def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await behave(connection)

    def choose(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return offered[0] if offered else None

    async with serve(handle, "127.0.0.1", 0, select_subprotocol=choose, compression=None) as one:
        yield f"ws://127.0.0.1:{one.sockets[0].getsockname()[1]}/"
