"""Connects to the AudioSocket port, as Asterisk does for a leg, or as a stranger."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from types import TracebackType
from typing import Self

HANGUP = b"\x00\x00\x00"


class AudioSocketClient:
    """One connection to the daemon's AudioSocket port, which sends what the test wants.

    Args:
        port: The port on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._opened = asyncio.get_running_loop().time()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the daemon was faster
            await self._writer.wait_closed()

    def send(self, wire: bytes) -> None:
        """Send bytes unchanged."""
        self._writer.write(wire)

    async def send_slowly(self, wire: bytes, pause_s: float) -> None:
        """Send byte by byte, each in a packet of its own, until all is sent or the end comes."""
        for position in range(len(wire)):
            if self._writer.is_closing() or self._reader.at_eof():
                return
            self._writer.write(wire[position : position + 1])
            await asyncio.sleep(pause_s)

    async def wait_closed(self, timeout_s: float = 30) -> float:
        """Wait until the daemon has closed the connection.

        Returns:
            How many seconds it was open.

        Raises:
            TimeoutError: It still is.
            AssertionError: It said more than a hangup.
        """
        said = b""
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(ConnectionError):  # a reset is an end too
                said = await self._reader.read()
        assert said in (b"", HANGUP), said
        return asyncio.get_running_loop().time() - self._opened


def uuid_message(fork_id: str | uuid.UUID) -> bytes:
    """Return the message that opens a leg."""
    return b"\x01\x00\x10" + uuid.UUID(str(fork_id)).bytes


def audio_message(payload: bytes) -> bytes:
    """Return a message of audio at 8000 Hz."""
    return b"\x10" + len(payload).to_bytes(2, "big") + payload
