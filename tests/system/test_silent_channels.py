"""Channels without media: a leg that listens to one cannot end before there is some (asterisk#978).

Not Asterisk's whole number of threads is compared: those of its pools come and go.
"""

from __future__ import annotations

import asyncio

import pytest

from testbed.ami import AmiClient
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import Target, channels, each_tap, only_channels, place_call, start_fork
from tests.system.test_cli import command

pytestmark = pytest.mark.asterisk

LEFT = "legs of ended forks stay until their channels have media or end"
SILENCE = [b"\xff" * 160]


tap = each_tap


async def start_and_stop(ami: AmiClient, target: Target, url: str, options: str) -> str:
    """Fork a channel for a moment; return why that was refused, or nothing."""
    position = len(ami.events)
    start_fork(ami, target.channel, url, options)
    begun = await ami.wait_event(
        lambda h: h.get("UserEvent") in ("AudioForkStarted", "AudioForkFailed"), after=position
    )
    if begun["UserEvent"] == "AudioForkFailed":
        return begun["Reason"]
    stop = {"Command": "StopAudioFork", "AudioForkID": begun["AudioForkID"]}
    ami.send("UserEvent", UserEvent="AudioFork", **stop)
    await ami.wait_event(lambda h: h.get("UserEvent") == "AudioForkStopped", after=position)
    return ""


@pytest.mark.parametrize("options", ["D(in)S", "D(both)"])
async def test_no_more_than_two_legs_are_left_to_a_channel_and_media_ends_them(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tap: str, options: str
) -> None:
    legs = 2 if tap == "snoop" and options == "D(both)" else 1
    target = await place_call(ami, caller, "wait")
    refusals = [
        await start_and_stop(ami, target, recorder.url("/"), options) for _ in range(2 // legs + 3)
    ]
    assert refusals[: 2 // legs] == [""] * (2 // legs)
    assert all("2 legs of earlier forks" in why for why in refusals[2 // legs :])
    assert len(await channels(ami)) == 3
    await listed(daemon, f"2 {LEFT}")
    await target.call.play(SILENCE * 5)
    await only_channels(ami, target.channel)
    await listed(daemon, "no forks\n")
    await target.call.hangup()


async def test_starts_and_stops_without_a_pause_leave_no_more_than_two_legs(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tap: str
) -> None:
    """Most legs have not come when they are not wanted any more."""
    target = await place_call(ami, caller, "wait")
    position = len(ami.events)
    for _ in range(10):
        start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        stop = {"Command": "StopAudioFork", "Channel": target.channel}
        ami.send("UserEvent", UserEvent="AudioFork", **stop)
        await asyncio.sleep(0.02)  # forks that run at once are not bounded
    for _ in range(10):
        position = await next_end(ami, position)
    assert len(await channels(ami)) <= 3
    await target.call.play(SILENCE * 5)
    await only_channels(ami, target.channel)
    await target.call.hangup()


async def test_channel_with_media_may_be_forked_again_at_once_and_often(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, tap: str
) -> None:
    target = await place_call(ami, caller, "echo")
    target.call.talk()
    for _ in range(10):
        assert await start_and_stop(ami, target, recorder.url("/"), "D(both)") == ""
    await only_channels(ami, target.channel)
    await target.call.hangup()


async def test_legs_that_are_left_end_with_the_call(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "wait")
    assert await start_and_stop(ami, target, recorder.url("/"), "D(in)S") == ""
    await daemon.says(f"PJSIP/caller-{target.channel.rpartition('-')[2]}: 1 legs stay")
    await target.call.hangup()
    await only_channels(ami)
    await listed(daemon, "no forks\n")


async def next_end(ami: AmiClient, after: int) -> int:
    """Wait for the next end of a fork; return how many events have come with it."""
    ends = ("AudioForkStopped", "AudioForkFailed")
    event = await ami.wait_event(lambda h: h.get("UserEvent") in ends, after=after)
    return after + 1 + [h for _, h in ami.events[after:]].index(event)


async def listed(daemon: Daemon, expected: str) -> None:
    """Wait until `audiofork list` ends with a text, and fail if it never does."""
    output = ""
    for _ in range(20):  # what Asterisk tells may be on its way to the daemon
        code, output = await command(daemon, "list")
        assert code == 0
        if output.rstrip().endswith(expected.rstrip()):
            return
    raise AssertionError(output)
