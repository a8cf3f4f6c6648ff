"""Runs hostile clients of the HTTP door in a process of its own, at full speed.

    python -m testbed.http_attacker MODE PORT SECONDS [TOKEN]

They come from SOURCE, an address of loopback, for the door counts clients by address. At the end
one line of JSON says what became of them; see `Became`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import resource
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import cast

HOST = "127.0.0.1"
SOURCE = "127.0.0.3"
SLOW_CLIENTS = 1000
MANY = 10_000
FLOODERS = 20
READERS = 40
GIVEN_UP_S = 15.0
_ENDS = (7, 8)  # TCP_CLOSE, TCP_CLOSE_WAIT
# Until a client comes back whose connection was closed. More connects a second than the other
# number would be an attack on the kernel, which good clients and calls share.
_PAUSE_S = 0.05
_MOST_CONNECTS = 500
_BROKEN = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError)
_HEAD = "GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"


@dataclass
class Became:
    """What became of the clients.

    Attributes:
        connections: How many were accepted by the kernel; `closed`: how many the door has closed.
        most_open: How many were open at once, from the door's side, as far as that shows.
        statuses: The statuses of the answers, and how many there were of each.
        sent_bytes: What was sent.
    """

    connections: int = 0
    closed: int = 0
    most_open: int = 0
    open: int = 0
    sent_bytes: int = 0
    statuses: dict[str, int] = field(default_factory=dict)

    def opened(self) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)

    def count(self, status: str) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def on_closed(self) -> None:
        self.closed += 1
        self.open -= 1


@dataclass(frozen=True)
class Target:
    """Whom the clients attack.

    Attributes:
        port: Of the door, at HOST.
        token: A token that the attacker has; empty: none.
        became: Counts what becomes of them.
    """

    port: int
    token: str
    became: Became

    async def connect(
        self, *, receive_buffer: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect; raises OSError."""
        raw = socket.socket()
        try:
            raw.setblocking(False)
            if receive_buffer is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.bind((SOURCE, 0))
            await asyncio.get_running_loop().sock_connect(raw, (HOST, self.port))
            reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
        except BaseException:
            raw.close()
            raise
        self.became.opened()
        return reader, writer

    def head(self, path: str, more: str = "") -> bytes:
        token = f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        return _HEAD.format(path=path, more=token + more).encode()


Attack = Callable[[Target], Awaitable[None]]


async def again_and_again(target: Target, attack: Attack, clients: int) -> None:
    """Attack, and come back whenever the door has closed the connection."""
    while True:
        with contextlib.suppress(*_BROKEN):
            await attack(target)
        await asyncio.sleep(max(_PAUSE_S, clients / _MOST_CONNECTS))


@contextlib.asynccontextmanager
async def connection(
    target: Target, *, receive_buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect, and count the connection until it is closed."""
    reader, writer = await target.connect(receive_buffer=receive_buffer)
    try:
        yield reader, writer
    finally:
        target.became.on_closed()
        writer.transport.abort()


async def _send(target: Target, writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    target.became.sent_bytes += len(data)
    await writer.drain()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    while await reader.read(4096):
        pass


# --- The attacks ---------------------------------------------------------------------------------


async def slow_head(target: Target) -> None:
    """Send a head that never ends, a header each second (slowloris)."""
    async with connection(target) as (reader, writer):
        await _send(target, writer, b"GET /api/v1/forks HTTP/1.1\r\nHost: localhost\r\n")
        for number in itertools.count():
            await _send(target, writer, f"X-{number}: 1\r\n".encode())
            if reader.at_eof():
                return
            await asyncio.sleep(1)


async def slow_body(target: Target) -> None:
    """Send a body that never ends, a byte each second."""
    async with connection(target) as (reader, writer):
        more = "Content-Type: application/json\r\nContent-Length: 60000\r\n"
        head = target.head("/api/v1/forks", more).replace(b"GET", b"POST", 1)
        await _send(target, writer, head)
        while not reader.at_eof():
            await _send(target, writer, b"{")
            await asyncio.sleep(1)


async def idle(target: Target) -> None:
    """Connect, and say nothing."""
    async with connection(target) as (reader, _):
        await _until_closed(reader)


async def bad_tokens(target: Target) -> None:
    """Guess tokens, as fast as they are refused."""
    async with connection(target) as (reader, writer):
        while True:
            guess = secrets.token_hex(24)
            more = f"Authorization: Bearer {guess}\r\n"
            await _send(target, writer, _HEAD.format(path="/api/v1/forks", more=more).encode())
            await _answer(target, reader)


async def requests(target: Target) -> None:
    """Ask for the list of forks, as fast as it is answered."""
    async with connection(target) as (reader, writer):
        while True:
            await _send(target, writer, target.head("/api/v1/forks?limit=1000"))
            await _answer(target, reader)


async def pipelined(target: Target) -> None:
    """Ask a thousand times at once, and read none of the answers."""
    async with connection(target, receive_buffer=4096) as (reader, writer):
        while not reader.at_eof():
            await _send(target, writer, target.head("/api/v1/forks?limit=1000") * 1000)


async def _answer(target: Target, reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    target.became.count(head.split(b" ", 2)[1].decode())
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.partition(b":")[2]))


async def huge_head(target: Target) -> None:
    """Send a header that does not end."""
    async with connection(target) as (reader, writer):
        await _send(target, writer, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        while not reader.at_eof():
            await _send(target, writer, b"x" * 65_536)


async def huge_body(target: Target) -> None:
    """Send a body in chunks that does not end."""
    async with connection(target) as (reader, writer):
        more = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        await _send(target, writer, target.head("/api/v1/forks", more).replace(b"GET", b"POST", 1))
        while not reader.at_eof():
            await _send(target, writer, b"10000\r\n" + b"[" * 65_536 + b"\r\n")


async def garbage(target: Target) -> None:
    """Send bytes that are no HTTP: random ones, HTTP/2, TLS."""
    for data in (secrets.token_bytes(65_536), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01"):
        async with connection(target) as (reader, writer):
            await _send(target, writer, data)
            async with asyncio.timeout(2):
                await _until_closed(reader)


async def unread_events(target: Target) -> None:
    """Ask for all events and levels, and read nothing."""
    async with connection(target, receive_buffer=4096) as (_, writer):
        await _send(target, writer, target.head("/api/v1/events?levels=1"))
        await _until_broken(writer)


async def unread_audio(target: Target) -> None:
    """Ask for the audio of the first fork, and read nothing of it."""
    fork_id = await _first_fork(target)
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    more = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    more += f"Sec-WebSocket-Key: {key}\r\n"
    async with connection(target, receive_buffer=4096) as (_, writer):
        await _send(target, writer, target.head(f"/api/v1/forks/{fork_id}/listen", more))
        await _until_broken(writer)


async def _first_fork(target: Target) -> str:
    async with connection(target) as (reader, writer):
        await _send(target, writer, target.head("/api/v1/forks?limit=1"))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        forks = json.loads(await reader.readexactly(length))["forks"]
    return str(forks[0]["id"])


async def _until_broken(writer: asyncio.StreamWriter) -> None:
    """Read nothing until the door has given the connection up.

    That cannot be seen while something waits in the kernels: after GIVEN_UP_S it is taken for done.
    """
    cast(asyncio.Transport, writer.transport).pause_reading()
    raw = writer.get_extra_info("socket")
    deadline = time.monotonic() + GIVEN_UP_S
    while time.monotonic() < deadline:
        if raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDS:
            return
        await asyncio.sleep(0.2)


MODES: dict[str, tuple[Attack, int]] = {
    "slow-head": (slow_head, SLOW_CLIENTS),
    "slow-body": (slow_body, SLOW_CLIENTS),
    "connections": (idle, MANY),
    "bad-tokens": (bad_tokens, FLOODERS),
    "requests": (requests, FLOODERS),
    "pipelined": (pipelined, FLOODERS),
    "huge-head": (huge_head, FLOODERS),
    "huge-body": (huge_body, FLOODERS),
    "garbage": (garbage, FLOODERS),
    "unread-events": (unread_events, READERS),
    "unread-audio": (unread_audio, READERS),
}
"""Each attack, and how many clients take part in it."""

NEEDS_TOKEN = ("requests", "pipelined", "unread-events", "unread-audio")
"""Those that only somebody with a token can make."""


async def attack(mode: str, port: int, seconds: float, token: str) -> Became:
    """Attack for some time; return what became of the clients."""
    one, clients = MODES[mode]
    became = Became()
    target = Target(port, token if mode in NEEDS_TOKEN else "", became)
    tasks = [asyncio.create_task(again_and_again(target, one, clients)) for _ in range(clients)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return became


def main(arguments: list[str]) -> None:
    """Attack as the command line says."""
    mode, port, seconds, *token = arguments
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()
    became = asyncio.run(attack(mode, int(port), float(seconds), token[0] if token else ""))
    print(json.dumps(asdict(became) | {"seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
