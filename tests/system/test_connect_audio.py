"""What a connected server says reaches the party, in each format's own words, through all of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from websockets.asyncio.server import ServerConnection

from audiofork.asterisk.versions import AUDIOSOCKET_RATES
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report, slin_blocks
from testbed.daemon import Daemon, ari_conf, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.rtp import SLIN16, ULAW, Codec, swap_bytes
from testbed.sip import SipUser
from tests.system.bots import BOT, hear
from tests.system.conftest import (
    DIALPLAN,
    Target,
    counts_blocks,
    needs,
    place_call,
    set_globals,
)
from tests.system.servers import Behave, server

pytestmark = pytest.mark.asterisk


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


async def call(
    ami: AmiClient,
    caller: SipUser,
    url: str,
    options: str,
    extension: str = "bot",
    codec: Codec = ULAW,
) -> Target:
    await set_globals(ami, BOT_URL=url, BOT_OPTIONS=options)
    target = await place_call(ami, caller, extension, codec)
    target.call.recording = True
    return target


async def hang_up(ami: AmiClient, target: Target) -> None:
    """Hang up; return when the server has all, so that it may go."""
    await target.call.hangup()
    await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)


def heard(target: Target, codec: Codec = ULAW) -> bytes:
    """Return what the caller has heard so far, as slin."""
    audio = target.call.received_audio()
    return decode(audio) if codec is ULAW else swap_bytes(audio)


async def echo_binary(connection: ServerConnection) -> None:
    async for message in connection:
        if isinstance(message, bytes):
            await connection.send(message)


async def echo_twilio(connection: ServerConnection) -> None:
    async for message in connection:
        told = json.loads(message)
        if told["event"] == "media":
            media = {"payload": told["media"]["payload"]}
            sid = told["streamSid"]
            await connection.send(json.dumps({"event": "media", "streamSid": sid, "media": media}))


ECHOES: dict[str, Behave] = {
    "raw": echo_binary,
    "json": echo_binary,
    "vonage": echo_binary,
    "jambonz": echo_binary,
    "chan_websocket": echo_binary,
    "twilio": echo_twilio,
}


@pytest.mark.parametrize("format_", ECHOES)
@counts_blocks
async def test_caller_hears_his_own_words_bit_exact_from_a_server_that_sends_them_back(
    daemon: Daemon, ami: AmiClient, caller: SipUser, format_: str
) -> None:
    spoken = make_blocks(250, seed=1)
    async with server(ECHOES[format_]) as url:
        target = await call(ami, caller, url, f"x({format_})")
        noise = make_blocks(25, seed=2)
        await target.call.play(noise + spoken)
        await hear(target, spoken[-1], noise)
        await hang_up(ami, target)
    blocks = [decode(block) for block in spoken]
    assert report(find_blocks(heard(target), blocks), 250).intact


@needs(AUDIOSOCKET_RATES, "AudioSocket legs at 16000 Hz")
@counts_blocks
async def test_wideband_call_is_bit_exact_in_both_directions(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    blocks = slin_blocks(250, seed=1, sample_rate=16_000)
    spoken = [swap_bytes(one) for one in blocks]
    noise = [swap_bytes(one) for one in slin_blocks(25, seed=2, sample_rate=16_000)]
    async with server(echo_binary) as url:
        target = await call(ami, caller, url, "L(16000)x(json)", codec=SLIN16)
        await target.call.play(noise + spoken)
        await hear(target, spoken[-1], noise)
        await hang_up(ami, target)
    assert report(find_blocks(heard(target, SLIN16), blocks), 250).intact


async def test_clear_returns_the_marks_and_what_waited_is_never_heard(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    told: list[object] = []
    speech = b"".join(slin_blocks(1000, seed=4))
    cleared = asyncio.Event()

    async def interrupt(connection: ServerConnection) -> None:
        await connection.recv()
        for start in range(0, len(speech), 32_000):
            await connection.send(speech[start : start + 32_000])
        await connection.send('{"command": "mark", "name": "end"}')
        for _ in range(50):
            await connection.recv()
        await connection.send('{"command": "clear"}')
        async for message in connection:
            if isinstance(message, str):
                told.append(json.loads(message))
                if json.loads(message)["event"] == "cleared":
                    cleared.set()

    async with server(interrupt) as url:
        target = await call(ami, caller, url, "x(json)")
        target.call.talk()
        async with asyncio.timeout(20):
            await cleared.wait()
        await asyncio.sleep(0.2)  # what is on its way by RTP
        position = len(target.call.received_audio())
        await asyncio.sleep(1)
        assert any(decode(target.call.received_audio()[:position]))
        assert not any(decode(target.call.received_audio()[position:]))
        await hang_up(ami, target)
        stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert [event["event"] for event in told if isinstance(event, dict)][:2] == ["mark", "cleared"]
    assert stopped["Reason"] == "hangup"


@counts_blocks
async def test_server_that_speaks_first_is_heard_by_a_caller_who_says_nothing(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    blocks = [decode(block) for block in make_blocks(100, seed=5)]

    async def greet(connection: ServerConnection) -> None:
        await connection.send(b"".join(blocks))
        await connection.wait_closed()

    async with server(greet) as url:
        target = await call(ami, caller, url, "")
        await target.call.wait_received(130)
        assert report(find_blocks(heard(target), blocks), 100).intact
        await hang_up(ami, target)


@pytest.mark.parametrize(("piece", "count"), [(1, 5), (333, 50), (1000, 50)])
@counts_blocks
async def test_messages_of_any_length_are_heard_as_if_they_were_one(
    daemon: Daemon, ami: AmiClient, caller: SipUser, piece: int, count: int
) -> None:
    blocks = [decode(block) for block in make_blocks(count, seed=6)]
    speech = b"".join(blocks)

    async def dribble(connection: ServerConnection) -> None:
        await connection.send(bytes(320 * 50))  # or a byte may come after its frame is due
        for start in range(0, len(speech), piece):
            await connection.send(speech[start : start + piece])
        await connection.wait_closed()

    async with server(dribble) as url:
        target = await call(ami, caller, url, "")
        await target.call.wait_received(60 + count)
        assert report(find_blocks(heard(target), blocks), count).intact
        await hang_up(ami, target)


async def test_server_that_says_nothing_is_silence_at_the_pace_of_a_call(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await call(ami, caller, recorder.url("/bot"), "")
    position = len(ami.events)
    target.call.talk()
    await target.call.wait_received(150)
    await recorder.wait_messages("/bot", 150)
    assert not any(heard(target))
    assert not any(h.get("UserEvent") == "Back" for _, h in ami.events[position:])
    await hang_up(ami, target)
