"""TCP connections of the audio path: read when data is there, written at once.

The event loop's transports cost a third of a frame's user code (docs/performance.md). So legs,
servers, and TLS on top of TCP (`relay/tls.py`) have sockets of their own, and all of them one
epoll, which the event loop watches as a single descriptor.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Any, Final, cast

# Most that is read at once. Data that waits beyond that is read in the next turn of the event
# loop: others get theirs first.
READ_BYTES: Final = 16_384
_DEFAULT_LIMIT_BYTES: Final = 65_536
# Most sockets of one turn; others that are ready follow in the next.
_MOST_READY: Final = 1024
# As constants of this module: compiled, they are read from C's memory, and nothing is looked up.
_recv: Final = socket.socket.recv
_send: Final = socket.socket.send
_IN: Final = int(select.EPOLLIN)
_OUT: Final = int(select.EPOLLOUT)

_pollers: dict[asyncio.AbstractEventLoop, Poller] = {}


def poller() -> Poller:
    """Return the poller of the running event loop; it is there while it watches something.

    Raises:
        OSError: There is none, and no descriptor is left for it.
    """
    loop = asyncio.get_running_loop()
    if loop not in _pollers:
        for closed in [one for one in _pollers if one.is_closed()]:
            del _pollers[closed]
        _pollers[loop] = Poller(loop)
    return _pollers[loop]


class Watched:
    """What a poller watches: it has a descriptor."""

    __slots__ = ()

    def on_ready(self, events: int) -> None:
        """Do what can be done now; the bits are those of epoll."""
        raise NotImplementedError

    def fail(self, exc: Exception) -> None:
        """Learn that `on_ready` has raised an exception."""
        raise NotImplementedError


class Poller:
    """Tells what an event loop watches when it is ready, as long as there is something."""

    __slots__ = ("_count", "_epoll", "_loop", "_poll", "_watched")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._watched: list[Watched | None] = []  # by descriptor
        self._count = 0
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def add(self, descriptor: int, one: Watched, events: int) -> None:
        """Watch a descriptor for events.

        Raises:
            OSError: The kernel watches no more.
        """
        while len(self._watched) <= descriptor:
            self._watched.append(None)
        try:
            self._epoll.register(descriptor, events)
        except OSError:
            self._end_if_empty()
            raise
        self._watched[descriptor] = one
        self._count += 1

    def modify(self, descriptor: int, events: int) -> None:
        """Watch a descriptor for other events."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Watch a descriptor no more; after the last one this is closed."""
        self._watched[descriptor] = None
        self._epoll.unregister(descriptor)
        self._count -= 1
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if not self._count:
            # In this order: uvloop aborts the process if it still watches a closed descriptor.
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            del _pollers[self._loop]

    def _on_ready(self) -> None:
        watched = self._watched
        ready: list[tuple[int, int]] = self._poll(0, _MOST_READY)
        for descriptor, events in ready:
            one = watched[descriptor]
            if one is None:  # one before it has closed it
                continue
            try:
                one.on_ready(events)
            except Exception as exc:  # noqa: BLE001 (only this connection is to suffer from it)
                one.fail(exc)


class TcpSocket(Watched):
    """A connected socket.

    A write is sent at once; bytes that the kernel does not take wait here. When the peer ends its
    side, the connection is over, and the bytes that wait are lost.

    Args:
        connected: A non-blocking socket; this closes it after `on_lost`.

    Attributes:
        most_bytes: The most that a read takes.
    """

    __slots__ = (
        *("_closing", "_descriptor", "_events", "_is_full", "_limits", "_lost", "_poller"),
        *("_reading", "_shuts", "_socket", "_takes", "_waiting", "_waiting_bytes", "most_bytes"),
    )

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._descriptor = connected.fileno()
        self._events = 0  # those that it is watched for
        self._poller: Poller | None = None  # while it is watched
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._takes = True  # whether a write may go to the kernel: none waits, and not closing
        self._shuts = False  # whether our side ends after the bytes that wait
        self._reading = False
        self._closing = False
        self._lost = False
        self._is_full = False  # between `on_full` and `on_room`
        self._limits = (_DEFAULT_LIMIT_BYTES // 4, _DEFAULT_LIMIT_BYTES)
        self.most_bytes = READ_BYTES

    # --- What the owner does about it ---

    def received(self, chunk: bytes) -> None:
        """Take bytes that were read; never empty."""
        raise NotImplementedError

    def on_end(self) -> None:
        """Learn that the peer has ended its side."""

    def on_full(self) -> None:
        """Learn that more bytes wait than the high limit."""

    def on_room(self) -> None:
        """Learn that no more bytes wait than the low limit, after `on_full`."""

    def on_lost(self, exc: Exception | None) -> None:
        """Learn that the connection is over: called once, by the event loop."""
        raise NotImplementedError

    def part(self) -> None:
        """Do what is left before an orderly end."""

    # --- Writing ---

    def write(self, data: bytes) -> None:
        """Send now what the kernel takes, and the rest as soon as it has room."""
        if not self._takes:
            if not self._closing and not self._shuts:
                self._keep(data)
            return
        try:
            sent = _send(self._socket, data)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._lose(exc)
            return
        if sent != len(data):
            self._keep(data[sent:])

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._takes:
            self._takes = False
            self._watch()
        if self._waiting_bytes > self._limits[1] and not self._is_full:
            self._is_full = True
            self.on_full()

    def _flush(self) -> None:
        """Send the bytes that wait, as many as the kernel takes."""
        waiting = self._waiting
        while waiting:
            data = waiting[0]
            try:
                sent = _send(self._socket, data)
            except BlockingIOError:
                return
            except OSError as exc:
                self._lose(exc)
                return
            self._waiting_bytes -= sent
            if sent == len(data):
                del waiting[0]
            else:
                waiting[0] = data[sent:]
            if self._is_full and self._waiting_bytes <= self._limits[0]:
                self._is_full = False
                self.on_room()
        self._on_flushed()

    def _on_flushed(self) -> None:
        if self._closing:
            self._lose(None)
            return
        if self._shuts:
            self._shut()
        else:
            self._takes = True
        self._watch()

    def write_eof(self) -> None:
        """End our side after the bytes that wait; what comes is still read."""
        if self._shuts or self._closing:
            return
        self._shuts = True
        self._takes = False
        if not self._waiting:
            self._shut()

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._lose(exc)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait here."""
        return self._waiting_bytes

    # --- Reading ---

    def pause_reading(self) -> None:
        """Read no more for now."""
        if self._reading:
            self._reading = False
            self._watch()

    def resume_reading(self) -> None:
        """Read again, or begin to.

        Raises:
            OSError: The kernel watches no more sockets.
        """
        if not self._reading and not self._closing:
            self._reading = True
            self._watch()

    def _watch(self) -> None:
        """Watch for what is wanted now."""
        events = (_IN if self._reading else 0) | (_OUT if self._waiting else 0)
        if events == self._events:
            return
        if self._poller is None:
            its_poller = poller()
            its_poller.add(self._descriptor, self, events)
            self._poller = its_poller
        elif events:
            self._poller.modify(self._descriptor, events)
        else:  # else the kernel would report an error again and again that nobody is to read
            self._poller.remove(self._descriptor)
            self._poller = None
        self._events = events

    def on_ready(self, events: int) -> None:
        """Read and write as the kernel says that it can be done."""
        if events != _IN and self._waiting:
            self._flush()
        if events != _OUT and self._reading:
            self._read()

    def _read(self) -> None:
        try:
            chunk = _recv(self._socket, self.most_bytes)
        except BlockingIOError:
            return
        except OSError as exc:
            self._lose(exc)
            return
        if chunk:
            self.received(chunk)
        else:
            self._end()

    def _end(self) -> None:
        """End the connection, because the peer has ended its side."""
        self.on_end()
        self._lose(None)

    # --- The end ---

    def is_closing(self) -> bool:
        """Whether it is being closed, or lost."""
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

    def fail(self, exc: Exception) -> None:
        """Close now, because the owner has raised an exception."""
        asyncio.get_running_loop().call_exception_handler(
            {"message": "A connection is closed: its owner failed", "exception": exc}
        )
        self._lose(exc)

    def _lose(self, exc: Exception | None) -> None:
        """End the connection; `on_lost` is called in the next turn of the event loop."""
        if self._lost:
            return
        self._lost = self._closing = True
        self._takes = self._reading = False
        if exc is None and not self._waiting:
            self.part()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._watch()
        asyncio.get_running_loop().call_soon(self._tell_of_loss, exc)

    def _tell_of_loss(self, exc: Exception | None) -> None:
        try:
            self.on_lost(exc)
        finally:
            self._socket.close()


class TcpTransport(TcpSocket):
    """A socket as a transport (PEP 3156), for the library of WebSockets.

    It is none of asyncio's by its class, since it could not be compiled then: see setup.py.

    Args:
        connected: See `TcpSocket`.
        protocol: The protocol that the transport calls; `connection_made` is up to `begin()`.
    """

    __slots__ = ("_protocol",)

    def __init__(self, connected: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__(connected)
        self._protocol: asyncio.BaseProtocol = protocol

    def begin(self) -> None:
        """Give it to the protocol, and begin to read.

        Raises:
            OSError: The kernel watches no more sockets.
        """
        try:
            self._protocol.connection_made(cast(asyncio.Transport, self))
            self.resume_reading()
        except BaseException:
            self.abort()
            raise

    def received(self, chunk: bytes) -> None:
        """See `TcpSocket.received`."""
        cast(asyncio.Protocol, self._protocol).data_received(chunk)

    def on_end(self) -> None:
        """See `TcpSocket.on_end`."""
        cast(asyncio.Protocol, self._protocol).eof_received()

    def on_full(self) -> None:
        """See `TcpSocket.on_full`."""
        self._protocol.pause_writing()

    def on_room(self) -> None:
        """See `TcpSocket.on_room`."""
        self._protocol.resume_writing()

    def on_lost(self, exc: Exception | None) -> None:
        """See `TcpSocket.on_lost`."""
        protocol, self._protocol = self._protocol, asyncio.BaseProtocol()
        protocol.connection_lost(exc)

    def can_write_eof(self) -> bool:
        """Whether our side can be ended by itself."""
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how many bytes may wait before the protocol is to pause, and resume."""
        if high is None:
            high = _DEFAULT_LIMIT_BYTES if low is None else 4 * low
        self._limits = (high // 4 if low is None else low, high)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high limit, in bytes."""
        return self._limits

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known by a name: socket, sockname, peername."""
        if name == "socket":
            return self._socket
        try:
            if name == "sockname":
                return self._socket.getsockname()
            if name == "peername":
                return self._socket.getpeername()
        except OSError:  # it is closed, or the peer is gone
            pass
        return default
