"""Servers that speak into the calls of their forks and ask for more, with the whole daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from audiofork.asterisk.versions import WHISPER_LEAKS, Version
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.rtp import ULAW
from testbed.sip import Call, SipUser
from tests.system.conftest import (
    Target,
    counts_blocks,
    each_tap,
    only_channels,
    place_call,
    start_fork,
)
from tests.system.test_speak import BLOCKS, COUNT, LEAST, QUIET, heard_by, talk

pytestmark = pytest.mark.asterisk

tap = each_tap

BOT = """
[profile:bot]
url = {url}
options = D(in)x(json)
commands = hangup dtmf transfer
transfer_to = testbed,third,1
"""


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"security": "allow_speak = ws://127.0.0.1/speak @bot\nallow_urls = *://127.0.0.1\n"}


@pytest.fixture
def whispers(asterisk: Asterisk) -> None:
    version = Version.parse(asterisk.installation.version)
    if version.has(WHISPER_LEAKS):
        pytest.skip(f"option k is refused on Asterisk {version}")


async def speak(ami: AmiClient, target: Target, recorder: Recorder, options: str) -> str:
    """Fork a call to a server that says all blocks at once; return the ActionID."""
    action_id = start_fork(ami, target.channel, recorder.url("/speak"), options)
    await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    (recording,) = recorder.at("/speak")
    assert recording.connection is not None
    await recording.connection.send(b"".join(BLOCKS))
    return action_id


async def stopped(ami: AmiClient, action_id: str) -> dict[str, str]:
    """Stop a fork; return its last event."""
    started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    fork_id = started["AudioForkID"]
    ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", AudioForkID=fork_id)
    return await ami.wait_user_event("AudioForkStopped", AudioForkID=fork_id)


async def all_played(ami: AmiClient, call: Call) -> None:
    """Wait until a phone has got as many packets more as the server has said blocks."""
    await call.wait_received(call.rtp.packets_received + COUNT + 25, timeout_s=15)


@counts_blocks
@pytest.mark.usefixtures("whispers")
async def test_party_hears_all_that_the_server_says_at_once_and_the_peer_nothing(
    daemon: Daemon, asterisk: Asterisk, ami: AmiClient, recorder: Recorder, tap: str
) -> None:
    async with talk(asterisk, ami, ULAW, QUIET) as (target, other):
        action_id = await speak(ami, target, recorder, "D(both)k(party)")
        await all_played(ami, target.call)
        end = await stopped(ami, action_id)
        assert await heard_by(target.call, BLOCKS, decode) >= LEAST[tap]
        assert await heard_by(other, BLOCKS, decode) == 0
    (recording,) = recorder.at("/speak")
    assert find_blocks(recording.audio, BLOCKS) == [], "it gets nothing of its own back"
    told = [end[name] for name in ("FramesPlayed", "FramesCleared", "FramesUnplayed", "Underruns")]
    assert told == [str(COUNT), "0", "0", "0"]


@counts_blocks
@pytest.mark.usefixtures("whispers")
@pytest.mark.parametrize("audience", ["peer", "both"])
async def test_peer_hears_the_server_by_snoop_and_by_chanspy_the_fork_is_refused(
    daemon: Daemon, asterisk: Asterisk, ami: AmiClient, recorder: Recorder, tap: str, audience: str
) -> None:
    async with talk(asterisk, ami, ULAW, QUIET) as (target, other):
        options = f"D(stereo)k({audience})"
        if tap == "chanspy":
            action_id = start_fork(ami, target.channel, recorder.url("/speak"), options)
            failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
            assert "ChanSpy is heard by the party alone" in failed["Reason"]
            return
        await speak(ami, target, recorder, options)
        await all_played(ami, other)
        assert await heard_by(other, BLOCKS, decode) == COUNT
        to_party = COUNT if audience == "both" else 0
        assert await heard_by(target.call, BLOCKS, decode) == to_party


async def test_server_that_allow_speak_does_not_name_is_refused_and_told_what_is_allowed(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait")
    action_id = start_fork(ami, target.channel, recorder.url("/other"), "k(party)")
    failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
    assert failed["Reason"] == (
        "Options: k(party): the server of this URL may not be heard in calls, [security] "
        "allow_speak has ws://127.0.0.1/speak @bot"
    )
    assert recorder.recordings == []
    await target.call.hangup()


@pytest.fixture
def bot(daemon: Daemon, recorder: Recorder) -> Iterator[None]:
    """The server as a profile that may ask for all."""
    before = daemon.config.read_text()
    daemon.config.write_text(before + BOT.format(url=recorder.url("/bot")))
    yield
    daemon.config.write_text(before)


async def ask(
    ami: AmiClient,
    daemon: Daemon,
    target: Target,
    recorder: Recorder,
    verb: str = "StartAudioFork",
    **command: str,
) -> dict[str, str]:
    """Fork a call to the bot, which asks for something; return the event that tells of it."""
    times = daemon.log().count("reloaded")
    await daemon.reload("reloaded", times=times + 1)
    target.call.talk()
    fork = {"Channel": target.channel, "WsServer": "@bot"}
    ami.send("UserEvent", UserEvent="AudioFork", Command=verb, **fork)
    recording = await recorder.wait_messages("/bot", 3)
    assert recording.connection is not None
    await recording.connection.send(json.dumps(command))
    return await ami.wait_user_event("AudioForkCommand", Uniqueid=target.uniqueid)


@pytest.mark.usefixtures("bot")
async def test_server_hangs_the_call_up(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    event = await ask(ami, daemon, target, recorder, command="hangup")
    assert (event["Command"], event["Outcome"], event["WsServer"]) == ("hangup", "done", "@bot")
    await target.call.wait_ended()
    end = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert end["Reason"] == "hangup"


@pytest.mark.usefixtures("bot")
async def test_server_transfers_the_call_and_the_fork_goes_on(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    event = await ask(ami, daemon, target, recorder, command="transfer", to="testbed,third")
    assert (event["Value"], event["Outcome"]) == ("testbed,third", "done")
    assert await ami.variable(target.channel, "EXTEN") == "third"
    (recording,) = recorder.at("/bot")
    await recorder.wait_messages("/bot", len(recording.messages) + 25)
    await target.call.hangup()


@pytest.mark.usefixtures("bot")
async def test_server_that_is_the_other_party_transfers_the_call_and_is_out_of_it(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    connect = "ConnectAudioFork"
    order = {"command": "transfer", "to": "testbed,third,1"}
    event = await ask(ami, daemon, target, recorder, connect, **order)
    assert event["Outcome"] == "done"
    end = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert end["Reason"] == "stopped"
    assert end["Detail"] == "transferred by the server to testbed,third,1"
    await ami.wait_event(
        lambda h: (
            h.get("Event") == "Newexten"
            and (h["Channel"], h["Extension"]) == (target.channel, "third")
        )
    )
    await only_channels(ami, target.channel)
    await target.call.hangup()


@pytest.mark.usefixtures("bot")
async def test_server_plays_keys_that_no_log_shows(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    event = await ask(ami, daemon, target, recorder, command="dtmf", digits="47110815")
    assert (event["Value"], event["Outcome"]) == ("of 8 keys", "done")
    assert "4711" not in daemon.log()
    await target.call.hangup()
