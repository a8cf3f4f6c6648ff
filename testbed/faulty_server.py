"""Runs a WebSocket server that fails on demand, for fault tests.

In a test's own process use `FaultyServer`; for a process that can be stopped and killed use
`ServerProcess`, which runs `python -m testbed.faulty_server PORT FILE`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import enum
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from testbed.recorder import Recorder, Recording

HOST = "127.0.0.1"
BROKEN_OFF = 1006  # as a close code: no Close frame at all
# The first part of a text message of 4096 bytes.
HALF_MESSAGE = b"\x81\x7e\x10\x00" + b"x" * 100
GARBAGE = bytes(range(0xFF, 0x7F, -1))  # begins with a frame that has reserved bits
LINGER_NOT = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s: close() sends RST, not FIN
START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Manner:
    """How the server treats one connection; the defaults cause no fault.

    Attributes:
        accepts: False: the TCP connection is closed at once.
        answers: False: the request gets no answer.
        raw_answer: The bytes of the answer to the request, instead of HTTP.
        status: The HTTP status; any but 101 refuses.
        headers: Further headers of a refusal.
        close_code: The code to close with right after the handshake; None: do not close.
        reads: False: nothing is read after the handshake.
        pongs: Whether pings are answered.
    """

    accepts: bool = True
    answers: bool = True
    raw_answer: bytes = b""
    status: int = 101
    headers: dict[str, str] = field(default_factory=dict)
    close_code: int | None = None
    reads: bool = True
    pongs: bool = True


WELL = Manner()


class FaultyServer(Recorder):
    """The server; keeps what it receives, like a `Recorder`.

    Args:
        tls: None: plain.
        receive_buffer: Bytes that the kernel keeps for each connection; None: its default, which
            takes several seconds of audio while the server reads nothing.
        port: Where to listen; 0: any.
        log: A file for everything that is recorded, instead of the memory; see `read_log`.

    Attributes:
        manner: How connections are treated from now on.
        manners: How each of the next connections is treated, before `manner` applies.
        connects: When each TCP connection came, in loop time.
        links: The open connections.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        receive_buffer: int | None = None,
        port: int = 0,
        log: BinaryIO | None = None,
    ) -> None:
        super().__init__(tls)
        self._receive_buffer = receive_buffer
        self._listener: asyncio.Server | None = None
        self._log = log
        self.port = port
        self.manner = WELL
        self.manners: list[Manner] = []
        self.connects: list[float] = []
        self.links: list[Link] = []

    async def __aenter__(self) -> Self:
        # Bound but never listening: nobody else gets the port while the server is away.
        self._holder = bind(self.port)
        self.port = self._holder.getsockname()[1]
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        for link in list(self.links):
            link.reset()
        await self._all_gone()
        self._holder.close()

    async def start(self) -> None:
        """Listen, always on the same port."""
        listening = bind(self.port)
        if self._receive_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Link(self), sock=listening, ssl=self._tls, backlog=1024
        )

    def refuse(self) -> None:
        """Stop listening; existing connections stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def stop(self, code: int = 1001) -> None:
        """Stop listening, close every connection normally; read until it is closed."""
        self.refuse()
        for link in list(self.links):
            link.close(code)
        await self._all_gone()

    async def _all_gone(self) -> None:
        async with asyncio.timeout(5):
            while self.links:
                self._changed.clear()
                await self._changed.wait()

    @property
    def link(self) -> Link:
        """The newest open connection."""
        return self.links[-1]

    def messages_of(self, path: str) -> list[bytes | str]:
        """Return all messages that came for a path, over all connections, in order."""
        return [message for recording in self.at(path) for message in recording.messages]

    def audio_of(self, path: str) -> bytes:
        """Return the audio of `messages_of`, joined."""
        return b"".join(recording.audio for recording in self.at(path))

    async def wait_connects(self, count: int, *, timeout_s: float = 30) -> None:
        """Wait until this many TCP connections have come."""
        async with asyncio.timeout(timeout_s):
            while len(self.connects) < count:
                self._changed.clear()
                await self._changed.wait()

    def on_connect(self, link: Link) -> Manner:
        """Record a TCP connection; return how to treat it."""
        self.connects.append(asyncio.get_running_loop().time())
        self.links.append(link)
        link.number = len(self.connects)
        self._changed.set()
        return self.manners.pop(0) if self.manners else self.manner

    def on_open(self, link: Link, recording: Recording) -> None:
        """Record a handshake."""
        self.recordings.append(recording)
        self._note(link, _Note.OPENED, recording.path.encode())
        self._changed.set()

    def on_message(self, link: Link, recording: Recording, message: bytes | str) -> None:
        """Record a message."""
        if self._log is not None and isinstance(message, bytes):
            self._note(link, _Note.FRAME, message)
            return
        recording.times.append(asyncio.get_running_loop().time())
        recording.messages.append(message)
        self._changed.set()

    def on_gone(self, link: Link, recording: Recording | None) -> None:
        """Record the end of a TCP connection."""
        self.links.remove(link)
        if recording is not None:
            recording.closed = asyncio.get_running_loop().time()
            self._note(link, _Note.CLOSED, str(recording.close_code or "").encode())
        self._changed.set()

    def _note(self, link: Link, kind: _Note, payload: bytes) -> None:
        if self._log is not None:
            self._log.write(_NOTE.pack(time.monotonic(), link.number, kind, len(payload)))
            self._log.write(payload)


class Link(asyncio.Protocol):
    """One connection of a `FaultyServer`, with methods that cause faults.

    Attributes:
        number: The number of the connection, from 1.
    """

    def __init__(self, server: FaultyServer) -> None:
        self.number = 0
        self._server = server
        self._recording: Recording | None = None
        self._manner = WELL
        self._protocol = _Protocol(max_size=None)

    # --- What a test may do to it ---

    def close(self, code: int) -> None:
        """Send a Close frame, and read until the client's; 1006: reset without one."""
        if code == BROKEN_OFF:
            self.reset()
        elif self._protocol.state is OPEN:
            self._protocol.send_close(code)
            self._flush()
        else:
            self._transport.close()

    def reset(self) -> None:
        """Break the connection with RST; unread data in its kernel is lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self._transport.abort()

    def vanish(self) -> None:
        """Receive no more packets, and so acknowledge none, as if the host had vanished."""
        # A socket filter (Linux, socket(7)) that drops every packet before TCP sees it.
        drop_all = _FilterStep(0x06, 0, 0, 0)  # BPF_RET, 0 bytes
        program = struct.pack("HP", 1, ctypes.addressof(drop_all))
        self._socket.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER

    async def cut(self) -> None:
        """Break the connection so that exactly what was acknowledged has been read."""
        self.vanish()
        await asyncio.sleep(0.15)  # acknowledgements are delayed by 40 ms, reading by the loop
        self.reset()

    def stall(self) -> None:
        """Stop reading until `read_on()`."""
        self._transport.pause_reading()

    def read_on(self) -> None:
        self._transport.resume_reading()

    @property
    def unfinished_bytes(self) -> int:
        """How many bytes of an incomplete frame have been read."""
        return len(self._protocol.reader.buffer)

    def send_raw(self, wire: bytes) -> None:
        """Send bytes that need not be WebSocket."""
        self._transport.write(wire)

    def send_text(self, text: str) -> None:
        self._protocol.send_text(text.encode())
        self._flush()

    def break_in_message(self) -> None:
        """Send half a message, then close the TCP connection."""
        self.send_raw(HALF_MESSAGE)
        self._transport.close()

    # --- What the client does ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._manner = self._server.on_connect(self)
        self._protocol.pongs = self._manner.pongs
        if not self._manner.accepts:
            self._transport.close()

    def data_received(self, chunk: bytes) -> None:
        if self._transport.is_closing():
            return
        self._protocol.receive_data(chunk)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._answer(event)
            else:
                self._on_frame(cast(Frame, event))
        self._flush()

    def _answer(self, request: Request) -> None:
        manner = self._manner
        if not manner.answers:
            return
        if manner.raw_answer:
            self.send_raw(manner.raw_answer)
            return
        if manner.status != 101:
            response = self._protocol.reject(manner.status, "")
            response.headers.update(manner.headers)
            self._protocol.send_response(response)
            return
        self._protocol.send_response(self._protocol.accept(request))
        self._recording = Recording(request.path)
        self._server.on_open(self, self._recording)
        self._begin_badly()

    def _begin_badly(self) -> None:
        self._flush()
        if not self._manner.reads:
            self.stall()
        if self._manner.close_code is not None:
            self.close(self._manner.close_code)

    def _on_frame(self, frame: Frame) -> None:
        if self._recording is None:
            return
        if frame.opcode is Opcode.BINARY:
            self._server.on_message(self, self._recording, bytes(frame.data))
        elif frame.opcode is Opcode.TEXT:
            self._server.on_message(self, self._recording, bytes(frame.data).decode())
        elif self._protocol.close_rcvd is not None:
            closed = self._protocol.close_rcvd
            self._recording.close_code, self._recording.close_reason = closed.code, closed.reason

    def _flush(self) -> None:
        for chunk in self._protocol.data_to_send():
            if chunk:
                self._transport.write(chunk)
            else:
                self._transport.close()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._server.on_gone(self, self._recording)


class _Protocol(ServerProtocol):
    """The library's protocol, which can leave pings unanswered."""

    pongs = True

    def send_frame(self, frame: Frame) -> None:
        if self.pongs or frame.opcode is not Opcode.PONG:
            super().send_frame(frame)


class _FilterStep(ctypes.Structure):
    """struct sock_filter of linux/filter.h."""

    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


def bind(port: int) -> socket.socket:
    """Return a socket bound to a port, 0 for any; several may be bound, only one listens."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((HOST, port))
    return bound


# --- As a process ---


class _Note(enum.IntEnum):
    LISTENING = 0
    OPENED = 1
    FRAME = 2
    CLOSED = 3


_NOTE = struct.Struct("<dIBI")  # time.monotonic(), connection, kind, length of what follows


@dataclass
class Logged:
    """What a server process received over one connection; see `Recording`."""

    path: str
    opened: float
    closed: float = 0.0
    close_code: int | None = None
    times: list[float] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)


def read_log(path: Path) -> tuple[list[float], list[Logged]]:
    """Read the log of server processes: when each began to listen, and each connection.

    Times are those of time.monotonic(). An incomplete last record is left out.
    """
    listening: list[float] = []
    every: list[Logged] = []
    live: dict[int, Logged] = {}
    for at, number, kind, payload in _notes(path.read_bytes()):
        if kind == _Note.LISTENING:
            listening.append(at)
            live.clear()
        elif kind == _Note.OPENED:
            live[number] = Logged(payload.decode(), at)
            every.append(live[number])
        elif kind == _Note.FRAME:
            live[number].times.append(at)
            live[number].messages.append(payload)
        else:
            live[number].closed = at
            live[number].close_code = int(payload) if payload else None
    return listening, every


def _notes(log: bytes) -> Iterator[tuple[float, int, int, bytes]]:
    start = 0
    while start + _NOTE.size <= len(log):
        at, number, kind, length = _NOTE.unpack_from(log, start)
        start += _NOTE.size
        if start + length > len(log):
            return
        yield at, number, kind, log[start : start + length]
        start += length


class ServerProcess:
    """A server as a process of its own, which can be stopped, killed and started again.

    Args:
        receive_buffer: As for `FaultyServer`.
        log: The file for what it receives; None: a file that is removed with this object.
    """

    def __init__(self, receive_buffer: int | None = None, log: Path | None = None) -> None:
        self._receive_buffer = receive_buffer
        self._folder = tempfile.TemporaryDirectory(prefix="audiofork-server-")
        self.log = log or Path(self._folder.name) / "log"
        self._process: subprocess.Popen[str] | None = None

    async def __aenter__(self) -> Self:
        self._holder = bind(0)
        self.port: int = self._holder.getsockname()[1]
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._end, signal.SIGKILL)
        self._holder.close()
        self._folder.cleanup()

    def url(self, path: str = "/") -> str:
        return f"ws://{HOST}:{self.port}{path}"

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        command = [sys.executable, "-m", "testbed.faulty_server", str(self.port), str(self.log)]
        if self._receive_buffer is not None:
            command += ["--receive-buffer", str(self._receive_buffer)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "listening\n":
            raise RuntimeError("the server process did not start")

    async def stop(self) -> None:
        """End it normally: it closes each connection with 1001."""
        await asyncio.to_thread(self._end, signal.SIGTERM)

    async def kill(self) -> None:
        """Kill it; the kernel closes the connections."""
        await asyncio.to_thread(self._end, signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(by)
        if by is signal.SIGKILL:
            self._process.send_signal(signal.SIGCONT)
        self._process.wait(10)
        self._process.stdout.close()

    def freeze(self) -> None:
        """Stop it (SIGSTOP): its kernel still takes packets, up to the receive buffer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def connections(self) -> list[Logged]:
        """Return what it has received so far, by connection."""
        return read_log(self.log)[1]

    async def wait(
        self, matches: Callable[[list[Logged]], object], *, timeout_s: float = 30
    ) -> None:
        """Wait until what it has received meets a condition."""
        async with asyncio.timeout(timeout_s):
            while not matches(self.connections()):  # noqa: ASYNC110 (a file has no event)
                await asyncio.sleep(0.1)


async def _run(port: int, path: Path, receive_buffer: int | None) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    with path.open("ab", buffering=1 << 20) as log:
        async with FaultyServer(receive_buffer=receive_buffer, port=port, log=log) as server:
            log.write(_NOTE.pack(time.monotonic(), 0, _Note.LISTENING, 0))
            print("listening", flush=True)
            while not stopped.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), 0.05)
                log.flush()
            await server.stop(1001)


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("path", type=Path)
    parser.add_argument("--receive-buffer", type=int)
    arguments = parser.parse_args()
    uvloop.run(_run(arguments.port, arguments.path, arguments.receive_buffer))
