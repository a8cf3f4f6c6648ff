"""What a connection was given and its peer's TCP has not acknowledged: it can be sent again.

A connection that breaks takes along what lies in its buffers, here and in the kernel. Linux tells
how many bytes the peer's TCP has acknowledged (tcp(7), TCP_INFO), so the frames that never got
there are known to the byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable, Sequence

from audiofork.relay.formats.base import Event
from audiofork.relay.tls import RECORD_PAYLOAD_BYTES

# Of struct tcp_info (linux/tcp.h): tcpi_bytes_acked at 120, tcpi_notsent_bytes at 144.
_INFO = struct.Struct("=120xQ16xI")
# What a record adds to what it carries: 5 bytes of header, 16 of tag; TLS 1.3: 1 of type; 1.2 with
# GCM: 8 of nonce (RFC 8446, 5.2; RFC 5288, 3; RFC 7905, 2).
_RECORD_BYTES = {"TLSv1.3": 22, "GCM": 29, "CHACHA20": 21}

# The frames or events that a write carried, and how many bytes it took on the wire, without TLS; or
# just a frame that was a message of its own: the hot path makes no tuple for each.
Written = tuple[Sequence[bytes | Event], int] | bytes


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
        self._frame_wire_bytes = frame_wire_bytes
        self.not_sent = 0
        self._writes: list[Written] = []
        self.add: Callable[[Written], None] = self._writes.append
        self._position = 0  # in the stream, where the first of them begins
        record_bytes = _record_bytes(transport)
        self._record_bytes = record_bytes or 0
        self._socket = None if record_bytes is None else _duplicate(transport)
        self._before = 0  # bytes that were acknowledged before the first write
        self._before = self._acked() or 0

    def update(self) -> None:
        """Forget what the peer has acknowledged, and ask what the kernel still holds back."""
        acked = self._acked()
        position, gone = self._position, 0
        for write in self._writes:
            wire_bytes = self._frame_wire_bytes if isinstance(write, bytes) else write[1]
            records = 1 + (wire_bytes - 1) // RECORD_PAYLOAD_BYTES
            end = position + wire_bytes + records * self._record_bytes
            if acked is not None and end > acked:
                break
            position = end
            gone += 1
        del self._writes[:gone]
        self._position = position

    def close(self) -> list[bytes | Event]:
        """Return what was not acknowledged, oldest first; called when the connection is over."""
        self.update()
        lost: list[bytes | Event] = []
        for write in self._writes:
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


def _record_bytes(transport: asyncio.Transport) -> int | None:
    """Return what each record of TLS adds; None where that is not constant."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    cipher = tls.cipher() if tls is not None else None
    if tls is None or cipher is None:
        return 0
    names = (tls.version() or "", *cipher[0].replace("_", "-").split("-"))
    return next((_RECORD_BYTES[name] for name in names if name in _RECORD_BYTES), None)


def _duplicate(transport: asyncio.Transport) -> socket.socket | None:
    """Return a descriptor of our own: event loops close theirs before they tell of the loss."""
    own = transport.get_extra_info("socket")
    if own is None:
        return None
    with contextlib.suppress(OSError):  # no descriptor left
        return socket.socket(fileno=os.dup(own.fileno()))
    return None
