"""Servers out of packages that others wrote, in tests of real calls."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator

import pytest

from testbed.ami import AmiClient
from testbed.clients.process import ClientServer, lack
from tests.system.conftest import Target

PIPECAT, VOCODE, NODE = "pipecat_server.py", "vocode_server.py", "twilio_server.js"
REALTIME, GALCYMEDIA = "realtime_bot.js", "galcymedia_bot.py"


@contextlib.asynccontextmanager
async def running(name: str) -> AsyncIterator[ClientServer]:
    """Run a server; skip the test where it cannot be run, and say why."""
    if why := lack(name):
        pytest.skip(why)
    async with ClientServer(name) as server:
        yield server


async def press(ami: AmiClient, target: Target, digit: str) -> None:
    """Let the party of a call press a key."""
    pressed = {"Channel": target.channel, "Digit": digit, "Duration": "100", "Receive": "true"}
    await ami.action("PlayDTMF", **pressed)


def joined(payloads: list[str]) -> bytes:
    """Return the audio that a server told of in base64, in one piece."""
    return b"".join(map(base64.b64decode, payloads))
