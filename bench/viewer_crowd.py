"""Runs viewers and listeners of an HTTP interface, as so many open pages would.

    python -m bench.viewer_crowd PORT TOKEN FORK_ID [--viewers N] [--listeners N] [--unread N]

Says a line of JSON when all of them get something, and one for each line of its standard input:
what they have got since the last one. Those that are unread ask for everything and read nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import secrets
import socket
import sys
import time
from dataclasses import dataclass, field

from bench.measure import hand_priority_to

HOST = "127.0.0.1"
_HEAD = "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
_SOCKET = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
CONNECT_TIMEOUT_S = 30.0
_NICE = 10


@dataclass
class Got:
    """What all have got since the last time.

    Attributes:
        levels: Times that levels came to a viewer; `stats`: the same of statistics; `events`: all
            others.
        longest_gap_s: The longest time between two of a viewer's levels.
        viewer_bytes: To all viewers; `listener_bytes`: to all listeners.
        lost: Viewers and listeners that the interface has dropped.
    """

    levels: int = 0
    stats: int = 0
    events: int = 0
    longest_gap_s: float = 0.0
    viewer_bytes: int = 0
    listener_bytes: int = 0
    lost: int = 0
    since: float = field(default_factory=time.monotonic)

    def told(self) -> dict[str, float]:
        """Return it as JSON has it."""
        told = {name: getattr(self, name) for name in Got.__dataclass_fields__ if name != "since"}
        return {**told, "seconds": time.monotonic() - self.since}


class Crowd:
    """All viewers and listeners.

    Args:
        port: Of the interface.
        token: A token that may listen.
    """

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._tasks: list[asyncio.Task[None]] = []
        self._unread: list[socket.socket] = []
        self.got = Got()

    async def _open(self, path: str, more: str = "") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(HOST, self._port, limit=1 << 20)
        writer.write(_HEAD.format(path=path, token=self._token, more=more).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1] not in (b"200", b"101"):
            raise ConnectionError(head.partition(b"\r\n")[0].decode())
        self._writers = [*getattr(self, "_writers", []), writer]  # else they are closed
        return reader

    async def view(self) -> None:
        """Add a viewer; return when it has got levels."""
        reader = await self._open("/api/v1/events?levels=1")
        begun = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._view(reader, begun)))
        await begun.wait()

    async def _view(self, reader: asyncio.StreamReader, begun: asyncio.Event) -> None:
        last = 0.0
        while chunk := await reader.read(1 << 18):
            self.got.viewer_bytes += len(chunk)
            self.got.stats += chunk.count(b"event: stats")
            self.got.events += chunk.count(b"event: fork.")
            if count := chunk.count(b"event: levels"):
                begun.set()
                self.got.levels += count
                now = time.monotonic()
                if last:
                    self.got.longest_gap_s = max(self.got.longest_gap_s, now - last)
                last = now
        self.got.lost += 1

    async def listen(self, fork_id: str) -> None:
        """Add a listener to a fork."""
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        more = f"{_SOCKET}Sec-WebSocket-Key: {key}\r\n"
        reader = await self._open(f"/api/v1/forks/{fork_id}/listen", more)
        self._tasks.append(asyncio.create_task(self._listen(reader)))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while chunk := await reader.read(1 << 16):
            self.got.listener_bytes += len(chunk)
        self.got.lost += 1

    async def leave_unread(self) -> None:
        """Add a viewer that reads nothing, whose own buffer is as small as may be."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, (HOST, self._port))
        head = _HEAD.format(path="/api/v1/events?levels=1", token=self._token, more="")
        await loop.sock_sendall(raw, head.encode())
        self._unread.append(raw)


async def run(options: argparse.Namespace) -> None:
    """Open all of them, then answer each line."""
    crowd = Crowd(options.port, options.token)
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        for _ in range(options.viewers):
            await crowd.view()
        for _ in range(options.listeners):
            await crowd.listen(options.fork_id)
        for _ in range(options.unread):
            await crowd.leave_unread()
    crowd.got = Got()
    print(json.dumps({"connected": True}), flush=True)
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while await reader.readline():
        told, crowd.got = crowd.got.told(), Got()
        print(json.dumps(told), flush=True)


def main() -> None:
    """Run as a program, behind all others: viewers are elsewhere, and cost the relay no CPU."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    hand_priority_to(os.getpid())
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("token")
    parser.add_argument("fork_id")
    parser.add_argument("--viewers", type=int, default=0)
    parser.add_argument("--listeners", type=int, default=0)
    parser.add_argument("--unread", type=int, default=0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
