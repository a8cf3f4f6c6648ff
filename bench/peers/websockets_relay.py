"""The same job as one writes it first: asyncio streams, and `await connection.send()`."""

from __future__ import annotations

import argparse
import asyncio
import audioop
import json
import ssl

from websockets.asyncio.client import connect

SLIN = 0x10


async def relay(
    reader: asyncio.StreamReader, url: str, tls: ssl.SSLContext | None, mixes: bool
) -> None:
    """Relay one leg until it closes."""
    await reader.readexactly(3 + 16)  # the UUID
    async with connect(url, ssl=tls, compression=None, proxy=None) as connection:
        while True:
            header = await reader.readexactly(3)
            payload = await reader.readexactly(int.from_bytes(header[1:], "big"))
            if header[0] == SLIN:
                await connection.send(audioop.tomono(payload, 2, 1, 1) if mixes else payload)


async def serve(url: str, ca_file: str, mixes: bool) -> None:
    """Take legs for ever; print {"port": N} first."""
    tls = ssl.create_default_context(cafile=ca_file) if url.startswith("wss:") else None

    async def on_leg(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await relay(reader, url, tls, mixes)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(on_leg, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca", default="")
    parser.add_argument("--mix", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.url, arguments.ca, arguments.mix))


if __name__ == "__main__":
    main()
