"""What a connection was given and its peer's TCP has not acknowledged: it can be sent again.

A connection that breaks takes along what lies in its buffers, here and in the kernel. Linux tells
how many bytes the peer's TCP has acknowledged (tcp(7), TCP_INFO), so the frames that never got
there are known to the byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Sequence

from audiofork.relay.formats.base import Event
from audiofork.relay.tls import RECORD_PAYLOAD_BYTES, Records

# Of struct tcp_info (linux/tcp.h): tcpi_bytes_acked at 120, tcpi_notsent_bytes at 144.
_INFO = struct.Struct("=120xQ16xI")
_OUTQ = struct.Struct("=i")

# The frames or events that a write carried, and how many bytes it took on the wire, without TLS; or
# just a frame that was a message of its own: the hot path makes no tuple for each; or the number of
# bytes that TLS took for itself, or a record less than others do.
Written = tuple[Sequence[bytes | Event], int] | bytes | int


class Unacked:
    """The writes of one connection that may still be lost.

    Owned by an outlet, which calls `add()` for each write, `update()` now and then, `close()` once.

    Args:
        frame_wire_bytes: What a frame takes on the wire, without TLS, as a message of its own.

    Attributes:
        not_sent: Bytes that the kernel had not sent yet at the last `update()`.
        add: Notes a write; a list's own method, because it is called for each frame.
    """

    def __init__(self, transport: asyncio.Transport, frame_wire_bytes: int) -> None:
        self.not_sent = 0
        self._writes: list[Written] = []
        self.add: Callable[[Written], None] = self._writes.append
        self._position = 0  # in the stream, where the first of them begins
        records: Records | None = transport.get_extra_info("tls_records")
        self._record_bytes = (records and records.record_bytes) or 0
        if records is not None:
            records.on_extra = self.add
        self._frame_on_wire = self._on_wire(((), frame_wire_bytes))
        self._socket = _duplicate(transport)
        # In the stream of the connection, where the first write begins. What has no socket of its
        # own, or is not acknowledged yet, is asked for first: rather too much than too little.
        queued = transport.get_write_buffer_size() + self._queued()
        self._before = 0
        self._before = (self._acked() or 0) + queued

    def update(self) -> None:
        """Forget what the peer has acknowledged, and ask what the kernel still holds back."""
        acked = self._acked()
        position, gone = self._position, 0
        frame_on_wire = self._frame_on_wire
        for write in self._writes:
            end = position + (frame_on_wire if isinstance(write, bytes) else self._on_wire(write))
            if acked is not None and end > acked:
                break
            position = end
            gone += 1
        del self._writes[:gone]
        self._position = position

    def _on_wire(self, write: tuple[Sequence[bytes | Event], int] | int) -> int:
        """Return how many bytes a write took on the wire, TLS among them."""
        if isinstance(write, int):
            return write
        wire_bytes = write[1]
        return wire_bytes + (1 + (wire_bytes - 1) // RECORD_PAYLOAD_BYTES) * self._record_bytes

    def close(self) -> list[bytes | Event]:
        """Return what was not acknowledged, oldest first; called when the connection is over."""
        self.update()
        lost: list[bytes | Event] = []
        for write in self._writes:
            if not isinstance(write, int):
                lost += (write,) if isinstance(write, bytes) else write[0]
        self._writes.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        return lost

    def _acked(self) -> int | None:
        """Return how many bytes the peer has acknowledged; None where that cannot be known."""
        if self._socket is None:
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            acked, self.not_sent = _INFO.unpack(info)
        except (OSError, struct.error):  # a kernel older than 4.6 tells less
            return None
        return int(acked) - self._before

    def _queued(self) -> int:
        """Return how many bytes the kernel has that the peer has not acknowledged."""
        if self._socket is None:
            return 0
        queued = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(_OUTQ.size))
        return int(_OUTQ.unpack(queued)[0])


def _duplicate(transport: asyncio.Transport) -> socket.socket | None:
    """Return a descriptor of our own: event loops close theirs before they tell of the loss."""
    own = transport.get_extra_info("socket")
    if own is None:
        return None
    with contextlib.suppress(OSError):  # no descriptor left
        return socket.socket(fileno=os.dup(own.fileno()))
    return None
