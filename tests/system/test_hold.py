"""A call on hold, whose music the first leg would stop: [asterisk] on_hold = wait."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon, asterisk_settings
from testbed.recorder import Recorder
from testbed.sip import Call, SipUser
from tests.system.conftest import Target, each_tap, place_call, settings_of, start_fork

pytestmark = pytest.mark.asterisk


tap = each_tap


@pytest.fixture(scope="module")
def settings(asterisk: Asterisk, tap: str) -> dict[str, str]:
    waiting = asterisk_settings(asterisk) + "on_hold = wait\n"
    return {**settings_of(tap, asterisk), "asterisk": waiting}


@pytest.fixture
async def held(
    daemon: Daemon, asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> AsyncIterator[tuple[Target, Call]]:
    """A call whose callee has put the caller on hold, and who hears music."""
    server = ("127.0.0.1", asterisk.sip_port)
    async with SipUser("callee", server, answer=True) as callee:
        await callee.register()
        position = len(ami.events)
        target = await place_call(ami, caller, "callee")
        answered = await callee.incoming()
        target.call.talk()
        await ami.wait_event(
            lambda h: h.get("Event") == "BridgeEnter" and h["Channel"] == target.channel,
            after=position,
        )
        await answered.offer(hold=True)
        await ami.wait_event(lambda h: h.get("Event") == "MusicOnHoldStart", after=position)
        yield target, answered
        await target.call.hangup()
        await answered.wait_ended()


@pytest.mark.parametrize("side", ["caller", "callee"])
async def test_fork_on_hold_begins_when_that_is_over_and_leaves_the_music_alone(
    daemon: Daemon,
    ami: AmiClient,
    recorder: Recorder,
    held: tuple[Target, Call],
    side: str,
) -> None:
    target, answered = held
    channel = target.channel
    if side == "callee":
        channel = await ami.variable(target.channel, "BRIDGEPEER")
    position = len(ami.events)
    times = daemon.log().count("on hold: its legs")
    start_fork(ami, channel, recorder.url("/"), "D(in)S")
    await daemon.says("on hold: its legs are requested when the hold is over", times=times + 1)
    before = target.call.rtp.packets_received
    await target.call.wait_received(before + 50)  # a second of music
    assert not any(h.get("Event") == "MusicOnHoldStop" for _, h in ami.events[position:])
    assert recorder.at("/")[0].messages == []
    await answered.offer()
    await ami.wait_event(lambda h: h.get("UserEvent") == "AudioForkStarted", after=position)
    await recorder.wait_messages("/", 25)


async def test_fork_that_is_stopped_on_hold_ends_and_asks_for_no_leg(
    daemon: Daemon, ami: AmiClient, recorder: Recorder, held: tuple[Target, Call]
) -> None:
    target, answered = held
    position = len(ami.events)
    times = daemon.log().count("on hold: its legs")
    start_fork(ami, target.channel, recorder.url("/"), "D(in)")
    await daemon.says("on hold: its legs are requested when the hold is over", times=times + 1)
    ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=target.channel)
    await ami.wait_event(lambda h: h.get("UserEvent") == "AudioForkStopped", after=position)
    await answered.offer()
    await ami.wait_event(lambda h: h.get("Event") == "MusicOnHoldStop", after=position)
    names = [
        h.get("Channel", "") for _, h in ami.events[position:] if h.get("Event") == "Newchannel"
    ]
    assert names == []
