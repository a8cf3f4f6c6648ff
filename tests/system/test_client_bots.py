"""Bots out of packages that others wrote are the other party of a real call, without a change.

`make clients` installs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import ULAW_BYTES, decode, find_blocks, make_blocks, report
from testbed.clients.process import ClientServer, Told
from testbed.daemon import ari_conf, dialplan, manager_conf
from testbed.sip import SipUser
from tests.system.bots import BOT
from tests.system.clients import (
    GALCYMEDIA,
    PIPECAT,
    REALTIME,
    VOCODE,
    joined,
    press,
    running,
)
from tests.system.conftest import DIALPLAN, Target, counts_blocks, place_call, set_globals

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

BLOCKS = make_blocks(250, seed=73)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=74)


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


async def connected(
    ami: AmiClient, caller: SipUser, url: str, options: str = "x(twilio)"
) -> Target:
    """Place a call whose other party is a server."""
    await set_globals(ami, BOT_URL=url, BOT_OPTIONS=options)
    target = await place_call(ami, caller, "bot")
    target.call.recording = True
    return target


def heard(target: Target, since: int = 0) -> bytes:
    """Return what the caller has heard since so many bytes, as slin."""
    return decode(target.call.received_audio()[since:])


async def speak_until(
    target: Target, server: ClientServer, matches: Callable[[Told], bool]
) -> None:
    """Let the caller speak until the server tells something."""
    speech = target.call.play(BLOCKS, loop=True)
    await server.wait(matches)
    speech.cancel()


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
    assert report(find_blocks(joined(server.all_of("audio")), HEARD), 250).intact
    assert report(find_blocks(heard(target), HEARD), 250).intact


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


def blocks_of(speech: bytes) -> list[bytes]:
    """Return mu-law in pieces of 20 ms, as slin."""
    starts = range(0, len(speech), ULAW_BYTES)
    return [decode(speech[start : start + ULAW_BYTES]) for start in starts]


@counts_blocks
async def test_vocode_is_heard_bit_exact_and_gets_its_marks_back(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(VOCODE) as server:
        target = await connected(ami, caller, server.url + "bot")
        await speak_until(target, server, lambda one: "speaks" in one)
        await target.call.wait_received(target.call.rtp.packets_received + 250, timeout_s=15)
        await target.call.hangup()
        await server.wait(lambda one: "ended" in one)
    (speech,) = server.all_of("speaks")
    assert report(find_blocks(heard(target), blocks_of(joined([speech]))), 200).intact
    assert server.all_of("said") == [["please tell me all about it", True]]


async def test_vocode_that_is_interrupted_is_silent_and_knows_that_it_was_cut_off(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(VOCODE) as server:
        target = await connected(ami, caller, server.url + "bot")
        await speak_until(target, server, lambda one: "speaks" in one)
        await spoken_to(target)
        await speak_until(target, server, lambda one: one.get("speaks") == "")
        assert await silent(target)
        await target.call.hangup()
        await server.wait(lambda one: "ended" in one)
        stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert int(stopped["FramesCleared"]) > 0
    assert server.all_of("said")[0] == ["please tell me all about it", False]


@counts_blocks
async def test_node_bot_by_the_flow_of_realtime_samples_is_heard_and_gets_its_marks_back(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(REALTIME) as server:
        target = await connected(ami, caller, server.url)
        await speak_until(target, server, lambda one: "speaks" in one)
        await server.wait(lambda one: one.get("mark") == "part19")
        await asyncio.sleep(0.3)  # what is on its way by RTP
        await target.call.hangup()
        await server.wait(lambda one: one.get("closed") == 1000)
    (speech,) = server.all_of("speaks")
    assert report(find_blocks(heard(target), blocks_of(joined([speech]))), 200).intact
    assert server.all_of("mark") == [f"part{number}" for number in range(20)]
    assert server.all_of("left") == [*range(19, -1, -1)]


@counts_blocks
async def test_node_bot_by_the_flow_of_realtime_samples_is_silent_when_its_caller_speaks(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(REALTIME) as server:
        target = await connected(ami, caller, server.url, "x(twilio)S")
        await speak_until(target, server, lambda one: "speaks" in one)
        await spoken_to(target)
        await speak_until(target, server, lambda one: "interrupted" in one)
        assert await silent(target)
        await server.wait(lambda one: one.get("mark") == "part19")
        await target.call.hangup()
    (interrupted,) = server.all_of("interrupted")
    (speech,) = server.all_of("speaks")
    count = len(find_blocks(heard(target), blocks_of(joined([speech]))))
    # By the stamps of the caller's audio, which go on while he is silent: 0.9 s or so.
    assert interrupted >= 500
    assert 0 < count < 200
    assert server.all_of("mark") == [f"part{number}" for number in range(20)]


@counts_blocks
async def test_bot_for_chan_websocket_is_heard_bit_exact_and_gets_its_mark_back(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(GALCYMEDIA) as server:
        target = await connected(ami, caller, server.url, "x(chan_websocket)")
        await target.call.play(WARM_UP + BLOCKS + WARM_UP)
        await asyncio.sleep(0.5)
        said = heard(target)
        await press(ami, target, "*")
        await server.wait(lambda one: "marked" in one, timeout_s=20)
        await asyncio.sleep(0.3)
        once_more = heard(target)[len(said) :]
        await target.call.hangup()
        await server.wait(lambda one: "ended" in one)
    assert server.all_of("start") == [{"format": "slin", "variables": {}}]
    for audio in (said, once_more):
        assert report(find_blocks(audio, HEARD), 250).intact


async def test_bot_for_chan_websocket_that_is_interrupted_is_silent_at_once(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(GALCYMEDIA) as server:
        target = await connected(ami, caller, server.url, "x(chan_websocket)")
        await target.call.play(BLOCKS)
        await asyncio.sleep(0.5)
        await press(ami, target, "*")
        await spoken_to(target)
        await press(ami, target, "0")
        await server.wait(lambda one: one.get("digit") == "0")
        assert await silent(target)
        await target.call.hangup()
    assert server.all_of("digit") == ["*", "0"]
