"""What the tests of transports share: the protocol above, the connection and the epoll below."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

# More than the kernel takes when nobody reads.
MUCH = bytes(range(256)) * 40_000
RESET = struct.pack("ii", 1, 0)


class Protocol(asyncio.Protocol):
    """Keeps what its transport tells."""

    def __init__(self) -> None:
        self.received = b""
        self.calls: list[str] = []
        self.lost: list[Exception | None] = []
        self.on_data: Callable[[], None] = lambda: None
        self.on_resume: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.on_data()

    def eof_received(self) -> None:
        self.calls.append("eof")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a TCP connection; the first does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.setblocking(False)
    return near, far


def read(end: socket.socket, count: int) -> bytes:
    """Return so many bytes of an end that blocks; fewer if the stream ends."""
    got = bytearray()
    while len(got) < count and (chunk := end.recv(65_536)):
        got += chunk
    return bytes(got)


def reset(end: socket.socket) -> None:
    """Close an end so that the other one gets an error."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.close()


class FullEpoll:
    """An epoll that takes no more descriptors."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)

    def register(self, descriptor: int, events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
