"""A bot of galcymedia, a library for the servers that Asterisk's chan_websocket calls.

    .venv-galcymedia/bin/python testbed/clients/galcymedia_bot.py

Says again what it hears; at `*` all that it heard so far once more, with a mark after that; any
other key interrupts it. Prints a line of JSON for all that happens: {"port": N}, then for each call
{"start": {...}}, {"digit": D}, {"marked": true} once the mark has come back, and {"ended": true}.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from galcymedia import Session, serve

PIECE_BYTES = 8000


def say(**what: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(what), flush=True)


class Bot:
    """The four methods that the library asks for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._heard = bytearray()
        self._waits: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        media = self._session.media
        say(start={"format": media.audio_format, "variables": media.channel_variables})
        self._session.accept_audio()
        await self._session.answer()

    async def send_audio(self, chunk: bytes) -> None:
        self._heard += chunk
        await self._session.send_audio(chunk)

    async def on_dtmf(self, digit: str) -> None:
        say(digit=digit)
        if digit == "*":
            for start in range(0, len(self._heard), PIECE_BYTES):
                await self._session.send_audio(bytes(self._heard[start : start + PIECE_BYTES]))
            self._waits.add(asyncio.create_task(self._tell(await self._session.mark())))
        else:
            await self._session.flush()

    async def _tell(self, marked: asyncio.Event) -> None:
        await marked.wait()
        say(marked=True)

    async def close(self) -> None:
        say(ended=True)


async def main() -> None:
    """Serve until the process is ended."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    async with serve(Bot, host="127.0.0.1", port=port, forward_dtmf=True):
        say(port=port)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
