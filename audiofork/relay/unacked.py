"""Keeps the frames and events that the peer's TCP has not acknowledged, to send them again.

When a connection breaks, the data in its buffers is lost, here and in the kernel. Linux reports
how many bytes the peer's TCP has acknowledged (tcp(7), TCP_INFO). So the frames that did not
arrive are known exactly.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Sequence
from typing import Final

from audiofork.relay.formats.base import Event
from audiofork.relay.latencies import Latencies
from audiofork.relay.tls import RECORD_PAYLOAD_BYTES, Records

# Of struct tcp_info (linux/tcp.h): tcpi_rtt, in microseconds, at 68, tcpi_bytes_acked at 120,
# tcpi_notsent_bytes at 144.
_INFO: Final = struct.Struct("=68xI48xQ16xI")
_OUTQ: Final = struct.Struct("=i")

# One write; sizes are in bytes on the wire. One of:
# - a tuple: the frames or events that it carried, and its size without TLS;
# - bytes: a frame that was a message of its own (no tuple, because the hot path writes it);
# - an int: extra bytes of TLS, negative if a record adds less than others.
Written = tuple[Sequence[bytes | Event], int] | bytes | int


class Unacked:
    """The writes of one connection that may still be lost.

    Owned by an outlet, which appends each write to `writes`, and calls `update()` now and then and
    `close()` once.

    Args:
        transport: The connection's transport.
        frame_wire_bytes: Bytes of a message of one frame on the wire, without TLS.
        latencies: Counts how long the marked writes took.

    Attributes:
        not_sent: Bytes that the kernel had not sent yet at the last `update()`.
        rtt_us: The smoothed round trip then, in microseconds; 0 if unknown.
        updates: How many there were since the latest `mark()`.
        writes: Those that the peer has not acknowledged, oldest first; always the same list,
            because it is appended to for every frame.
    """

    def __init__(
        self, transport: asyncio.Transport, frame_wire_bytes: int, latencies: Latencies
    ) -> None:
        self.not_sent = 0
        self.rtt_us = 0
        self.updates = 0
        self._latencies = latencies
        self._forgotten = 0  # writes
        self._measured = 0.0  # the time of the latest update that has looked for marked writes
        # Each with the number of its write, the time then, and how long it had waited before.
        self._marks: list[tuple[int, float, float]] = []
        self.writes: list[Written] = []
        self._position = 0  # where the first write in the list begins, in bytes since `_before`
        records: Records | None = transport.get_extra_info("tls_records")
        self._record_bytes = (records and records.record_bytes) or 0
        if records is not None:
            records.on_extra = self.writes.append
        self._frame_on_wire = self._on_wire(((), frame_wire_bytes))
        # The transport closes it after the last call of this: see `relay/tcp.py`. It is closed
        # where the connection was lost before it came here.
        own: socket.socket = transport.get_extra_info("socket")
        self._socket: socket.socket | None = own if own.fileno() >= 0 else None
        # Bytes of the TCP stream before the first write. The queued bytes are read before the
        # acknowledged ones. A byte acknowledged in between then counts twice, so at worst a frame
        # that arrived is sent again, and none is lost.
        queued = transport.get_write_buffer_size() + self._queued()
        self._before = 0
        self._before = (self._acked() or 0) + queued

    def update(self) -> None:
        """Forget the writes that the peer has acknowledged; update `not_sent`."""
        acked = self._acked()
        position, gone = self._position, 0
        frame_on_wire = self._frame_on_wire
        for write in self.writes:
            end = position + (frame_on_wire if isinstance(write, bytes) else self._on_wire(write))
            if acked is not None and end > acked:
                break
            position = end
            gone += 1
        del self.writes[:gone]
        self._position = position
        self._forgotten += gone
        self.updates += 1
        if self._marks:
            self._measure()

    def mark(self, waited_s: float) -> None:
        """Measure how long the latest write takes until it is acknowledged.

        Args:
            waited_s: How long its last frame had waited before the write, in seconds.
        """
        self.updates = 0
        if self.rtt_us:  # else the kernel is too old to tell
            self._marks.append((self._forgotten + len(self.writes), time.monotonic(), waited_s))

    def _measure(self) -> None:
        """Count the marked writes that are acknowledged by now.

        When they were is known only as exactly as updates follow each other, which is at every
        fifth frame or tenth. Between two, the round trip counts that TCP itself has measured.
        """
        now = time.monotonic()
        while self._marks and self._marks[0][0] <= self._forgotten:
            _, at, waited_s = self._marks.pop(0)
            at_least = max(0.0, self._measured - at)  # it was not acknowledged yet then
            took_s = min(max(self.rtt_us / 1e6, at_least), now - at)
            self._latencies.add(waited_s + took_s)
        self._measured = now

    def on_the_way(self) -> int:
        """Return how many bytes the peer has not acknowledged, with TLS; asks the kernel."""
        self.update()
        frame = self._frame_on_wire
        return sum(frame if isinstance(one, bytes) else self._on_wire(one) for one in self.writes)

    def _on_wire(self, write: tuple[Sequence[bytes | Event], int] | int) -> int:
        """Return how many bytes a write took on the wire, with TLS."""
        if isinstance(write, int):
            return write
        wire_bytes = write[1]
        return wire_bytes + (1 + (wire_bytes - 1) // RECORD_PAYLOAD_BYTES) * self._record_bytes

    def close(self) -> list[bytes | Event]:
        """Return the frames and events not acknowledged, oldest first; called after the end."""
        self.update()
        lost: list[bytes | Event] = []
        for write in self.writes:
            if not isinstance(write, int):
                lost += (write,) if isinstance(write, bytes) else write[0]
        self.writes.clear()
        self._socket = None
        return lost

    def _acked(self) -> int | None:
        """Return how many bytes since `_before` the peer has acknowledged; None if unknown."""
        if self._socket is None:
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            self.rtt_us, acked, self.not_sent = _INFO.unpack(info)
        except (OSError, struct.error):  # struct.error: a kernel older than 4.6 returns less
            return None
        return int(acked) - self._before

    def _queued(self) -> int:
        """Return how many bytes in the kernel the peer has not acknowledged."""
        if self._socket is None:
            return 0
        queued = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(_OUTQ.size))
        return int(_OUTQ.unpack(queued)[0])
