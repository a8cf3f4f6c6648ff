"""Runs a DNS server that answers for the names of one domain, and for no other name.

A program that uses it runs with a resolv.conf of its own, in a mount namespace: that needs root.
"""

from __future__ import annotations

import asyncio
import collections
import os
import socket
import struct
from pathlib import Path
from typing import Self

# Where it listens: resolv.conf can name no port.
ADDRESS = ("127.0.0.99", 53)
# As in many installations: 10 s go by until a name without an answer is given up.
RESOLV_CONF = f"nameserver {ADDRESS[0]}\noptions timeout:30 attempts:2\n"
_A = 1


class NameServer(asyncio.DatagramProtocol):
    """Answers that all names below a domain are this machine.

    Attributes:
        asked: How often each name's IPv4 address was asked for.
        address: The address of all names in the domain.
    """

    def __init__(self, domain: str, ttl_s: int = 60) -> None:
        self.asked: collections.Counter[str] = collections.Counter()
        self.address = "127.0.0.1"
        self._domain = "." + domain
        self._ttl_s = ttl_s

    async def __aenter__(self) -> Self:
        if os.geteuid():
            raise PermissionError("a name server listens on port 53, which takes root")
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=ADDRESS)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        name, kind, question = _question(data)
        if kind == _A:
            self.asked[name] += 1
        if name.endswith(self._domain):
            self._transport.sendto(self._answer(data[:2], kind, question), addr)

    def _answer(self, number: bytes, kind: int, question: bytes) -> bytes:
        record = b""
        if kind == _A:
            head = struct.pack(">HHHIH", 0xC00C, _A, 1, self._ttl_s, 4)
            record = head + socket.inet_aton(self.address)
        return number + struct.pack(">5H", 0x8180, 1, bool(record), 0, 0) + question + record


def _question(data: bytes) -> tuple[str, int, bytes]:
    """Return the name that a query asks about, the kind of record, and the question's bytes."""
    labels, position = [], 12
    while length := data[position]:
        labels.append(data[position + 1 : position + 1 + length].decode("ascii").lower())
        position += 1 + length
    (kind,) = struct.unpack_from(">H", data, position + 1)
    return ".".join(labels), kind, data[12 : position + 5]


def with_resolv_conf(path: Path, *command: str) -> tuple[str, ...]:
    """Return a command that runs another one with RESOLV_CONF, which is written to a path."""
    path.write_text(RESOLV_CONF)
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, str(path), *command)
