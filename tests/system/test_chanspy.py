"""What can be seen of the ChanSpy tap alone."""

from __future__ import annotations

import pytest

from testbed.ami import AmiClient
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import place_call, start_fork

pytestmark = pytest.mark.asterisk


async def test_leg_whispers_only_where_a_fork_beeps(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    for path, options in (("/silent", "D(both)"), ("/beeping", "D(both)p")):
        start_fork(ami, target.channel, recorder.url(path), options)
        await recorder.wait_messages(path, 5)
    position = len(ami.events)
    ami.send("CoreShowChannels")
    await ami.wait_event(lambda h: h.get("Event") == "CoreShowChannelsComplete", after=position)
    spies = {
        headers["ApplicationData"].partition(",")[2]
        for _, headers in ami.events[position:]
        if headers.get("Application") == "ChanSpy"
    }
    assert spies == {"qulDES", "qulDESw"}
    await target.call.hangup()


# --- Names, answers, commands ---
