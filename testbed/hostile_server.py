"""Runs a hostile WebSocket server in a process of its own, so that it floods at full speed.

    python -m testbed.hostile_server MODE FILE [CERTIFICATE]

It accepts every connection and then does what its mode says, for ever. A mode may end in `-noread`
(it reads nothing) or `-slow` (it reads almost nothing). It prints its port, and writes a line of
JSON to the file for each closed connection.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TextIO, cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from audiofork.tls_contexts import server_context
from testbed.openssl import ask_for_another_handshake, ask_for_another_key

HOST = "127.0.0.1"


def frame(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a frame as a server sends it."""
    return Frame(opcode, payload, fin).serialize(mask=False)


FLOODS = {
    "ping": frame(Opcode.PING) * 30_000,
    "ping125": frame(Opcode.PING, b"p" * 125) * 2_000,
    "pong": frame(Opcode.PONG) * 30_000,
    "emptytext": frame(Opcode.TEXT) * 30_000,
    "shorttext": frame(Opcode.TEXT, b"hello") * 10_000,
    "bigtext": frame(Opcode.TEXT, b"x" * 65_000) * 4,
    "unicodetext": frame(Opcode.TEXT, "\u00e9".encode() * 32_000) * 4,
    "controltext": frame(Opcode.TEXT, b"\x1b\n" * 32_000) * 4,
    "binary": frame(Opcode.BINARY, b"x" * 65_000) * 4,
    "emptybinary": frame(Opcode.BINARY) * 30_000,
    "cont0": frame(Opcode.CONT, fin=False) * 30_000,
}
"""The bytes that are sent over and over, by mode."""

_BEFORE = {"cont0": frame(Opcode.TEXT, fin=False)}

LAST_WORDS = {
    "close1000": frame(Opcode.CLOSE, b"\x03\xe8done"),
    "close1001": frame(Opcode.CLOSE, b"\x03\xe9restart"),
    "reserved": b"\xf3\x00",  # bits that nobody has agreed on
    "masked": b"\x81\x80\0\0\0\0",  # as clients alone may send
    "badtext": frame(Opcode.TEXT, b"\xff"),
    "toolong": frame(Opcode.TEXT, b"x" * 65_537),
}
"""The bytes that are sent once, by mode; the connection stays open, and is read."""

WITHIN_BOUNDS = {"never": (b"", 3600.0), "text20": (frame(Opcode.TEXT, b"x" * 900), 0.05)}
"""The bytes that are sent over and over, and the seconds between them, by mode."""

TLS_FLOODS = {"keys": ask_for_another_key, "handshakes": ask_for_another_handshake}
"""The request to TLS that is repeated, by mode; takes a certificate."""

OTHERS = {
    "closeflood": "a close frame, and then pings",
    "drip": "messages that come byte by byte",
    "403body": "a refusal with a body that does not end",
}


def _blocks(mode: str) -> Iterator[bytes]:
    """Yield the bytes to send after the handshake."""
    if mode in LAST_WORDS:
        yield LAST_WORDS[mode]
    elif mode == "closeflood":
        yield LAST_WORDS["close1001"]
        yield from itertools.repeat(FLOODS["ping"])
    elif mode == "403body":
        yield from itertools.repeat(b"x" * 65_536)
    elif mode == "drip":
        message = frame(Opcode.TEXT, b"x" * 1_000)
        yield from itertools.cycle(message[at : at + 1] for at in range(len(message)))
    elif mode in WITHIN_BOUNDS:
        block, pause_s = WITHIN_BOUNDS[mode]
        while True:
            yield block
            time.sleep(pause_s)
    else:
        yield _BEFORE.get(mode, b"")
        yield from itertools.repeat(FLOODS[mode])


@dataclass
class Over:
    """A closed connection.

    Attributes:
        seconds: How long it lasted.
        sent_bytes: How many bytes the kernels have accepted.
        close_code: What the client closed with, and `close_reason`; None: it was not read.
    """

    seconds: float = 0.0
    sent_bytes: int = 0
    close_code: int | None = None
    close_reason: str = ""


class _Connection:
    def __init__(self, accepted: socket.socket, mode: str, log: TextIO) -> None:
        self._socket = accepted
        self._mode, _, habit = mode.partition("-")
        self._read = {"": self._read_all, "noread": lambda: None, "slow": self._sip}[habit]
        self._log = log
        self._protocol = ServerProtocol(max_size=None)
        self._over = Over()

    def run(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            self._answer()
            if isinstance(self._socket, ssl.SSLSocket):
                self._ask_without_end(self._socket)
            reading = threading.Thread(target=self._read, daemon=True)
            reading.start()
            self._send()
            reading.join()
        self._socket.close()
        self._over.seconds = time.monotonic() - began
        if closed := self._protocol.close_rcvd:
            self._over.close_code, self._over.close_reason = closed.code, closed.reason
        print(json.dumps(asdict(self._over)), file=self._log, flush=True)

    def _answer(self) -> None:
        requests: list[Request] = []
        while not requests:
            self._protocol.receive_data(self._receive(65_536))
            requests = cast(list[Request], self._protocol.events_received())
        if self._mode == "403body":
            self._socket.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 999999999999\r\n\r\n")
            return
        self._protocol.send_response(self._protocol.accept(requests[0]))
        self._socket.sendall(b"".join(self._protocol.data_to_send()))

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            for block in _blocks(self._mode):
                self._socket.sendall(block)
                self._over.sent_bytes += len(block)

    def _ask_without_end(self, tls: ssl.SSLSocket) -> None:
        ask = TLS_FLOODS[self._mode]
        with contextlib.suppress(AssertionError):
            while True:
                ask(tls)
        raise ConnectionResetError

    def _receive(self, most: int) -> bytes:
        if chunk := self._socket.recv(most):
            return chunk
        raise ConnectionResetError

    def _read_all(self) -> None:
        """Read everything, to learn the client's close code; answer nothing."""
        with contextlib.suppress(OSError):
            while chunk := self._receive(65_536):
                self._protocol.receive_data(chunk)
                self._protocol.events_received()

    def _sip(self) -> None:
        with contextlib.suppress(OSError):
            while self._receive(256):
                time.sleep(0.5)


class HostileServer:
    """The server, run as a process.

    Args:
        mode: One of `FLOODS`, `LAST_WORDS`, `WITHIN_BOUNDS` and `OTHERS`, perhaps with a habit; or
            one of `TLS_FLOODS`.
        certificate: For localhost, with its key, in PEM; None: no TLS.
    """

    def __init__(self, mode: str, certificate: Path | None = None) -> None:
        self.mode = mode
        self._certificate = certificate

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="audiofork-hostile-")
        self._log = Path(self._folder.name) / "log"
        command = [sys.executable, "-m", "testbed.hostile_server", self.mode, str(self._log)]
        if self._certificate is not None:
            command.append(str(self._certificate))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = self._process.stdout.readline()
        if not port:
            raise RuntimeError(f"no hostile server: {self.mode}")
        self.port = int(port)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()

    @property
    def reads(self) -> bool:
        """Whether the server reads everything."""
        return "-" not in self.mode

    @property
    def url(self) -> str:
        if self._certificate is not None:
            return f"wss://localhost:{self.port}/"
        return f"ws://{HOST}:{self.port}/"

    @property
    def over(self) -> list[Over]:
        """The closed connections."""
        lines = self._log.read_text().splitlines()
        return [Over(**json.loads(line)) for line in lines]


def serve(mode: str, log: TextIO, certificate: str) -> None:
    """Listen on a free port, and be hostile."""
    context = server_context(certificate) if certificate else None
    if context is not None and mode == "handshakes":
        context.options &= ~ssl.OP_NO_RENEGOTIATION
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.socket() as listening:
        if "-" in mode:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind((HOST, 0))
        listening.listen(200)
        print(listening.getsockname()[1], flush=True)
        while True:
            accepted, _ = listening.accept()
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                if context is not None:
                    accepted = context.wrap_socket(accepted, server_side=True)
                run: Callable[[], None] = _Connection(accepted, mode, log).run
                threading.Thread(target=run, daemon=True).start()


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a") as file:
        serve(sys.argv[1], file, "".join(sys.argv[3:]))
