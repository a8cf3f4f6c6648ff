"""The same job with picows, a WebSocket library in Cython: protocols on uvloop, no streams.

picows has to be importable; `bench.build` fetches it into the cache.
"""

from __future__ import annotations

import argparse
import asyncio
import audioop
import importlib
import json
import ssl
from typing import Any, cast

import uvloop

# Not a requirement of the project, so not there when types are checked.
picows: Any = importlib.import_module("picows")

HEADER_BYTES = 3
UUID, SLIN = 0x01, 0x10


class Leg(asyncio.Protocol):
    """One AudioSocket connection and the WebSocket connection that it feeds."""

    def __init__(self, url: str, tls: ssl.SSLContext | None, mixes: bool) -> None:
        self._url, self._tls, self._mixes = url, tls, mixes
        self._rest = b""
        self._sink: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, chunk: bytes) -> None:
        stream = self._rest + chunk if self._rest else chunk
        at = 0
        while len(stream) - at >= HEADER_BYTES:
            end = at + HEADER_BYTES + (stream[at + 1] << 8 | stream[at + 2])
            if end > len(stream):
                break
            self._on_message(stream[at], stream[at + HEADER_BYTES : end])
            at = end
        self._rest = stream[at:]

    def _on_message(self, kind: int, payload: bytes) -> None:
        if kind == UUID:
            self._transport.pause_reading()
            self._opening = asyncio.create_task(self._open())
        elif kind == SLIN:
            frame = audioop.tomono(payload, 2, 1, 1) if self._mixes else payload
            self._sink.send(picows.WSMsgType.BINARY, frame)

    async def _open(self) -> None:
        self._sink, _ = await picows.ws_connect(
            picows.WSListener, self._url, ssl_context=self._tls, enable_auto_ping=True
        )
        self._transport.resume_reading()

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._sink is not None:
            self._sink.send_close(picows.WSCloseCode.OK)


async def serve(url: str, ca_file: str, mixes: bool) -> None:
    """Take legs for ever; print {"port": N} first."""
    tls = ssl.create_default_context(cafile=ca_file) if url.startswith("wss:") else None
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Leg(url, tls, mixes), "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca", default="")
    parser.add_argument("--mix", action="store_true")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.url, arguments.ca, arguments.mix))


if __name__ == "__main__":
    main()
