"""The command `sweep`: what a daemon that was killed has left in Asterisk is hung up."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, free_port
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import only_channels, place_call, settings_of, start_fork
from tests.system.test_cli import command

pytestmark = pytest.mark.asterisk


@pytest.fixture(params=["chanspy", "snoop"])
def tap(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def own_daemon(tap: str, asterisk: Asterisk) -> Iterator[Daemon]:
    """A daemon for one test, at a port that is known when it is dead."""
    listen = f"listen = 127.0.0.1:{free_port(socket.SOCK_STREAM)}\n"
    with Daemon(asterisk, {**settings_of(tap, asterisk), "audiosocket": listen}) as one:
        yield one


async def test_legs_of_a_killed_daemon_are_hung_up_and_the_call_goes_on(
    asterisk: Asterisk,
    own_daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    tap: str,
) -> None:
    """The channel is silent, so no leg is gone; one by snoop ends by itself, as far as it can."""
    target = await place_call(ami, caller, "wait")
    start_fork(ami, target.channel, recorder.url("/"), "D(in)S")
    await recorder.wait_messages("/", 10)
    own_daemon.kill()
    logged = len(asterisk.log())
    code, output = await command(own_daemon, "sweep")
    told = re.findall(r"hanging up channel: (\S+)", asterisk.log()[logged:])
    assert (code, output) == (0, f"{len(told)} legs hung up\n")
    assert len(told) == 1 or tap == "snoop"
    assert all(name.startswith(("AudioSocket/", "Snoop/")) for name in told)
    await target.call.play([b"\xff" * 160] * 5)
    await only_channels(ami, target.channel)
    await target.call.hangup()


async def test_sweep_beside_a_daemon_that_runs_is_refused_and_harms_no_fork(
    own_daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller, "echo")
    target.call.talk()
    start_fork(ami, target.channel, recorder.url("/"), "D(in)")
    await recorder.wait_messages("/", 10)
    code, output = await command(own_daemon, "sweep")
    assert code == 1
    assert "the daemon runs" in output
    count = len(recorder.at("/")[0].messages)
    await recorder.wait_messages("/", count + 25)
    await target.call.hangup()
    await recorder.wait_closed("/")
