"""TLS on top of TCP: OpenSSL makes the records, and never sees the socket.

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
from collections.abc import Callable
from typing import Any, Final

from audiofork.rate_limit import Allowance
from audiofork.relay.server_limits import WORK
from audiofork.relay.tcp import TcpTransport

# The most that one record can carry (RFC 8446, 5.1).
RECORD_PAYLOAD_BYTES: Final = 16_384
_GOODBYE_BYTES: Final = 65_536
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
    transport = TlsTransport(connected, records, protocol)
    transport.begin()
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
        # What OpenSSL's object does, without the method of Python around it, where that is known.
        self._encrypt: Callable[..., int] = getattr(self.tls, "_sslobj", self.tls).write
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


class TlsTransport(TcpTransport):
    """A transport over a socket whose TLS handshake is over.

    A write is sent as one record for each 16 KiB; bytes that the kernel does not take wait already
    encrypted.

    Args:
        connected: The non-blocking socket; the transport closes it after `connection_lost`.
        records: Encrypts and decrypts; its handshake is over.
        protocol: The protocol that the transport calls.
    """

    __slots__ = ("_records",)

    def __init__(
        self, connected: socket.socket, records: Records, protocol: asyncio.Protocol
    ) -> None:
        super().__init__(connected, protocol)
        self._records = records

    def write(self, data: bytes) -> None:
        """Send data as records; see `TcpSocket.write`."""
        if self._closing or not data:
            return
        try:
            wire = self._records.seal(data)
        except OSError as exc:
            self._lose(exc)
        else:
            super().write(wire)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known by a name; besides those of TCP: ssl_object, tls_records."""
        if name == "ssl_object":
            return self._records.tls
        return self._records if name == "tls_records" else super().get_extra_info(name, default)

    def can_write_eof(self) -> bool:
        """Whether our side can be ended by itself."""
        return False

    def resume_reading(self) -> None:
        """Read again, or begin to."""
        if not self._reading and not self._closing:
            super().resume_reading()
            # OpenSSL may hold records that are already read: the socket gives no event for those.
            asyncio.get_running_loop().call_soon(self._deliver)

    def _read(self) -> None:
        """Read, and charge the peer for the CPU time.

        Records without data cost work too, and only OpenSSL knows how many there were. So CPU time
        is measured instead of records.
        """
        began_s = time.thread_time()
        super()._read()
        self._records.charge(time.thread_time() - began_s)

    def received(self, chunk: bytes) -> None:
        """Decrypt what was read; see `TcpSocket.received`."""
        self._deliver(chunk)

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
                super().received(data)
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

    def part(self) -> None:
        """Tell the peer that no more data comes, without waiting for its answer."""
        with contextlib.suppress(OSError):
            self._socket.send(self._records.say_goodbye())
            # Read what waits: the kernel resets a connection that is closed with unread data, and
            # the peer may then lose what it has not read. Servers send session tickets unasked.
            self._socket.recv(_GOODBYE_BYTES)

    def on_lost(self, exc: Exception | None) -> None:
        """See `TcpSocket.on_lost`."""
        self._records.on_costly = lambda: None  # so that it keeps no reference to the protocol
        super().on_lost(exc)
