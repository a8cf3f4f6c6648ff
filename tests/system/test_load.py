"""Many forks at once, and many one after another: none short, nothing left behind."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Iterator

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import peak
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.relay.peers import until
from tests.system.conftest import each_tap, only_channels, place_call, settings_of, start_fork

pytestmark = pytest.mark.asterisk

FORKS_AT_ONCE = 100
SECONDS = 8
FORKS_IN_A_ROW = 250
MAX_GROWTH_KIB = 3 * 1024


tap = each_tap


@pytest.fixture
def counted(asterisk: Asterisk, tap: str) -> Iterator[Daemon]:
    """A daemon that tells how many tasks it has."""
    command = (sys.executable, "-m", "testbed.counted_daemon")
    with Daemon(asterisk, settings_of(tap, asterisk), command=command) as daemon:
        yield daemon


async def tasks(daemon: Daemon) -> int:
    """Return how many tasks the daemon has."""
    before = daemon.log().count("tasks: ")
    daemon.signal(signal.SIGUSR2)
    for _ in range(100):
        counts: list[str] = re.findall(r"tasks: (\d+)", daemon.log())
        if len(counts) > before:
            return int(counts[-1])
        await asyncio.sleep(0.02)
    raise AssertionError("the daemon does not tell its tasks")


async def settle(daemon: Daemon, descriptors: int, task_count: int) -> None:
    """Wait until the daemon has no more than it had, and fail if that does not come.

    aiohttp may keep a connection to ARI for 10 s.
    """
    for _ in range(250):
        if daemon.descriptors() <= descriptors and await tasks(daemon) <= task_count:
            return
        await asyncio.sleep(0.05)
    assert (daemon.descriptors(), await tasks(daemon)) == (descriptors, task_count)


@pytest.mark.serial
async def test_100_forks_at_once_get_every_frame_and_leave_nothing(
    counted: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    descriptors, task_count = counted.descriptors(), await tasks(counted)
    targets = [await place_call(ami, caller) for _ in range(FORKS_AT_ONCE)]
    for target in targets:
        target.call.talk()
    directions = ("in", "out", "both", "stereo")
    cpu_s = counted.cpu_s()
    for number, target in enumerate(targets):
        url = recorder.url(f"/{number}")
        start_fork(ami, target.channel, url, f"D({directions[number % 4]})")
    for number in range(FORKS_AT_ONCE):
        await recorder.wait_messages(f"/{number}", 1)
    await asyncio.sleep(SECONDS)
    counts = [len(recorder.at(f"/{number}")[0].messages) for number in range(FORKS_AT_ONCE)]
    cpu_s = counted.cpu_s() - cpu_s
    for target in targets:
        await target.call.hangup()
    for number in range(FORKS_AT_ONCE):
        recording = await recorder.wait_closed(f"/{number}")
        assert recording.close_reason == "hangup"
        assert peak(recording.audio) > 1000
        stopped = await ami.wait_user_event("AudioForkStopped", WsServer=recorder.url(f"/{number}"))
        assert stopped["FramesIn"] == stopped["FramesSent"] == str(len(recording.messages))
    frames_us = cpu_s * 1e6 / sum(counts)
    print(
        f"{FORKS_AT_ONCE} forks, {SECONDS} s: {min(counts)} to {max(counts)} messages each, "
        f"{frames_us:.0f} us of the daemon's CPU a frame"
    )
    assert min(counts) >= SECONDS * 50 * 0.99
    await settle(counted, descriptors, task_count)
    await only_channels(ami)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_250_forks_in_a_row_leave_memory_flat_and_nothing_behind(
    asterisk: Asterisk, counted: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    """Each is started, streams, is stopped; only its call may leave a CDR row."""
    async with Recorder(keep=False) as recorder:
        rows = len(asterisk.cdr_rows())
        descriptors, task_count = counted.descriptors(), await tasks(counted)
        target = await place_call(ami, caller)
        target.call.talk()
        memory_kib = 0
        for number in range(FORKS_IN_A_ROW):
            await one_fork(ami, recorder, target.channel, number)
            if number == 99:
                memory_kib = counted.memory_kib()
        grown_kib = counted.memory_kib() - memory_kib
        print(
            f"{FORKS_IN_A_ROW} forks in a row: {memory_kib} KiB after 100, "
            f"{grown_kib:+d} at the end"
        )
        assert grown_kib <= MAX_GROWTH_KIB
        await only_channels(ami, target.channel)
        await target.call.hangup()
        await settle(counted, descriptors, task_count)
        await only_channels(ami)
        await until(lambda: len(asterisk.cdr_rows()) > rows)
        assert len(asterisk.cdr_rows()) == rows + 1


async def one_fork(ami: AmiClient, recorder: Recorder, channel: str, number: int) -> None:
    action_id = start_fork(ami, channel, recorder.url(f"/{number}"))
    await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    stop_id = ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=channel)
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=stop_id)
    assert stopped["Reason"] == "stopped"
    assert stopped["FramesIn"] == stopped["FramesSent"]
    recorder.recordings.clear()
    ami.events.clear()
