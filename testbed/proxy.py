"""Runs a TCP proxy on 127.0.0.1 that fails on demand, for fault tests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_CHUNK_BYTES = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s: close() sends RST, not FIN


class Proxy:
    """Forwards connections to a server until told to fail.

    Args:
        upstream: Host and port of the server.

    Attributes:
        port: Where it listens; kept for as long as the proxy lives, also while it refuses.
        connections: How many connections it has ever accepted.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: socket.socket | None = None
        self._live: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    async def __aenter__(self) -> Self:
        # Bound but never listening: nobody else gets the port while the proxy refuses.
        self._holder = self._bound(0)
        self.port = self._holder.getsockname()[1]
        self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        live = list(self._live)
        self.cut()
        await asyncio.gather(*live, return_exceptions=True)
        self._holder.close()

    def ws_url(self, path: str = "/") -> str:
        """Return the URL of a WebSocket server behind the proxy."""
        return f"ws://{HOST}:{self.port}{path}"

    def stall(self) -> None:
        """Stop reading and forwarding; connections stay open, new ones are accepted and silent.

        What is on its way (64 KiB at most in each direction of each connection) is kept.
        """
        self._flowing.clear()

    def resume(self) -> None:
        """End a stall; nothing is lost by it."""
        self._flowing.set()

    def cut(self) -> None:
        """Break off all live connections, on both sides, with RST."""
        for task in self._live:
            task.cancel()

    def refuse(self) -> None:
        """Stop listening: new connections are refused; live ones go on."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Listen, always on the same port."""
        if self._listener is None:
            self._listener = self._bound(self.port)
            self._listener.listen(1024)
            asyncio.get_running_loop().add_reader(self._listener, self._on_connection)

    def retarget(self, port: int) -> None:
        """Forward new connections to another port of the same host."""
        self._upstream = self._upstream[0], port

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket()
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((HOST, port))
        return bound

    def _on_connection(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client has gone again
            return
        self.connections += 1
        ends = client, socket.socket()
        for end in ends:
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(self._serve(*ends))
        self._live.add(task)
        task.add_done_callback(functools.partial(self._close, ends))

    def _close(self, ends: tuple[socket.socket, ...], task: asyncio.Task[None]) -> None:
        self._live.discard(task)
        broken = task.cancelled() or task.exception() is not None
        for end in ends:
            if broken:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.close()

    async def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """Forward until both sides have ended; raises when one has broken off."""
        await self._flowing.wait()
        await asyncio.get_running_loop().sock_connect(server, self._upstream)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pump(client, server))
            both.create_task(self._pump(server, client))

    async def _pump(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._flowing.wait()
            chunk = await loop.sock_recv(source, _CHUNK_BYTES)
            await self._flowing.wait()
            if not chunk:
                break
            await loop.sock_sendall(target, chunk)
        with contextlib.suppress(OSError):  # the target has closed already
            target.shutdown(socket.SHUT_WR)
