"""A server that speaks before the call is answered, as docs/bots.md shows it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon, ari_conf, dialplan, manager_conf
from testbed.sip import SipUser
from tests.system.conftest import DIALPLAN, counts_blocks, each_tap, set_globals
from tests.system.servers import server

pytestmark = pytest.mark.asterisk
tap = each_tap

DOCS = (Path(__file__).parents[2] / "docs/bots.md").read_text()
BLOCKS = [decode(block) for block in make_blocks(100, seed=5)]


def documented() -> str:
    """Return the dialplan of the documentation, with the server of the test."""
    (found,) = re.findall(r"(?m)^    exten => early,1(?:.*\n)(?:^     same.*\n)+", DOCS)
    return "\n[testbed]\n" + re.sub(r"(?m)^    ", "", found).replace("@bot", "${BOT_URL}")


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + documented() + dialplan(), config=config) as one:
        yield one


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"security": "allow_speak = ws://127.0.0.1\n"}


@counts_blocks
async def test_caller_hears_the_server_before_the_call_is_answered(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    async def announce(connection: ServerConnection) -> None:
        while isinstance(await connection.recv(), str):
            pass  # with the first audio the leg is there
        await connection.send(b"".join(BLOCKS))
        await connection.send('{"command": "mark", "name": "end"}')
        async for message in connection:
            if isinstance(message, str) and '"mark"' in message:
                await asyncio.sleep(0.2)  # what is on its way by Asterisk and RTP
                heard.extend(call.received_audio() for call in caller.ringing)
                return

    heard: list[bytes] = []
    async with server(announce) as url:
        await set_globals(ami, BOT_URL=url)
        call = await caller.call("early", record=True, timeout_s=20)
        await call.hangup()
    assert report(find_blocks(decode(heard[0]), BLOCKS), 100).intact
