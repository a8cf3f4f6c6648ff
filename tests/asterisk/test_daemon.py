"""The daemon's own start and end; each test runs daemons of its own."""

from __future__ import annotations

import asyncio
import socket

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.asterisk.conftest import channels, only_channels, place_call, start_fork

pytestmark = pytest.mark.asterisk


async def test_sigterm_ends_forks_in_order_within_3_s(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    with Daemon(asterisk) as daemon:
        action_ids = []
        for number in range(10):
            action_ids.append(start_fork(ami, target.channel, recorder.url(f"/{number}")))
            await recorder.wait_messages(f"/{number}", 5)
        took_s = await asyncio.to_thread(daemon.stop)
        assert daemon.exit_code == 0
        assert took_s <= 3
    for number in range(10):
        recording = await recorder.wait_closed(f"/{number}")
        assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
    for action_id in action_ids:
        stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
        assert stopped["Reason"] == "shutdown"
    await only_channels(ami, target.channel)
    await target.call.hangup()


async def test_sigterm_with_a_server_that_answers_nothing_takes_3_s_at_most(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    """The server takes the TCP connection and says no word, so the handshake is under way."""
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    target = await place_call(ami, caller)
    target.call.talk()
    with Daemon(asterisk) as daemon:
        start_fork(ami, target.channel, f"ws://127.0.0.1:{port}/")
        await asyncio.sleep(0.5)
        took_s = await asyncio.to_thread(daemon.stop)
        assert daemon.exit_code == 0
        assert took_s <= 3
    silent.close()
    await target.call.hangup()


async def test_start_sweeps_the_legs_that_a_killed_daemon_left(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """A target without media keeps the leg of a daemon that was killed."""
    target = await place_call(ami, caller, "wait")
    with Daemon(asterisk) as daemon:
        port = daemon.audiosocket_port
        start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        await recorder.wait(lambda recording: recording.path == "/")
        await asyncio.sleep(0.3)
        daemon.kill()
    left = [name for name in await channels(ami) if name.startswith("AudioSocket/")]
    with Daemon(asterisk, {"audiosocket": f"listen = 127.0.0.1:{port}\n"}) as daemon:
        swept = "hung up 1 legs that an earlier run left behind" in daemon.log()
        assert swept == bool(left)
    target.call.talk()
    await target.call.hangup()


async def test_more_forks_than_max_forks_are_refused(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk, {"security": "max_forks = 1\n"}):
        target = await place_call(ami, caller)
        target.call.talk()
        start_fork(ami, target.channel, recorder.url("/"))
        await recorder.wait_messages("/", 5)
        action_id = start_fork(ami, target.channel, recorder.url("/refused"))
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
        assert failed["Reason"] == "1 forks run already (max_forks)"
        await target.call.hangup()
