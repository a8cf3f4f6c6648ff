"""Reads several frames of a leg at once, where several go into one message anyway.

To read one frame costs as much as to read five, and each read wakes the process: half of what a
frame costs. Linux wakes the process only when a set number of bytes is there (socket(7),
SO_RCVLOWAT). This pauses nothing: the kernel goes on acknowledging, and the end of the connection
comes through at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from audiofork.audiosocket import HEADER_BYTES, PTIME_MS, PTIME_S

# Far less than the kernel takes before it asks the sender to wait: Asterisk would take that for a
# failure, and drop the leg.
MOST_BATCHED_BYTES = 32_768
_MOST_READ_BYTES = 1_048_576


def wire_bytes(frame_bytes: int, batch_ms: int) -> int:
    """Return the bytes that `batch_ms` of audio takes on the wire, each frame in a message."""
    return batch_ms // PTIME_MS * (HEADER_BYTES + frame_bytes)


class ReadBatching:
    """Batches the reads of one connection, and lets no frame wait too long.

    Owned by a leg, which calls `on_read` after each read, `read_rest` before it ends the
    connection, and `stop` when that is closed.

    Args:
        transport: The connection.
        frame_bytes: Size of a frame.
        batch_ms: Milliseconds of audio in a full batch; `wire_bytes` tells their size.

    Attributes:
        is_late: What is read next, or was just read, has waited long enough already.
    """

    def __init__(self, transport: asyncio.Transport, frame_bytes: int, batch_ms: int) -> None:
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._message_bytes = HEADER_BYTES + frame_bytes
        # The first of the frames comes a tick after the read. One tick more is left for jitter:
        # ChanSpy skips one at times, and two frames come with the next.
        self._patience_s = batch_ms / 1000 + 2 * PTIME_S
        self._loop = asyncio.get_running_loop()
        self._read_at = self._loop.time()
        self.is_late = False
        self._wanted_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._await_frames(batch_ms // PTIME_MS)

    def _await_frames(self, count: int) -> None:
        self._wake_at(count * self._message_bytes)
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._on_timer)

    def _wake_at(self, count: int) -> None:
        """Have the process woken when this number of bytes is there."""
        if count != self._wanted_bytes:
            self._wanted_bytes = count
            with contextlib.suppress(OSError):  # the connection is being closed
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def _on_timer(self) -> None:
        left_s = self._read_at + self._patience_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._on_timer)
        else:  # read what there is, or, if that is nothing, the next frame
            self._timer = None
            self.is_late = True
            self._wake_at(1)

    def on_read(self, missing: int) -> None:
        """Note a read, and await the frames that the next message still lacks."""
        self._read_at = self._loop.time()
        self.is_late = False
        self._await_frames(missing)

    def read_rest(self) -> bytes:
        """Return what the kernel has and the loop has not read yet."""
        with contextlib.suppress(OSError):
            return os.read(self._socket.fileno(), _MOST_READ_BYTES)
        return b""

    def stop(self) -> None:
        """Stop the timer: the connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
