"""Connected calls whose daemon fails: each test has a daemon of its own, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.bots import BOT, call_bot, went_on
from tests.system.conftest import DIALPLAN, no_channels, place_call, set_globals

pytestmark = pytest.mark.asterisk


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


async def test_daemon_that_is_killed_lets_the_dialplan_go_on_and_the_next_one_leaves_it_alone(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk) as daemon:
        target = await call_bot(ami, caller, recorder)
        await recorder.wait_messages("/bot", 50)
        daemon.kill()
        back = await went_on(ami)
        assert (back["Status"], back["Why"]) == ("STOPPED", "no answer from the audiofork daemon")
        await asyncio.to_thread(daemon.start)
        await target.call.hangup()
        await no_channels(ami)
    assert len(recorder.at("/bot")) == 1


async def test_daemon_that_is_not_there_lets_the_dialplan_go_on_after_2_s(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    await set_globals(ami, BOT_URL="ws://127.0.0.1:1/", BOT_OPTIONS="")
    target = await place_call(ami, caller, "bot")
    back = await went_on(ami)
    assert (back["Status"], back["Why"]) == ("FAILED", "no answer from the audiofork daemon")
    await target.call.hangup()
    await no_channels(ami)


async def test_daemon_that_stops_and_keeps_forks_lets_the_dialplan_go_on(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk, {"daemon": "on_stop = keep\n"}) as daemon:
        target = await call_bot(ami, caller, recorder)
        await recorder.wait_messages("/bot", 50)
        await asyncio.to_thread(daemon.stop)
        assert (await went_on(ami))["Status"] == "STOPPED"
        await target.call.hangup()
        await no_channels(ami)
