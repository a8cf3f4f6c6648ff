"""Servers out of packages that others wrote get a real call, and read it without a change.

`make clients` installs them.
"""

from __future__ import annotations

import itertools

import pytest
from websockets.asyncio.server import ServerConnection, basic_auth, serve

from testbed.ami import AmiClient
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.clients.process import ClientServer
from testbed.sip import SipUser
from tests.system.clients import NODE, PIPECAT, VOCODE, joined, press, running
from tests.system.conftest import (
    LOST_BEFORE,
    Target,
    counts_blocks,
    place_call,
    start_fork,
    start_fork_heard,
)

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

BLOCKS = make_blocks(250, seed=71)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(50, seed=72)


@pytest.fixture(scope="module")
def tap() -> str:
    return "snoop"


async def forked(
    ami: AmiClient, caller: SipUser, server: ClientServer, options: str, **more: str
) -> Target:
    """Place an Echo() call, fork it, and speak until the fork streams."""
    target = await place_call(ami, caller)
    await start_fork_heard(ami, target, server.url, options, **more)
    return target


@counts_blocks
async def test_server_that_demands_a_login_hears_each_block(
    ami: AmiClient, caller: SipUser
) -> None:
    """One that demands a token and a subprotocol: tests/system/test_options.py."""
    got: list[str | bytes] = []

    async def take(connection: ServerConnection) -> None:
        got.extend([message async for message in connection])

    check = basic_auth(realm="calls", credentials=("bot", "s3cret:&)"))
    async with serve(take, "127.0.0.1", 0, process_request=check) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"
        target = await place_call(ami, caller)
        wrong = start_fork(ami, target.channel, url, "D(in)A(bot:other)")
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=wrong)
        action_id = await start_fork_heard(ami, target, url, 'D(in)A("bot:s3cret:&)")')
        await target.call.play(BLOCKS[:100] + WARM_UP[:10])
        await target.call.hangup()
        await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert "HTTP 401" in failed["Detail"]
    audio = b"".join(message for message in got if isinstance(message, bytes))
    assert report(find_blocks(audio, HEARD[:100]), 100).intact


def check_whole(found: list[int]) -> None:
    """Fail unless all blocks that were said have come in order, but for what Asterisk loses."""
    became = report(found, 250)
    assert (became.duplicated, became.out_of_order) == (0, 0)
    assert became.missing <= LOST_BEFORE


@counts_blocks
async def test_pipecat_hears_each_block_and_key_and_is_told_of_the_call(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(PIPECAT) as server:
        target = await forked(ami, caller, server, "D(in)x(twilio)", Params="bot=7")
        await target.call.play(BLOCKS)
        await press(ami, target, "5")
        await target.call.play(WARM_UP)
        await server.wait(lambda one: one.get("digit") == "5")
        await target.call.hangup()
        await server.wait(lambda one: "ended" in one)
    (call,) = server.all_of("call")
    assert (call["kind"], call["body"]["bot"]) == ("twilio", "7")
    assert (call["from_number"], call["to_number"]) == ("caller", "echo")
    assert server.all_of("digit") == ["5"]
    check_whole(find_blocks(joined(server.all_of("audio")), HEARD))


@counts_blocks
async def test_vocode_hears_the_callers_mu_law_as_it_went_in(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(VOCODE) as server:
        target = await forked(ami, caller, server, "D(in)x(twilio)")
        await target.call.play(BLOCKS + WARM_UP)
        await target.call.hangup()
        ended = await server.wait(lambda one: "ended" in one)
    assert ended["stream"].startswith("MZ")
    audio = joined(server.all_of("audio"))
    assert report(find_blocks(decode(audio), HEARD), 250).intact
    assert all(block in audio for block in BLOCKS)


@counts_blocks
@pytest.mark.parametrize("direction", ["in", "stereo"])
async def test_node_server_finds_each_field_that_twilio_lists(
    ami: AmiClient, caller: SipUser, direction: str
) -> None:
    async with running(NODE) as server:
        target = await forked(ami, caller, server, f"D({direction})x(twilio)", Params="a=%22")
        await target.call.play(BLOCKS)
        await press(ami, target, "#")
        await target.call.play(WARM_UP)
        await target.call.hangup()
        await server.wait(lambda one: "closed" in one)
    assert server.all_of("wrong") == []
    assert server.all_of("digit") == ["#"]
    assert (len(server.all_of("stop")), server.all_of("closed")) == (1, [1000])
    (start,) = server.all_of("start")
    assert start["customParameters"]["a"] == '"'
    for track in start["tracks"]:
        media = [one for one in server.told if one.get("track") == track]
        assert [one["chunk"] for one in media] == list(range(1, len(media) + 1))
        stamps = [one["timestamp"] for one in media]
        assert {later - earlier for earlier, later in itertools.pairwise(stamps)} == {20}
        # An Echo() call hears what it says.
        audio = joined([one["audio"] for one in media])
        check_whole(find_blocks(decode(audio), HEARD))


@counts_blocks
async def test_node_server_that_breaks_the_connection_finds_the_calls_clock_go_on(
    ami: AmiClient, caller: SipUser
) -> None:
    async with running(NODE) as server:
        target = await forked(ami, caller, server, "D(in)x(twilio)")
        spoken = target.call.play(BLOCKS + WARM_UP)
        await server.wait(lambda one: one.get("chunk") == 100)
        server.break_off()
        await spoken
        await target.call.hangup()
        await server.wait(lambda one: one.get("closed") == 1000)
    assert server.all_of("wrong") == []
    assert len(server.all_of("start")) == 2
    media = [one for one in server.told if "audio" in one]
    again = next(at for at, one in enumerate(media) if at and one["chunk"] == 1)
    first, second = media[:again], media[again:]
    for part in (first, second):
        assert [one["chunk"] for one in part] == list(range(1, len(part) + 1))
    # A frame that lies in both has the same stamp in both; what lies in none is missing there.
    at = {one["timestamp"]: one["audio"] for one in first}
    for one in second:
        assert at.setdefault(one["timestamp"], one["audio"]) == one["audio"]
    lost = (second[0]["timestamp"] - first[-1]["timestamp"]) // 20 - 1
    audio = joined([at[stamp] for stamp in sorted(at)])
    found = report(find_blocks(decode(audio), HEARD), 250)
    assert (found.missing, found.duplicated, found.out_of_order) == (max(lost, 0), 0, 0)
