"""Plays keys (DTMF) into channels, by an AMI connection of its own.

Asterisk does nothing else on a connection while a key of it sounds, so the daemon's own connection
must not carry them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from audiofork.asterisk.ami import Ami
from audiofork.errors import AmiError, AmiLoginRefused, AmiUnavailable
from audiofork.text import why

KEYS = re.compile(r"[0-9A-D*#]+")
KEY_MS = 100

# Opens a further connection to Asterisk: `Ami.another`.
Another = Callable[[], AbstractAsyncContextManager[Ami]]


class Keypad:
    """Plays keys one after the other, for all forks; those that wait take turns.

    The connection is opened for a key where there is none, and stays until `close`.

    Args:
        another: Opens a further connection to Asterisk.
    """

    def __init__(self, another: Another) -> None:
        self._another = another
        self._turn = asyncio.Lock()
        self._opened = contextlib.AsyncExitStack()
        self._ami: Ami | None = None

    async def play(self, uniqueid: str, key: str) -> None:
        """Play a key to a channel's party; return when it has sounded.

        Args:
            uniqueid: The channel.
            key: One of 0 to 9, A to D, * and #.

        Raises:
            AmiError: There is no connection, or Asterisk has refused.
        """
        headers = [("Channel", uniqueid), ("Digit", key), ("Duration", str(KEY_MS))]
        async with self._turn:
            try:
                await (await self._connected()).action("PlayDTMF", headers)
            except AmiUnavailable:
                await self._close()  # so that the next key opens another
                raise

    async def _connected(self) -> Ami:
        if self._ami is None:
            try:
                self._ami = await self._opened.enter_async_context(self._another())
            except AmiLoginRefused as exc:
                raise AmiLoginRefused(
                    f"{exc}; keys take a connection of their own: allowmultiplelogin = yes"
                ) from exc
            except (OSError, TimeoutError, ValueError) as exc:
                raise AmiUnavailable(f"no further connection to Asterisk: {why(exc)}") from exc
        return self._ami

    async def close(self) -> None:
        """Close the connection, if there is one; keys may be played again."""
        async with self._turn:
            await self._close()

    async def _close(self) -> None:
        self._ami = None
        with contextlib.suppress(AmiError):
            await self._opened.aclose()
