"""Lets the kernel gather the frames of a leg, where several go into one message anyway.

To read one frame costs as much as to read five, and each wakes the process: half of what a frame
costs. Linux wakes us only when so many bytes are there (socket(7), SO_RCVLOWAT). Nothing is paused
by that: the kernel goes on acknowledging, and the end of the connection comes through at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from audiofork.relay.audiosocket import HEADER_BYTES, PTIME_MS, PTIME_S

# Far less than the kernel takes before it asks the sender to wait: Asterisk would take that for a
# failure, and drop the leg.
MOST_GATHERED_BYTES = 32_768
_MOST_READ_BYTES = 1_048_576


def wire_bytes(frame_bytes: int, gather_ms: int) -> int:
    """Return how long so much audio is on the wire, with each frame in a message of its own."""
    return gather_ms // PTIME_MS * (HEADER_BYTES + frame_bytes)


class Gatherer:
    """Gathers the frames of one connection, and does not let them wait too long.

    Owned by a leg, which calls `on_read` after each read, `read_rest` before it ends the
    connection, and `stop` when that is closed.

    Args:
        transport: The connection.
        frame_bytes: Size of a frame.
        gather_ms: How much audio to gather; `wire_bytes` tells how much that is.
    """

    def __init__(self, transport: asyncio.Transport, frame_bytes: int, gather_ms: int) -> None:
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._bytes = wire_bytes(frame_bytes, gather_ms)
        # The first of the frames comes a tick after the read; half of it is left for jitter.
        self._patience_s = gather_ms / 1000 + PTIME_S / 2
        self._loop = asyncio.get_running_loop()
        self._read_at = self._loop.time()
        self._is_late = False
        self._timer: asyncio.TimerHandle | None = None
        self._gather()

    def _gather(self) -> None:
        self._want(self._bytes)
        self._timer = self._loop.call_later(self._patience_s, self._on_timer)

    def _want(self, count: int) -> None:
        """Be woken when so many bytes are there."""
        with contextlib.suppress(OSError):  # the connection is being closed
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def _on_timer(self) -> None:
        left_s = self._read_at + self._patience_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._on_timer)
        else:  # read what there is, or, if that is nothing, the next frame
            self._timer = None
            self._is_late = True
            self._want(1)

    def on_read(self) -> None:
        """Note a read, and gather again if it came before its time."""
        self._read_at = self._loop.time()
        if self._is_late:
            self._is_late = False
            self._gather()

    def read_rest(self) -> bytes:
        """Read what the kernel has and the loop has not read yet."""
        with contextlib.suppress(OSError):
            return os.read(self._socket.fileno(), _MOST_READ_BYTES)
        return b""

    def stop(self) -> None:
        """Forget the connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
