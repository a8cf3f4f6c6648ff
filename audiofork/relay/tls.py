"""TLS over a socket of its own: OpenSSL reads and writes the socket itself.

An event loop's TLS passes each write through buffers in memory and then through the transport of
the TCP connection. That costs more than the encryption does (docs/performance.md), and memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from typing import Any

# What one record can carry (RFC 8446, 5.1). Reads ask for as much, so that OpenSSL, which reads one
# record at a time, holds nothing that the event loop would not know of.
RECORD_PAYLOAD_BYTES = 16_384
_DEFAULT_LIMIT_BYTES = 65_536

_NOT_NOW = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


async def open_tls(
    connected: socket.socket, context: ssl.SSLContext, host: str, protocol: asyncio.Protocol
) -> TlsTransport:
    """Shake hands, and give a connection to a protocol.

    Args:
        connected: A connected, non-blocking socket; from now on this function's.
        context: What is asked of the server.
        host: Whose certificate it must have.

    Raises:
        ssl.SSLCertVerificationError: The certificate is not accepted.
        OSError: The handshake failed otherwise; ssl.SSLError is one.
        ValueError: The host cannot be a name.
    """
    try:
        # Takes the socket over.
        tls = context.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        connected.close()
        raise
    try:
        await _shake_hands(tls)
        transport = TlsTransport(tls, protocol)
    except BaseException:
        tls.close()
        raise
    try:
        protocol.connection_made(transport)
    except BaseException:
        transport.abort()
        raise
    return transport


async def _shake_hands(tls: ssl.SSLSocket) -> None:
    loop, fd = asyncio.get_running_loop(), tls.fileno()
    while True:
        ready = asyncio.Event()
        try:
            tls.do_handshake()
            return
        except ssl.SSLWantReadError:
            loop.add_reader(fd, ready.set)
        except ssl.SSLWantWriteError:
            loop.add_writer(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
            loop.remove_writer(fd)


class TlsTransport(asyncio.Transport):
    """A transport (PEP 3156) over an SSLSocket whose handshake is over.

    Owned by its protocol. A write goes out at once, as one record for each 16 KiB; what the kernel
    does not take waits here. When the peer ends its side the connection is over, and what waits
    is lost with it.

    The event loop watches the socket no more before it is closed: uvloop aborts the process if a
    socket is closed that it still watches.

    Args:
        tls: Non-blocking; the transport closes it, after `connection_lost`.
    """

    def __init__(self, tls: ssl.SSLSocket, protocol: asyncio.Protocol) -> None:
        super().__init__(
            {
                "socket": tls,
                "ssl_object": tls,
                "sockname": tls.getsockname(),
                "peername": tls.getpeername(),
            }
        )
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._fd = tls.fileno()
        self._send = tls.send
        self._protocol: asyncio.BaseProtocol = protocol
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._takes = True  # nothing waits, and no end is in sight
        self._closing = False
        self._lost = False
        self._reading = False
        self._paused = False  # the protocol was told to pause
        self._limits = (_DEFAULT_LIMIT_BYTES // 4, _DEFAULT_LIMIT_BYTES)
        self.resume_reading()

    # --- Writing ---

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send now what the kernel takes, and the rest as soon as it does."""
        if self._takes:
            try:
                sent = self._send(data)
            except _NOT_NOW:
                sent = 0
            except OSError as exc:
                self._lose(exc)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._keep(bytes(data))

    def _keep(self, data: bytes) -> None:
        if self._closing or not data:
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._takes:
            self._takes = False
            self._loop.add_writer(self._fd, self._flush)
        if self._waiting_bytes > self._limits[1] and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def _flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        waiting = self._waiting
        while waiting:
            data = waiting[0]
            try:
                sent = self._send(data)  # after "not now" OpenSSL wants the same once more
            except _NOT_NOW:
                return
            except OSError as exc:
                self._lose(exc)
                return
            self._waiting_bytes -= sent
            if sent == len(data):
                waiting.popleft()
            else:
                waiting[0] = data[sent:]
            self._resume_protocol()
        self._loop.remove_writer(self._fd)
        self._takes = True
        if self._closing:
            self._lose(None)

    def _resume_protocol(self) -> None:
        if self._paused and self._waiting_bytes <= self._limits[0]:
            self._paused = False
            self._protocol.resume_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _DEFAULT_LIMIT_BYTES if low is None else 4 * low
        self._limits = (high // 4 if low is None else low, high)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._limits

    def get_write_buffer_size(self) -> int:
        return self._waiting_bytes

    def can_write_eof(self) -> bool:
        return False

    # --- Reading ---

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = self._tls.recv(RECORD_PAYLOAD_BYTES)
        except _NOT_NOW:  # a part of a record, or one that is OpenSSL's own
            return
        except OSError as exc:
            self._lose(exc)
            return
        assert isinstance(self._protocol, asyncio.Protocol)
        if data:
            self._protocol.data_received(data)
        else:
            self._protocol.eof_received()
            self._lose(None)

    # --- The end ---

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close when all that waits has been sent."""
        if self._closing:
            return
        self._closing = True
        self._takes = False
        self.pause_reading()
        if not self._waiting:
            self._lose(None)

    def abort(self) -> None:
        """Close now."""
        self._lose(None)

    def _lose(self, exc: Exception | None) -> None:
        """End the connection; the protocol hears of it in the next turn."""
        if self._lost:
            return
        self._lost = self._closing = True
        self._takes = False
        self.pause_reading()
        self._loop.remove_writer(self._fd)
        if exc is None and not self._waiting:
            self._say_goodbye()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._loop.call_soon(self._tell_of_loss, exc)

    def _say_goodbye(self) -> None:
        """Tell the peer that there is no more, without waiting for its answer."""
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()

    def _tell_of_loss(self, exc: Exception | None) -> None:
        protocol, self._protocol = self._protocol, asyncio.BaseProtocol()
        try:
            protocol.connection_lost(exc)
        finally:
            self._tls.close()

    # --- Which protocol ---

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol
