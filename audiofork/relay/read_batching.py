"""Reads several frames of a leg at once, if a message has several frames anyway.

Reading one frame costs as much as reading five, and each read wakes the process: that is half of
the cost of a frame. With SO_RCVLOWAT (socket(7)) Linux wakes the process only when a set number of
bytes is there. Nothing is paused: the kernel still acknowledges data, and still reports the end of
the connection at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import OrderedDict

from audiofork.audiosocket import HEADER_BYTES, PTIME_MS, PTIME_S

# Far less than the kernel's receive buffer: if that were full, the sender would have to wait, and
# Asterisk would treat that as a failure and drop the leg.
MOST_BATCHED_BYTES = 32_768


def wire_bytes(frame_bytes: int, batch_ms: int) -> int:
    """Return the bytes that `batch_ms` of audio takes on the wire, with one message per frame."""
    return batch_ms // PTIME_MS * (HEADER_BYTES + frame_bytes)


class Patience:
    """Sees that no frames of batches of one length wait too long, with one timer for all legs.

    A timer for each leg would cost as much as its reads.

    Args:
        batch_ms: Audio in a full batch, in milliseconds.
    """

    def __init__(self, batch_ms: int) -> None:
        # The first frame of a batch comes one tick after the last read. Another tick is for jitter:
        # ChanSpy sometimes skips a tick and sends two frames at the next.
        self._patience_s = batch_ms / 1000 + 2 * PTIME_S
        self._loop = asyncio.get_running_loop()
        # When each was read, which is also their order.
        self._read_at: OrderedDict[ReadBatching, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, batching: ReadBatching) -> None:
        """Begin to wait for frames that were read just now, or that are the first."""
        self._read_at[batching] = self._loop.time()
        self._read_at.move_to_end(batching)
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._on_timer)

    def forget(self, batching: ReadBatching) -> None:
        """Wait no longer."""
        self._read_at.pop(batching, None)
        if not self._read_at and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        while self._read_at:
            batching, read_at = next(iter(self._read_at.items()))
            left_s = read_at + self._patience_s - self._loop.time()
            if left_s > 0:
                self._timer = self._loop.call_later(left_s, self._on_timer)
                return
            del self._read_at[batching]
            batching.read_at_once()


class ReadBatching:
    """Batches the reads of one connection, and lets no frame wait too long.

    Owned by a leg, which calls `on_read` after each read, and `stop` when that is closed or each
    frame counts again.

    Args:
        connected: The connection.
        frame_bytes: Size of a frame in bytes.
        batch_ms: Audio in a full batch, in milliseconds; `wire_bytes` returns its size.
        patience: That for batches of this length.

    Attributes:
        is_late: Whether the frames just read, or read next, have waited as long as they may.
    """

    __slots__ = ("_message_bytes", "_patience", "_socket", "_wanted_bytes", "is_late")

    def __init__(
        self, connected: socket.socket, frame_bytes: int, batch_ms: int, patience: Patience
    ) -> None:
        self._socket = connected
        self._message_bytes = HEADER_BYTES + frame_bytes
        self._patience = patience
        self._wanted_bytes = 0
        self.on_read(batch_ms // PTIME_MS)

    def _wake_at(self, count: int) -> None:
        """Tell the kernel to wake the process when this number of bytes is there."""
        if count != self._wanted_bytes:
            self._wanted_bytes = count
            with contextlib.suppress(OSError):  # raised if the connection is being closed
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    def read_at_once(self) -> None:
        """Let the process be woken for what has come; if nothing has, for the next frame."""
        self.is_late = True
        self._wake_at(1)

    def on_read(self, missing: int) -> None:
        """Wait for the next batch after a read.

        Args:
            missing: Frames that the next message still lacks.
        """
        self.is_late = False
        wanted_bytes = missing * self._message_bytes
        if wanted_bytes != self._wanted_bytes:
            self._wake_at(wanted_bytes)
        self._patience.wait(self)

    def stop(self) -> None:
        """Let the process be woken by each frame again."""
        self._wake_at(1)
        self._patience.forget(self)
