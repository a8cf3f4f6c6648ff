"""Somebody who hears all of Asterisk's events wants to be a fork's leg, by each way to get legs.

He is on loopback, as fast as Asterisk, and knows of a leg's UUID as soon as Asterisk shows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.attacks.legs import FORGED, MOST_FORGED_FRAMES, WAYS, Racer, Way
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import Target, no_channels, place_call, start_fork

pytestmark = pytest.mark.asterisk


@pytest.fixture(params=WAYS, ids=[way.name.replace(" ", "-") for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    value: Way = request.param
    return value


@pytest.fixture
async def target(ami: AmiClient, caller: SipUser) -> AsyncIterator[Target]:
    target = await place_call(ami, caller)
    target.call.talk()
    yield target
    await no_channels(ami)


async def test_id_of_a_fork_is_worth_nothing_at_the_audiosocket_port(
    asterisk: Asterisk, ami: AmiClient, recorder: Recorder, target: Target, way: Way
) -> None:
    with Daemon(asterisk, way.settings(asterisk)) as daemon:
        racer = Racer(asterisk, daemon, way, takes_id=True)
        racer.attempts_left = 1
        async with racer.watching():
            action_id = start_fork(ami, target.channel, recorder.url("/"), way.options)
            await recorder.wait_messages("/", 50)
        await target.call.hangup()
        await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
        log = daemon.log()
    assert len(racer.presented) == 1
    assert FORGED * way.frame_bytes not in recorder.at("/")[0].messages
    assert "AudioForkReconnecting" not in told(ami, action_id)
    assert "attack, wrong-uuid: 1 more, last: at the AudioSocket port, from 127.0.0.1" in log
    assert racer.presented.isdisjoint(log.split())


async def test_leg_whose_uuid_somebody_else_presents_too_is_replaced(
    asterisk: Asterisk, ami: AmiClient, recorder: Recorder, target: Target, way: Way
) -> None:
    with Daemon(asterisk, way.settings(asterisk)) as daemon:
        racer = Racer(asterisk, daemon, way)
        racer.attempts_left = 1
        async with racer.watching():
            action_id = start_fork(ami, target.channel, recorder.url("/"), way.options)
            lost = await ami.wait_user_event("AudioForkReconnecting", ActionID=action_id)
            await daemon.says("is back after")
            seen = len(recorder.at("/")[0].messages)
            await recorder.wait_messages("/", seen + 50)
        await target.call.hangup()
        stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
        log = daemon.log()
    (leg_uuid,) = racer.presented
    messages = recorder.at("/")[0].messages
    assert lost["Reason"].endswith("was lost: somebody else presented its UUID as well")
    assert FORGED * way.frame_bytes not in messages[seen:]
    assert messages.count(FORGED * way.frame_bytes) <= MOST_FORGED_FRAMES
    assert int(stopped["FramesIn"]) == int(stopped["FramesSent"]) == len(messages)
    assert f"attack, contested-leg: 1 more, last: fork {stopped['AudioForkID']}" in log
    assert leg_uuid not in log


async def test_legs_that_nobody_contests_are_no_attack(
    asterisk: Asterisk, ami: AmiClient, recorder: Recorder, target: Target, way: Way
) -> None:
    """Forks that are stopped at any moment of their start, and one that lives beside them."""
    with Daemon(asterisk, way.settings(asterisk)) as daemon:
        start_fork(ami, target.channel, recorder.url("/stays"), way.options)
        for number in range(20):
            start_fork(ami, target.channel, recorder.url(f"/{number}"), way.options)
            await asyncio.sleep(number * 0.008)
            if len(ids := fork_ids(ami)) == number + 2:
                command = {"Command": "StopAudioFork", "AudioForkID": ids[-1]}
                ami.send("UserEvent", UserEvent="AudioFork", **command)
            await asyncio.sleep(0.05)
        await recorder.wait_messages("/stays", 100)
        await target.call.hangup()
        await recorder.wait_left(timeout_s=5)
        log = daemon.log()
    assert "attack" not in log


def fork_ids(ami: AmiClient) -> list[str]:
    """Return the ids of all forks so far, oldest first."""
    return [h["Value"] for _, h in ami.events if h.get("Variable") == "AUDIOFORK_ID"]


def told(ami: AmiClient, action_id: str) -> list[str]:
    """Return the names of the events of a fork."""
    return [h.get("UserEvent", "") for _, h in ami.events if h.get("ActionID") == action_id]
