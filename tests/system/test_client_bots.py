"""Bots out of packages that others wrote are the other party of a real call, without a change.

`make clients` installs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import ari_conf, dialplan, manager_conf
from testbed.sip import SipUser
from tests.system.bots import BOT
from tests.system.clients import PIPECAT, joined, press, running
from tests.system.conftest import DIALPLAN, Target, counts_blocks, place_call, set_globals

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

BLOCKS = make_blocks(400, seed=73)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=74)


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


async def connected(ami: AmiClient, caller: SipUser, url: str) -> Target:
    """Place a call whose other party is a server of Twilio's messages."""
    await set_globals(ami, BOT_URL=url, BOT_OPTIONS="x(twilio)")
    target = await place_call(ami, caller, "bot")
    target.call.recording = True
    return target


def heard(target: Target, since: int = 0) -> bytes:
    """Return what the caller has heard since so many bytes, as slin."""
    return decode(target.call.received_audio()[since:])


async def spoken_to(target: Target) -> None:
    """Wait until the caller hears something, and half a second more."""
    since = len(target.call.received_audio())
    async with asyncio.timeout(20):
        while not any(heard(target, since)):  # noqa: ASYNC110 (RTP has no event)
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)


async def silent(target: Target) -> bool:
    """Return whether the caller hears nothing for a second, once what was on its way is there."""
    await asyncio.sleep(0.3)
    since = len(target.call.received_audio())
    await target.call.wait_received(target.call.rtp.packets_received + 50)
    return not any(heard(target, since))


@counts_blocks
async def test_pipecat_that_repeats_what_it_hears_is_heard_bit_exact(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(PIPECAT) as server:
        target = await connected(ami, caller, server.url + "bot")
        await target.call.play(WARM_UP + BLOCKS + WARM_UP)
        await asyncio.sleep(0.5)  # what is on its way, there and back
        await target.call.hangup()
        await server.wait(lambda one: "ended" in one)
    assert report(find_blocks(joined(server.all_of("audio")), HEARD), 400).intact
    assert report(find_blocks(heard(target), HEARD), 400).intact


async def test_pipecat_that_is_interrupted_is_silent_at_once(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(PIPECAT) as server:
        target = await connected(ami, caller, server.url + "bot")
        await target.call.play(BLOCKS[:200])
        await asyncio.sleep(0.5)
        await press(ami, target, "*")
        await spoken_to(target)
        await press(ami, target, "0")
        await server.wait(lambda one: one.get("digit") == "0")
        assert await silent(target)
        await target.call.hangup()
        stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    # It sends at the pace of speech: what it cannot take back is what waits at ours.
    assert int(stopped["FramesCleared"]) > 0
    assert server.all_of("digit") == ["*", "0"]
