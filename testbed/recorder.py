"""Runs a WebSocket server that records what it receives, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol


class Recording:
    """What was received over one connection.

    Attributes:
        path: Path and query of the request.
        opened: Loop time of the handshake; `closed` of the end, 0 while it is open.
        times: Loop time of each message; `messages` the messages.
        close_code: The close code of the client.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened = asyncio.get_running_loop().time()
        self.closed = 0.0
        self.times: list[float] = []
        self.messages: list[bytes | str] = []
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self.connection: ServerConnection | None = None

    @property
    def audio(self) -> bytes:
        """All binary messages, joined."""
        return b"".join(m for m in self.messages if isinstance(m, bytes))


class Recorder:
    """The server.

    Args:
        tls: For wss.
        keep: Whether the messages are kept.
        subprotocols: The ones that it knows; a client that offers none of them gets HTTP 400.
        choose: Chooses from what a client offers, instead of `subprotocols`.
        address: Where it listens.

    Attributes:
        recordings: One for each connection, oldest first.
        port: Where it listens on that address.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        keep: bool = True,
        subprotocols: Sequence[str] = (),
        choose: Callable[[ServerConnection, Sequence[Subprotocol]], Subprotocol | None]
        | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self._address = address
        self._tls = tls
        self._keep = keep
        self._subprotocols = [Subprotocol(name) for name in subprotocols] or None
        self._choose = choose
        self._changed = asyncio.Event()
        self._server: Server | None = None
        self.recordings: list[Recording] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._handle,
            self._address,
            0,
            ssl=self._tls,
            compression=None,
            max_queue=None,
            subprotocols=self._subprotocols,
            select_subprotocol=self._choose,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def url(self, path: str = "/") -> str:
        """Return the server's URL with a path."""
        scheme = "ws" if self._tls is None else "wss"
        host = self._address if self._tls is None else "localhost"
        return f"{scheme}://{host}:{self.port}{path}"

    def at(self, path: str) -> list[Recording]:
        """Return the recordings of a path."""
        return [recording for recording in self.recordings if recording.path == path]

    async def wait(
        self, matches: Callable[[Recording], bool], *, timeout_s: float = 30
    ) -> Recording:
        """Return the first recording that matches, waiting for it."""
        async with asyncio.timeout(timeout_s):
            while True:
                for recording in self.recordings:
                    if matches(recording):
                        return recording
                self._changed.clear()
                await self._changed.wait()

    async def wait_messages(self, path: str, count: int, *, timeout_s: float = 30) -> Recording:
        """Return the recording of a path once it has this many messages."""
        return await self.wait(
            lambda r: r.path == path and len(r.messages) >= count, timeout_s=timeout_s
        )

    async def wait_closed(self, path: str, *, timeout_s: float = 30) -> Recording:
        """Return the recording of a path once its connection is closed."""
        return await self.wait(lambda r: r.path == path and bool(r.closed), timeout_s=timeout_s)

    async def wait_left(self, *, timeout_s: float) -> None:
        """Wait until the clients have closed all connections, but no longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not all(recording.closed for recording in self.recordings):
                    self._changed.clear()
                    await self._changed.wait()

    async def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        recording = Recording(connection.request.path)
        recording.connection = connection
        self.recordings.append(recording)
        self._changed.set()
        loop = asyncio.get_running_loop()
        try:
            while True:
                message = await connection.recv()
                recording.times.append(loop.time())
                if self._keep:
                    recording.messages.append(message)
                self._changed.set()
        except ConnectionClosed as exc:
            recording.closed = loop.time()
            if exc.rcvd is not None:
                recording.close_code, recording.close_reason = exc.rcvd.code, exc.rcvd.reason
            self._changed.set()
