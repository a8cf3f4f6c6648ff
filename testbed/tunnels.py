"""Runs a proxy by HTTP CONNECT or SOCKS5 on 127.0.0.1, by hand, for what real ones cannot show."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"


class Tunnels:
    """A proxy that connects to whatever it is asked for, on this machine.

    Args:
        scheme: http, https or socks5.
        login: user:password that it wants; empty: none.
        tls: Its certificate, for https.

    Attributes:
        port: Where it listens.
        asked: Each host and port that it was asked for, as text: a name is not resolved.
        answer: What it answers to a question in place of connecting; None: it connects.
        addresses: What it takes names for; others are not found.
    """

    def __init__(self, scheme: str, login: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._scheme = scheme
        self._login = login
        self._tls = tls
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.asked: list[str] = []
        self.answer: bytes | None = None
        self.addresses = {"localhost": HOST}

    async def __aenter__(self) -> Self:
        serve = self._by_socks5 if self._scheme == "socks5" else self._by_http
        self._serve = serve
        self._server = await asyncio.start_server(self._on_client, HOST, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    def url(self, login: str = "") -> str:
        """Return what a configuration has for it."""
        host = "localhost" if self._tls else HOST
        return f"{self._scheme}://{login and login + '@'}{host}:{self.port}"

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    # --- The protocols ---

    async def _by_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        assert method == "CONNECT"
        login = base64.b64encode(self._login.encode()).decode()
        if self._login and f"Proxy-Authorization: Basic {login}" not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        host, _, port = target.rpartition(":")
        await self._connect(
            *(host.strip("[]"), int(port), reader, writer),
            granted=b"HTTP/1.1 200 Connection established\r\n\r\n",
            not_found=b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        )

    async def _by_socks5(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        wanted = 2 if self._login else 0
        if wanted not in methods:
            writer.write(b"\5\xff")
            return
        writer.write(bytes([5, wanted]))
        if self._login and not await self._logged_in(reader, writer):
            return
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = ".".join(str(part) for part in await reader.readexactly(4))
        port = int.from_bytes(await reader.readexactly(2))
        await self._connect(
            *(host, port, reader, writer),
            granted=b"\5\0\0\1\x7f\0\0\1\0\1",
            not_found=b"\5\4\0\1\0\0\0\0\0\0",
        )

    async def _logged_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        _, length = await reader.readexactly(2)
        user = await reader.readexactly(length)
        password = await reader.readexactly((await reader.readexactly(1))[0])
        is_right = user + b":" + password == self._login.encode()
        writer.write(bytes([1, 0 if is_right else 1]))
        return is_right

    async def _connect(
        self,
        host: str,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        granted: bytes,
        not_found: bytes,
    ) -> None:
        self.asked.append(f"{host}:{port}")
        address = self.addresses.get(host, host)
        if self.answer is not None:
            writer.write(self.answer)
            return
        try:
            there = await asyncio.open_connection(address, port)
        except OSError:
            writer.write(not_found)
            return
        self._writers.append(there[1])
        writer.write(granted)
        await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(65_536):
        target.write(chunk)
        await target.drain()
    target.close()
