"""What the tests of transports share: the protocol above, and the connection below."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

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
