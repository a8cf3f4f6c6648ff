"""The link to AMI fails, or is flooded, in mid-call; the daemon reaches it through a proxy.

Audio does not pass through AMI: of the blocks that a caller says while a fork streams, none may be
lost by any of these faults. What may be lost is news: requests and events of the time when there is
no link.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from audiofork.doors.control_client import Client
from audiofork.errors import AmiUnavailable
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import SECRET, Daemon, dialplan, manager_conf
from testbed.proxy import Proxy
from testbed.recorder import Recorder, Recording
from testbed.sip import SipUser
from tests.system.conftest import (
    DIALPLAN,
    Target,
    counts_blocks,
    needs_whole_in,
    no_channels,
    place_call,
    start_fork,
)

pytestmark = [pytest.mark.asterisk, counts_blocks]

# Raises some 2,000 events a second, 300 of them UserEvents, with five channels in it.
FLOOD_CHANNELS = 5
FLOOD = """
[flood]
exten => s,1,Answer()
 same => n(turn),Wait(0.01)
 same => n,Set(FLOOD=${EPOCH})
 same => n,UserEvent(Foreign,Note: of no use here)
 same => n,Goto(turn)
"""
UNFILTERED = f"[unfiltered]\nsecret = {SECRET}\nread = all\nwrite = all\nwritetimeout = 5000\n"

BLOCKS = make_blocks(400, seed=11)
HEARD = [decode(block) for block in BLOCKS]
# Spoken until the fork streams, and after the blocks to push the last ones through.
WARM_UP = make_blocks(25, seed=12)


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    """An Asterisk of this module's own, whose manager.conf tests may change."""
    config = {"manager.conf": manager_conf() + UNFILTERED}
    with Asterisk(dialplan=DIALPLAN + dialplan() + FLOOD, config=config) as one:
        yield one


@pytest.fixture
async def proxy(asterisk: Asterisk) -> AsyncIterator[Proxy]:
    async with Proxy(("127.0.0.1", asterisk.ami_port)) as one:
        yield one


@pytest.fixture
def username() -> str:
    return "audiofork"


@pytest.fixture
async def daemon(
    asterisk: Asterisk, ami: AmiClient, proxy: Proxy, username: str
) -> AsyncIterator[Daemon]:
    """A daemon whose AMI connection goes through the proxy; nothing may be left after the test."""
    link = f"port = {proxy.port}\nusername = {username}\nsecret = {SECRET}\nping_interval = 1\n"
    daemon = Daemon(asterisk, {"asterisk": link})
    # In a thread, for the proxy needs this loop.
    await asyncio.to_thread(daemon.__enter__)
    try:
        yield daemon
        await no_channels(ami)
        assert daemon.exit_code is None
        assert "Traceback" not in daemon.log()
    finally:
        await asyncio.to_thread(daemon.__exit__, None, None, None)


@dataclass
class Fork:
    """A fork that streams the first blocks of `BLOCKS`, which its caller says."""

    target: Target
    action_id: str
    id: str
    recorder: Recorder
    path: str
    blocks: int

    async def messages(self, more: int) -> None:
        """Wait until the server has got so many more messages."""
        (recording,) = self.recorder.at(self.path)
        await self.recorder.wait_messages(self.path, len(recording.messages) + more)

    async def all_heard(self) -> Recording:
        """Wait until the server has the last block; no block may be lost, doubled or misplaced."""
        recording = await self.recorder.wait(
            lambda one: one.path == self.path and HEARD[self.blocks - 1] in one.audio, timeout_s=20
        )
        assert report(find_blocks(recording.audio, HEARD), self.blocks).intact
        return recording


async def fork_talk(
    ami: AmiClient, caller: SipUser, recorder: Recorder, path: str = "/", *, blocks: int = 400
) -> Fork:
    """Fork a call; once the fork streams, the caller begins to say the blocks."""
    target = await place_call(ami, caller)
    warm_up = target.call.play(WARM_UP, loop=True)
    action_id = start_fork(ami, target.channel, recorder.url(path), "D(in)")
    started = await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    await recorder.wait_messages(path, 1)
    warm_up.cancel()
    target.call.play(BLOCKS[:blocks] + WARM_UP * 4)
    return Fork(target, action_id, started["AudioForkID"], recorder, path, blocks)


async def lose_link(daemon: Daemon, proxy: Proxy) -> None:
    """Break the link off, and let no other come about."""
    proxy.refuse()
    proxy.cut()
    await daemon.says("no connection to Asterisk")


async def restore_link(daemon: Daemon, proxy: Proxy) -> None:
    """Let the link come back."""
    proxy.accept()
    await daemon.says("connected to Asterisk", times=2)


async def stop_by_ami(ami: AmiClient, fork: Fork) -> None:
    """Stop the fork; it must end in order, and have dropped nothing."""
    ami.send(
        "UserEvent",
        action_id=f"stop-{fork.id}",
        UserEvent="AudioFork",
        Command="StopAudioFork",
        AudioForkID=fork.id,
    )
    stopped = await ami.wait_user_event("AudioForkStopped", AudioForkID=fork.id)
    assert (stopped["Reason"], stopped["FramesDropped"]) == ("stopped", "0")
    assert stopped["FramesIn"] == stopped["FramesSent"]
    recording = await fork.recorder.wait_closed(fork.path)
    assert (recording.close_code, recording.close_reason) == (1000, "stopped")


@needs_whole_in()
async def test_link_cut_loses_no_block_and_a_stop_works_after_the_reconnect(
    daemon: Daemon, proxy: Proxy, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Lost at most: 0 blocks."""
    fork = await fork_talk(ami, caller, recorder)
    await fork.messages(50)
    await lose_link(daemon, proxy)
    await fork.messages(50)
    await restore_link(daemon, proxy)
    await fork.all_heard()
    await stop_by_ami(ami, fork)
    await fork.target.call.hangup()


@needs_whole_in()
async def test_link_stalled_is_noticed_by_the_ping_and_loses_no_block(
    daemon: Daemon, proxy: Proxy, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Lost at most: 0 blocks."""
    fork = await fork_talk(ami, caller, recorder)
    await fork.messages(50)
    proxy.stall()
    await daemon.says("no answer in time")
    await fork.messages(10)
    proxy.resume()
    await daemon.says("connected to Asterisk", times=2)
    await fork.all_heard()
    await stop_by_ami(ami, fork)
    await fork.target.call.hangup()


@contextlib.contextmanager
def other_secret(asterisk: Asterisk) -> Iterator[None]:
    """Give the daemon's AMI user another secret, for a time."""
    file = asterisk.folder / "etc/manager.conf"
    text = file.read_text()
    file.write_text(text.replace(f"secret = {SECRET}", "secret = another"))
    asterisk.cli("manager reload")
    try:
        yield
    finally:
        file.write_text(text)
        asterisk.cli("manager reload")


@needs_whole_in()
async def test_secret_changed_is_said_once_and_running_forks_lose_no_block(
    asterisk: Asterisk,
    daemon: Daemon,
    proxy: Proxy,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
) -> None:
    """Lost at most: 0 blocks. The secret put right, a reload of the daemon saves the long wait."""
    fork = await fork_talk(ami, caller, recorder)
    with other_secret(asterisk):
        proxy.cut()
        await daemon.says("Asterisk refused the login of audiofork: Authentication failed")
        await fork.messages(25)
        with pytest.raises(AmiUnavailable, match="refused the login of audiofork"):
            await asyncio.to_thread(start_by_socket, daemon, fork.target.channel, recorder)
    await daemon.reload("connected to Asterisk", times=2)
    assert daemon.log().count("refused the login") == 1
    action_id = start_fork(ami, fork.target.channel, recorder.url("/new"), "D(both)")
    await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    await fork.all_heard()
    await stop_by_ami(ami, fork)
    await fork.target.call.hangup()


async def test_secret_that_is_rotated_counts_from_the_next_login_after_sighup(
    asterisk: Asterisk, daemon: Daemon, proxy: Proxy, ami: AmiClient
) -> None:
    config = daemon.config.read_text()
    with other_secret(asterisk):
        daemon.config.write_text(config.replace(f"secret = {SECRET}", "secret = another"))
        await daemon.reload("INFO    reloaded\n")  # nothing that waits for the next start
        proxy.cut()
        await daemon.says("connected to Asterisk", times=2)
    assert "refused the login" not in daemon.log()
    proxy.cut()
    await daemon.says("refused the login of audiofork")
    daemon.config.write_text(config)
    await daemon.reload("connected to Asterisk", times=3)  # and at once where the login is refused
    assert "another" not in daemon.log()


def start_by_socket(daemon: Daemon, channel: str, recorder: Recorder) -> None:
    with Client(daemon.socket) as client:
        client.start(channel, recorder.url("/refused"))


@needs_whole_in(media=["media"])
@pytest.mark.parametrize("media", ["media", "no-media"])
async def test_hangup_without_a_link_ends_the_fork_when_the_link_is_back(
    daemon: Daemon,
    proxy: Proxy,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    media: str,
) -> None:
    """Lost at most: 0 blocks of those said before the hangup. Without media no leg tells of it."""
    if media == "media":
        fork = await fork_talk(ami, caller, recorder, blocks=50)
        await fork.all_heard()
        target = fork.target
    else:
        target = await place_call(ami, caller, "wait")
        start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        await recorder.wait(lambda recording: recording.path == "/")
    await lose_link(daemon, proxy)
    await target.call.hangup()
    await restore_link(daemon, proxy)
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["FramesIn"] == stopped["FramesSent"] == str(len(recording.messages))


@needs_whole_in()
async def test_hangup_without_a_link_ends_the_fork_though_the_link_stays_away(
    daemon: Daemon, proxy: Proxy, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Lost at most: 0 blocks of those said before the hangup."""
    fork = await fork_talk(ami, caller, recorder, blocks=50)
    await fork.all_heard()
    await lose_link(daemon, proxy)
    await fork.target.call.hangup()
    await recorder.wait_closed("/", timeout_s=20)
    async with asyncio.timeout(20):  # the server may see the end before the daemon does
        while await asyncio.to_thread(forks_of, daemon):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def forks_of(daemon: Daemon) -> list[object]:
    with Client(daemon.socket) as client:
        return list(client.forks())


async def test_start_by_the_socket_without_a_link_is_refused_with_the_reason(
    daemon: Daemon, proxy: Proxy, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    await lose_link(daemon, proxy)
    with pytest.raises(
        AmiUnavailable, match=f"no connection to Asterisk at 127.0.0.1:{proxy.port}: "
    ):
        await asyncio.to_thread(start_by_socket, daemon, target.channel, recorder)
    assert await asyncio.to_thread(forks_of, daemon) == []
    await restore_link(daemon, proxy)
    assert recorder.recordings == []
    await target.call.hangup()


@needs_whole_in()
async def test_stop_by_the_socket_without_a_link_ends_the_fork(
    daemon: Daemon, proxy: Proxy, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Lost at most: 0 blocks of those said before the stop, and the event that tells of it."""
    fork = await fork_talk(ami, caller, recorder, blocks=50)
    await fork.all_heard()
    await lose_link(daemon, proxy)
    await asyncio.to_thread(stop_by_socket, daemon, fork.id)
    recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1000, "stopped")
    await daemon.says("event AudioForkStopped is lost")
    await fork.target.call.hangup()


def stop_by_socket(daemon: Daemon, fork_id: str) -> None:
    with Client(daemon.socket) as client:
        client.stop(fork_id)


@needs_whole_in()
@pytest.mark.parametrize("username", ["unfiltered"])
async def test_flood_of_foreign_events_loses_no_request_and_no_block(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """Lost at most: 0 blocks, 0 events that are ours."""
    for _ in range(FLOOD_CHANNELS):
        local = {"Channel": "Local/s@flood/n", "Application": "Wait", "Data": "600"}
        await ami.action("Originate", Async="true", **local)
    for _ in range(100):  # that is 2,000 events
        position = len(ami.events)
        await ami.wait_user_event("Foreign", after=position)
    forks = [
        await fork_talk(ami, caller, recorder, f"/{number}", blocks=200) for number in range(3)
    ]
    for fork in forks:
        await fork.all_heard()
    await stop_by_ami(ami, forks[0])
    for fork in forks[1:]:
        await fork.target.call.hangup()
        stopped = await ami.wait_user_event("AudioForkStopped", ActionID=fork.action_id)
        assert (stopped["Reason"], stopped["FramesDropped"]) == ("hangup", "0")
    await forks[0].target.call.hangup()
    assert daemon.log().count("connected to Asterisk") == 1
    await ami.action("Hangup", Channel="/^Local/s@flood.*/")
