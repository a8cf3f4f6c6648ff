"""A TLS transport that owns its socket: OpenSSL makes the records, and never sees the socket.

The event loop's own TLS passes each write through the transport of the TCP connection. That costs
more than the encryption, and more memory (docs/performance.md). If OpenSSL used the socket itself,
it would write bytes that nobody counts, and could wait for reads that we do not know of.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from audiofork.rate_limit import Allowance
from audiofork.relay.server_limits import WORK

# The most that one record can carry (RFC 8446, 5.1).
RECORD_PAYLOAD_BYTES: Final = 16_384
_DEFAULT_LIMIT_BYTES: Final = 65_536
# How much of OpenSSL's answers may wait, above the write limit, for a peer that does not read.
MOST_ANSWERS_BYTES = 1 << 20


async def open_tls(
    connected: socket.socket,
    context: ssl.SSLContext,
    host: str,
    protocol: asyncio.Protocol,
    outer: Records | None = None,
) -> TlsTransport:
    """Do the TLS handshake; return the transport, after `connection_made` of the protocol.

    Args:
        connected: A connected, non-blocking socket; this function or the transport closes it.
        context: How the server is verified, and which certificate it gets.
        host: The name that the server's certificate must have.
        protocol: Owns the transport.
        outer: The TLS with a proxy, its handshake over, that the server is reached through.

    Raises:
        ssl.SSLCertVerificationError: The certificate is not accepted.
        OSError: The handshake failed for another reason; ssl.SSLError is a subclass.
        ValueError: The host is not a valid name.
    """
    try:
        records = NestedRecords(context, host, outer) if outer else Records(context, host)
        await shake_hands(records, connected)
    except BaseException:
        connected.close()
        raise
    return run_over(connected, records, protocol)


def run_over(
    connected: socket.socket, records: Records, protocol: asyncio.Protocol
) -> TlsTransport:
    """Return a transport over TLS whose handshake is over, after `connection_made`."""
    try:
        transport = TlsTransport(connected, records, protocol)
    except BaseException:
        connected.close()
        raise
    try:
        protocol.connection_made(cast(asyncio.Transport, transport))
    except BaseException:
        transport.abort()
        raise
    return transport


async def shake_hands(records: Records, connected: socket.socket) -> None:
    """Do the TLS handshake over a connected, non-blocking socket.

    Raises:
        OSError: It failed; see `open_tls`.
    """
    loop = asyncio.get_running_loop()
    is_done = False
    while not is_done:
        try:
            is_done = records.shake_hands()
        except OSError:
            with contextlib.suppress(OSError):
                connected.send(records.take())  # tells the server why
            raise
        await loop.sock_sendall(connected, records.take())
        if not is_done:
            records.feed(await loop.sock_recv(connected, RECORD_PAYLOAD_BYTES))


class Records:
    """Encrypts data to TLS records and decrypts records, with OpenSSL.

    Attributes:
        tls: The connection as OpenSSL sees it.
        take: Returns the bytes to write to the socket; empty if there are none.
        record_bytes: Bytes that a record adds to its data, as in the first write; None before.
            With all usual ciphers each record adds the same; else `on_extra` gets the difference.
        on_extra: Called with the bytes on the wire that are not in the records of a write, for
            example OpenSSL's answer to a request for a new key. May be negative.
        on_costly: Called when the peer causes more work than allowed, or reads no answers.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, outgoing, server_hostname=host)
        self.take: Callable[[], bytes] = outgoing.read
        self.record_bytes: int | None = None
        self.on_extra: Callable[[int], object] = lambda _: None
        self.on_costly: Callable[[], object] = lambda: None
        self._encrypt = self.tls.write
        self._work_ms = Allowance(WORK, time.monotonic)

    def shake_hands(self) -> bool:
        """Continue the handshake with the data fed so far; return whether it is over.

        Raises:
            OSError: The handshake failed.
        """
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, chunk: bytes) -> None:
        """Take bytes that were read from the socket; empty at the end of the stream."""
        if chunk:
            self._incoming.write(chunk)
        else:
            self._incoming.write_eof()

    def seal(self, data: bytes | bytearray | memoryview[Any]) -> bytes:
        """Return the encrypted records for data, one for each 16 KiB."""
        length = len(data)
        sealed = self._encrypt(data)
        while sealed < length:  # OpenSSL takes all at once, but Python does not promise that
            sealed += self._encrypt(memoryview(data)[sealed:])
        wire = self.take()
        if len(wire) - length != self.record_bytes:
            self._note_overhead(length, len(wire) - length)
        return wire

    def _note_overhead(self, length: int, overhead: int) -> None:
        records = -(-length // RECORD_PAYLOAD_BYTES)
        if self.record_bytes is None:
            self.record_bytes = overhead // records
        if extra := overhead - records * self.record_bytes:
            self.on_extra(extra)

    def open(self) -> bytes | None:
        """Return the data of the next record; empty if the peer closes; None if no record waits."""
        try:
            return self.tls.read(RECORD_PAYLOAD_BYTES)
        except ssl.SSLWantReadError:
            return None

    def charge(self, work_s: float) -> None:
        """Charge the peer for CPU time in seconds that its data has cost."""
        if not self._work_ms.take(work_s * 1000):
            self.on_costly()

    def say_goodbye(self) -> bytes:
        """Return the record that tells the peer that no more data comes (close_notify)."""
        with contextlib.suppress(OSError):  # raised because the peer's own has not come yet
            self.tls.unwrap()
        return self.take()


class NestedRecords(Records):
    """Records within those of a proxy that is itself connected to by TLS.

    Args:
        context: As for `Records`; so is `host`.
        host: See `context`.
        outer: The TLS with the proxy; its handshake is over.
    """

    def __init__(self, context: ssl.SSLContext, host: str, outer: Records) -> None:
        super().__init__(context, host)
        self._outer = outer
        inner = self.take

        def take() -> bytes:
            data = inner()
            return outer.seal(data) if data else outer.take()

        self.take = take

    def feed(self, chunk: bytes) -> None:
        """Take bytes as `Records.feed` does; raise OSError if the proxy's TLS is broken."""
        self._outer.feed(chunk)
        while (data := self._outer.open()) is not None:
            super().feed(data)
            if not data:
                return


class TlsTransport:
    """A transport (PEP 3156) over a socket whose TLS handshake is over.

    It is none of asyncio's by its class, since it could not be compiled then: see setup.py.

    Owned by its protocol. A write is sent at once, as one record for each 16 KiB; bytes that the
    kernel does not take wait here, already encrypted. When the peer ends its side, the connection
    is over, and the bytes that wait are lost.

    The event loop must stop watching the socket before it is closed: uvloop aborts the process if
    it still watches a closed socket.

    Args:
        connected: The non-blocking socket; the transport closes it after `connection_lost`.
        records: Encrypts and decrypts; its handshake is over.
        protocol: The protocol that the transport calls.
    """

    _lost = False
    _paused = False  # whether the protocol's `pause_writing` was called

    def __init__(
        self, connected: socket.socket, records: Records, protocol: asyncio.Protocol
    ) -> None:
        self._info = {
            "socket": connected,
            "ssl_object": records.tls,
            "tls_records": records,
            "sockname": connected.getsockname(),
            "peername": connected.getpeername(),
        }
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._fd = connected.fileno()
        self._records = records
        self._send = connected.send
        self._protocol: asyncio.BaseProtocol = protocol
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._takes = True  # whether a write may go to the kernel: none waits, and not closing
        self._closing = False
        self._reading = False
        self._limits = (_DEFAULT_LIMIT_BYTES // 4, _DEFAULT_LIMIT_BYTES)
        self.resume_reading()

    # --- Writing ---

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send now what the kernel takes, and the rest as soon as the kernel has room."""
        if self._closing or not data:
            return
        try:
            wire = self._records.seal(data)
            sent = self._send(wire) if self._takes else 0
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._lose(exc)
            return
        if sent != len(wire):
            self._keep(wire[sent:])

    def _keep(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._takes:
            self._takes = False
            self._loop.add_writer(self._fd, self._flush)
        if self._waiting_bytes > self._limits[1] and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def _flush(self) -> None:
        """Send the bytes that wait, as many as the kernel takes."""
        waiting = self._waiting
        while waiting:
            data = waiting[0]
            try:
                sent = self._send(data)
            except BlockingIOError:
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
            self._loop.add_reader(self._fd, self._on_readable)
            # OpenSSL may hold records that are already read: the socket gives no event for those.
            self._loop.call_soon(self._deliver)

    def _on_readable(self) -> None:
        """Read, and charge the peer for the CPU time.

        Records without data cost work too, and only OpenSSL knows how many there were. So CPU time
        is measured instead of records.
        """
        began_s = time.thread_time()
        self._read()
        self._records.charge(time.thread_time() - began_s)

    def _read(self) -> None:
        try:
            chunk = self._socket.recv(RECORD_PAYLOAD_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            self._lose(exc)
            return
        if chunk:
            self._deliver(chunk)
        else:
            self._end()

    def _deliver(self, chunk: bytes = b"") -> None:
        """Give the protocol the data of each record, and send OpenSSL's answers.

        Args:
            chunk: What was read; records may wait all the same if there is nothing.
        """
        try:
            if chunk:
                self._records.feed(chunk)
            while self._reading and (data := self._records.open()) is not None:
                if not data:
                    self._end()
                    return
                assert isinstance(self._protocol, asyncio.Protocol)
                self._protocol.data_received(data)
            self._answer()
        except OSError as exc:
            self._lose(exc)

    def _answer(self) -> None:
        wire = self._records.take()
        if wire and not self._closing:
            self._records.on_extra(len(wire))
            self._keep(wire)
            if self._waiting_bytes > self._limits[1] + MOST_ANSWERS_BYTES:
                self._records.on_costly()

    def _end(self) -> None:
        """End the connection, because the peer has ended its side."""
        assert isinstance(self._protocol, asyncio.Protocol)
        self._protocol.eof_received()
        self._lose(None)

    # --- The end ---

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close when all bytes that wait have been sent."""
        if self._closing:
            return
        self._closing = True
        self._takes = False
        self.pause_reading()
        if not self._waiting:
            self._lose(None)

    def abort(self) -> None:
        """Close now; bytes that wait are lost."""
        self._lose(None)

    def _lose(self, exc: Exception | None) -> None:
        """End the connection; `connection_lost` is called in the next turn of the event loop."""
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
        """Tell the peer that no more data comes, without waiting for its answer."""
        with contextlib.suppress(OSError):
            self._send(self._records.say_goodbye())
            # Read what waits: the kernel resets a connection that is closed with unread data, and
            # the peer may then lose what it has not read. Servers send session tickets unasked.
            self._socket.recv(_DEFAULT_LIMIT_BYTES)

    def _tell_of_loss(self, exc: Exception | None) -> None:
        protocol, self._protocol = self._protocol, asyncio.BaseProtocol()
        self._records.on_costly = lambda: None  # so that it keeps no reference to the protocol
        try:
            protocol.connection_lost(exc)
        finally:
            self._socket.close()

    # --- Which protocol, and what is known ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._info.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol
