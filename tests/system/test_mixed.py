"""`both` by ChanSpy as shipped: one leg, in and out mixed by Asterisk."""

from __future__ import annotations

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, peak, report
from testbed.daemon import Daemon, asterisk_settings
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import counts_blocks, place_call, start_fork, start_fork_heard

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(400, seed=1)
HEARD = [decode(block) for block in BLOCKS]
SILENCE = [b"\xff" * 160]
WARM_UP = make_blocks(25, seed=2)


@pytest.fixture(scope="module")
def settings(asterisk: Asterisk) -> dict[str, str]:
    """As shipped, in place of what lets tests have pairs by ChanSpy."""
    return {"asterisk": asterisk_settings(asterisk)}


@counts_blocks
async def test_in_is_whole_in_the_mix_while_nothing_is_heard(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait")
    await start_fork_heard(ami, target, recorder.url("/"), "D(both)")
    await target.call.play(BLOCKS + WARM_UP)
    await target.call.hangup()
    recording = await recorder.wait_closed("/")
    assert report(find_blocks(recording.audio, HEARD), 400).intact


@pytest.mark.parametrize("options", ["D(both)", "D(in)S"])
async def test_channel_without_media_keeps_time_with_silence(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, options: str
) -> None:
    target = await place_call(ami, caller, "wait")
    start_fork(ami, target.channel, recorder.url("/"), options)
    recording = await recorder.wait_messages("/", 250, timeout_s=10)
    span_s = recording.times[224] - recording.times[24]
    assert 200 / span_s == pytest.approx(50, rel=0.03)
    assert not any(recording.audio)
    await target.call.hangup()
    await recorder.wait_closed("/")


async def test_speech_with_pauses_keeps_time(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """A phone with DTX: half a second of speech, half a second of nothing."""
    target = await place_call(ami, caller, "wait")
    start_fork(ami, target.channel, recorder.url("/"), "D(both)")
    target.call.play(BLOCKS, talk_ms=500, silent_ms=500, loop=True)
    recording = await recorder.wait_messages("/", 450, timeout_s=15)
    await target.call.hangup()
    span_s = recording.times[425] - recording.times[25]
    assert 400 / span_s == pytest.approx(50, rel=0.03)


@pytest.mark.parametrize("side", ["read", "write"])
async def test_mute_of_one_side_is_refused_and_changes_nothing(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, side: str
) -> None:
    target = await place_call(ami, caller, "echo")
    start_fork(ami, target.channel, recorder.url("/"), "D(both)")
    target.call.talk()
    await recorder.wait_messages("/", 20)
    answer = await mute(ami, target.channel, side)
    assert "cannot be muted alone" in answer["Reason"]
    assert "[ari]" in answer["Reason"]
    assert "muted:" not in daemon.log()
    count = len(recorder.at("/")[0].messages)
    recording = await recorder.wait_messages("/", count + 50)
    assert peak(b"".join(audio_of(recording.messages[-25:]))) > 1000
    await target.call.hangup()
    await recorder.wait_closed("/")


async def test_mute_of_both_sides_is_silence_in_the_stream(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "echo")
    start_fork(ami, target.channel, recorder.url("/"), "D(both)")
    target.call.talk()
    await recorder.wait_messages("/", 20)
    times = daemon.log().count("muted: both")
    ami.send("UserEvent", **mute_request(target.channel, "both"))
    await daemon.says("muted: both", times=times + 1)
    count = len(recorder.at("/")[0].messages)
    recording = await recorder.wait_messages("/", count + 50)
    assert not any(b"".join(audio_of(recording.messages[count + 5 :])))
    await target.call.hangup()
    await recorder.wait_closed("/")


def audio_of(messages: list[bytes | str]) -> list[bytes]:
    return [message for message in messages if isinstance(message, bytes)]


def mute_request(channel: str, side: str) -> dict[str, str]:
    return {
        "UserEvent": "AudioFork",
        "Command": "AudioForkMute",
        "Channel": channel,
        "Direction": side,
        "State": "1",
    }


async def mute(ami: AmiClient, channel: str, side: str) -> dict[str, str]:
    """Ask for a mute that is refused; return the event that says so."""
    position = len(ami.events)
    ami.send("UserEvent", **mute_request(channel, side))
    return await ami.wait_event(lambda h: h.get("UserEvent") == "AudioForkFailed", after=position)
