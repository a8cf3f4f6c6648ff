"""A call to a server of OpenAI's Realtime API, by the shipped profile, on the real Asterisk."""

from __future__ import annotations

import asyncio
import json
import shutil
from audioop import lin2ulaw
from collections.abc import Callable, Iterator

import pytest

from audiofork.asterisk.versions import AUDIOSOCKET_RATES
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon, ari_conf, dialplan, manager_conf
from testbed.realtime_api import Call as ModelCall
from testbed.realtime_api import RealtimeApi, Turn
from testbed.sip import SipUser
from testbed.speech_services import KEY
from testbed.tones import pitches, tone
from tests.system.bots import BOT, went_on
from tests.system.conftest import (
    DIALPLAN,
    Target,
    counts_blocks,
    needs,
    no_channels,
    place_call,
    set_globals,
)
from tests.system.test_profiles import put_shipped

pytestmark = pytest.mark.asterisk

GREETING = [decode(block) for block in make_blocks(50, seed=161)]
ANSWER = [decode(block) for block in make_blocks(250, seed=162)]
SAYS = make_blocks(25, seed=163)
QUIET = [b"\xff" * 160] * 25
PITCH_HZ, CANDIDATES = 1000, (440, 1000, 1320, 3000)
TONE = [lin2ulaw(tone(440, 1)[start : start + 320], 2) for start in range(0, 16_000, 320)]


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


@pytest.fixture(autouse=True)
def no_profiles_left(shared_daemon: Daemon) -> Iterator[None]:
    yield
    shutil.rmtree(shared_daemon.profiles, ignore_errors=True)


async def call_bot(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    api: RealtimeApi,
    options: str = "",
    *,
    granted: bool = False,
) -> Target:
    """Place a call whose other party is a server, named by the shipped profile.

    Args:
        granted: Whether it may hang up and transfer, as the profile shows.
    """
    put_shipped(daemon, api)
    if granted:
        profile = daemon.profiles / "openai-realtime.ini"
        lines = profile.read_text().replace("; commands = hangup", "commands = hangup")
        lines = lines.replace("; transfer_to = shop,100,1", "transfer_to = testbed,next,1")
        profile.write_text(lines)
    await daemon.reload("INFO    reloaded", times=daemon.log().count("INFO    reloaded") + 1)
    await set_globals(ami, BOT_URL="@openai-realtime", BOT_OPTIONS=options)
    target = await place_call(ami, caller, "bot")
    target.call.recording = True
    return target


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what came by RTP has no event)
            await asyncio.sleep(0.02)


def heard(target: Target, blocks: list[bytes]) -> list[int]:
    """Return the places of those blocks that the caller has heard."""
    return find_blocks(decode(target.call.received_audio()), blocks)


def messages_of(ami: AmiClient, position: int) -> list[dict[str, str]]:
    told = [headers for _, headers in ami.events[position:]]
    return [
        json.loads(one["Message"]) for one in told if one.get("UserEvent") == "AudioForkMessage"
    ]


@counts_blocks
async def test_bot_of_the_shipped_profile_greets_answers_and_is_cut_off_by_its_caller(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    position = len(ami.events)
    api = RealtimeApi(Turn(b"".join(GREETING), "good morning"), Turn(b"".join(ANSWER), "no"))
    async with api:
        target = await call_bot(daemon, ami, caller, api)
        quiet = target.call.play(QUIET, loop=True)
        await until(lambda: len(heard(target, GREETING)) == len(GREETING))
        quiet.cancel()
        await target.call.play(SAYS)  # and nothing after that: silence comes by option S
        await until(lambda: len(heard(target, ANSWER)) >= 25)
        saying = target.call.play(SAYS)
        await api.until(lambda: api.truncations)
        await saying
        (cut,) = api.truncations
        before_hangup = heard(target, ANSWER)
        await target.call.hangup()
        stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert api.faults == []
    assert report(heard(target, GREETING), len(GREETING)).intact
    assert report(before_hangup, range(len(before_hangup))).intact
    assert cut.duration_ms == 5000
    assert abs(cut.audio_end_ms - len(before_hangup) * 20) <= 40
    assert [said["text"] for said in messages_of(ami, position)] == [
        "good morning",
        "what the caller said",
        "no",
    ]
    assert stopped["WsServer"] == "@openai-realtime"
    assert KEY not in f"{daemon.log()}{ami.events}"


@needs(AUDIOSOCKET_RATES, "AudioSocket legs at 24000 Hz")
async def test_bot_at_24000_hz_is_heard_and_hears(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    api = RealtimeApi(Turn(tone(PITCH_HZ, 1)))
    async with api:
        target = await call_bot(daemon, ami, caller, api, "L(24000)")
        quiet = target.call.play(QUIET, loop=True)
        await until(lambda: pitches(decode(target.call.received_audio()[-4000:]), CANDIDATES))
        quiet.cancel()
        assert pitches(decode(target.call.received_audio()[-4000:]), CANDIDATES) == [PITCH_HZ]
        await target.call.play(TONE)
        await until(lambda: pitches(api.caller_slin[-8000:], CANDIDATES) == [440])
        await target.call.hangup()
        await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert api.faults == []
    assert api.sessions[0]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}


async def test_session_that_the_server_refuses_lets_the_dialplan_go_on_with_the_reason(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    position = len(ami.events)
    api = RealtimeApi(refusal="no such voice")
    async with api:
        target = await call_bot(daemon, ami, caller, api)
        target.call.talk()
        back = await went_on(ami)
        await target.call.hangup()
    assert (back["Status"], back["Why"]) == ("FAILED", "sink-refused")
    assert messages_of(ami, position)[0]["message"] == "no such voice"
    assert "the server reports an error: invalid_value: no such voice" in daemon.log()


@counts_blocks
async def test_model_hangs_up_after_its_farewell_where_the_profile_grants_it(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    farewell = ANSWER[:25]
    api = RealtimeApi(Turn(b"".join(farewell), "bye", (ModelCall("hang_up"),)))
    async with api:
        target = await call_bot(daemon, ami, caller, api, granted=True)
        target.call.play(QUIET, loop=True)
        await target.call.wait_ended(10)
        stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert report(heard(target, farewell), len(farewell)).intact
    assert api.faults == []
    assert api.outputs == ["The call is being hung up."]
    assert stopped["Reason"] == "hangup"


@pytest.mark.parametrize(
    ("place", "outcome"), [("testbed,next,1", "done"), ("testbed,echo,1", "refused")]
)
async def test_model_transfers_to_a_place_of_the_profile_alone(
    daemon: Daemon, ami: AmiClient, caller: SipUser, place: str, outcome: str
) -> None:
    api = RealtimeApi(Turn(calls=(ModelCall("transfer", {"to": place}),)))
    position = len(ami.events)
    async with api:
        target = await call_bot(daemon, ami, caller, api, granted=True)
        target.call.play(QUIET, loop=True)
        asked = await ami.wait_user_event("AudioForkCommand", Uniqueid=target.uniqueid)
        if outcome == "done":
            assert (await went_on(ami))["Status"] == "STOPPED"
            wish = {"Channel": target.channel, "Variable": "AUDIOFORK_NEXT"}
            assert (await ami.action("Getvar", **wish))["Value"] == place
        await target.call.hangup()
        await no_channels(ami)
    assert (asked["Value"], asked["Outcome"]) == (place, outcome)
    assert api.faults == []
    assert messages_of(ami, position)[0] == {
        "event": "tool_call",
        "name": "transfer",
        "arguments": {"to": place},
    }
