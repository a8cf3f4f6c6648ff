"""How forks begin and end: requests, hangups, transfers, stops, lost servers."""

from __future__ import annotations

import asyncio

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import (
    counts_blocks,
    each_tap,
    needs_pairs,
    needs_whole_in,
    only_channels,
    place_call,
    set_globals,
    start_fork,
)

pytestmark = pytest.mark.asterisk

CLOSE_LIMIT_S = 0.2


# --- Requests and what comes back ---


tap = each_tap


async def test_start_by_ami_raises_started_and_sets_the_variables(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    action_id = start_fork(ami, target.channel, recorder.url("/a"), "D(both)")
    started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    fork_id = started["AudioForkID"]
    assert started["Channel"] == target.channel
    assert started["Uniqueid"] == target.uniqueid
    assert started["WsServer"] == recorder.url("/a")
    expected = {
        "AUDIOFORK_ID": fork_id,
        "AUDIOFORK_WSSERVER": recorder.url("/a"),
        f"AUDIOFORK_WSSERVER_{fork_id.replace('-', '_')}": recorder.url("/a"),
        "AUDIOFORK_STATUS": "STREAMING",
    }
    for name, value in expected.items():
        assert await ami.variable(target.channel, name) == value
    await target.call.hangup()


async def test_stop_by_ami_ends_one_fork_and_says_so(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    start_fork(ami, target.channel, recorder.url("/stays"))
    action_id = start_fork(ami, target.channel, recorder.url("/goes"))
    await recorder.wait_messages("/stays", 5)
    goes = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    ami.send(
        "UserEvent",
        action_id="stop-1",
        UserEvent="AudioFork",
        Command="StopAudioFork",
        AudioForkID=goes["AudioForkID"],
    )
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID="stop-1")
    recording = await recorder.wait_closed("/goes")
    assert (recording.close_code, recording.close_reason) == (1000, "stopped")
    assert stopped["Reason"] == "stopped"
    assert stopped["AudioForkID"] == goes["AudioForkID"]
    assert stopped["FramesIn"] == stopped["FramesSent"] == str(len(recording.messages))
    assert stopped["FramesDropped"] == stopped["Reconnects"] == "0"
    assert float(stopped["Duration"]) > 0
    assert await ami.variable(target.channel, "AUDIOFORK_REASON") == "stopped"
    assert not recorder.at("/stays")[0].closed
    await target.call.hangup()


@needs_pairs()
async def test_stop_by_channel_ends_every_fork_of_it(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    for direction in ("in", "out", "stereo"):
        start_fork(ami, target.channel, recorder.url(f"/{direction}"), f"D({direction})")
        await recorder.wait_messages(f"/{direction}", 5)
    ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=target.channel)
    for direction in ("in", "out", "stereo"):
        recording = await recorder.wait_closed(f"/{direction}")
        assert recording.close_reason == "stopped"
    await target.call.hangup()


async def test_dialplan_user_event_forks_the_channel_that_raises_it(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    url = recorder.url("/plan?a=1&b=2")
    await set_globals(ami, WSSERVER=url, OPTIONS="D(both)")
    target = await place_call(ami, caller, "event")
    target.call.talk()
    started = await ami.wait_user_event("AudioForkStarted", Uniqueid=target.uniqueid)
    assert started["WsServer"] == url
    await recorder.wait_messages("/plan?a=1&b=2", 5)
    await target.call.hangup()


async def test_gosub_returns_when_audio_flows(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    await set_globals(ami, WSSERVER=recorder.url("/g?x=1,2"), OPTIONS="D(both)")
    target = await place_call(ami, caller, "gosub")
    returned = await ami.wait_user_event("Returned")
    assert returned["Status"] == "STREAMING"
    assert recorder.at("/g?x=1,2")[0].messages
    stopped = await ami.wait_user_event("ReturnedFromStop")
    assert stopped["Status"] == "STOPPED"
    recording = await recorder.wait_closed("/g?x=1,2")
    assert recording.close_reason == "stopped"
    await target.call.hangup()


async def test_gosub_returns_at_once_with_the_reason_of_a_refusal(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    await set_globals(ami, WSSERVER="http://127.0.0.1/", OPTIONS="")
    target = await place_call(ami, caller, "gosub")
    await ami.wait_user_event("AudioForkFailed")
    returned = await ami.wait_user_event("Returned", timeout_s=0.5)
    assert returned["Status"] == "FAILED"
    assert returned["Reason"] == "WsServer: the scheme must be ws or wss"
    await target.call.hangup()


# --- Hangups ---


@needs_pairs(direction=["out", "stereo"])
@pytest.mark.parametrize("direction", ["in", "out", "both", "stereo"])
@pytest.mark.parametrize("media", ["media", "no-media"])
async def test_hangup_by_the_party_closes_the_sink_in_time(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    direction: str,
    media: str,
) -> None:
    """A channel without media leaves its leg asleep: nothing but events tells of its end."""
    target = await place_call(ami, caller, "wait")
    action_id = start_fork(ami, target.channel, recorder.url("/"), f"D({direction})")
    if media == "media":
        target.call.talk()
    await recorder.wait(lambda recording: recording.path == "/")
    await asyncio.sleep(0.5)
    began = asyncio.get_running_loop().time()
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    assert recording.closed - began <= CLOSE_LIMIT_S
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert stopped["Reason"] == "hangup"
    assert stopped["FramesIn"] == stopped["FramesSent"] == str(len(recording.messages))


@pytest.mark.parametrize("direction", ["in", "both"])
async def test_hangup_by_ami_closes_the_sink_in_time(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, direction: str
) -> None:
    target = await place_call(ami, caller, "wait")
    start_fork(ami, target.channel, recorder.url("/"), f"D({direction})")
    await recorder.wait(lambda recording: recording.path == "/")
    await asyncio.sleep(0.5)
    began = asyncio.get_running_loop().time()
    await ami.action("Hangup", Channel=target.channel)
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    assert recording.closed - began <= CLOSE_LIMIT_S
    await target.call.wait_ended()


@pytest.mark.parametrize("direction", ["in", "both"])
async def test_hangup_by_the_dialplan_closes_the_sink(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, direction: str
) -> None:
    target = await place_call(ami, caller, "hangup-soon")
    start_fork(ami, target.channel, recorder.url("/"), f"D({direction})")
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    await target.call.wait_ended()


async def test_hangup_during_the_h_extension_is_seen_at_its_begin(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """The channel still exists for the two seconds that its h extension takes."""
    target = await place_call(ami, caller, "slow")
    start_fork(ami, target.channel, recorder.url("/"), "D(both)")
    await recorder.wait_messages("/", 5)
    began = asyncio.get_running_loop().time()
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert recording.close_reason == "hangup"
    assert recording.closed - began <= CLOSE_LIMIT_S


# --- Transfers ---


@needs_whole_in()
@counts_blocks
async def test_fork_survives_a_blind_transfer_of_its_channel(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    blocks = make_blocks(200, seed=6)
    target = await place_call(ami, caller, "wait")
    start_fork(ami, target.channel, recorder.url("/"), "D(in)")
    await target.call.play(make_blocks(25, seed=7))
    answer = await ami.action(
        "Redirect", Channel=target.channel, Context="testbed", Exten="echo", Priority="1"
    )
    assert answer["Response"] == "Success"
    await asyncio.sleep(0.2)
    await target.call.play(blocks + make_blocks(25, seed=7))
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert recording.close_reason == "hangup"
    assert report(find_blocks(recording.audio, [decode(block) for block in blocks]), 200).intact


@needs_whole_in()
@counts_blocks
async def test_fork_survives_an_attended_transfer_of_its_channel(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """The callee asks a third party, then joins the caller, who is forked, to it."""
    blocks = make_blocks(200, seed=8)
    address = ("127.0.0.1", asterisk.sip_port)
    async with SipUser("callee", address, answer=True) as callee:
        await callee.register()
        target = await place_call(ami, caller, "callee")
        at_callee = await callee.incoming()
        start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        at_callee.talk()
        await target.call.play(make_blocks(50, seed=9))
        consultation = await callee.call("echo")
        consultation.talk()
        playing = target.call.play(blocks + make_blocks(50, seed=9))
        await at_callee.refer_replaces(consultation)
        await playing
        assert not target.call.ended.is_set()
        assert not recorder.at("/")[0].closed
        await target.call.hangup()
        recording = await recorder.wait_closed("/")
        assert recording.close_reason == "hangup"
        heard = report(find_blocks(recording.audio, [decode(block) for block in blocks]), 200)
        # Asterisk may repeat the frame at which it moves the caller to the other bridge.
        assert not heard.missing
        assert not heard.out_of_order
        assert heard.duplicated <= 1


# --- The server goes ---


async def test_lost_server_ends_the_fork_with_its_reason(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    action_id = start_fork(ami, target.channel, recorder.url("/"), "r(1)")
    recording = await recorder.wait_messages("/", 5)
    assert recording.connection is not None
    recording.connection.transport.abort()
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert stopped["Reason"] == "sink-gone"
    assert stopped["Detail"] == "the connection broke"
    await only_channels(ami, target.channel)
    await target.call.hangup()


async def test_unreachable_server_fails_the_fork_with_its_reason(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    target = await place_call(ami, caller)
    action_id = start_fork(ami, target.channel, "ws://127.0.0.1:1/", "r(1)")
    failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
    assert failed["Reason"] == "sink-gone"
    text = "ws://127.0.0.1:1: Connection refused (no program listens there)"
    assert failed["Detail"] == text
    assert await ami.variable(target.channel, "AUDIOFORK_STATUS") == "FAILED"
    await target.call.hangup()
