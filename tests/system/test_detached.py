"""Relay processes that outlive the daemon: not a frame is lost while it is killed, or upgraded.

The callers speak numbered blocks, so that each one that the server lacks is counted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from testbed.asterisk import Asterisk, free_port
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon, ari_settings
from testbed.recorder import Recorder
from tests.relay.peers import until
from tests.system.conftest import channels, counts_blocks, only_channels
from tests.system.scene import WARM_UP, Scene, staged

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(600, seed=93)  # 12 s
HEARD = [decode(block) for block in BLOCKS]
CALLS, FORKS_EACH = 5, 10
ORPHAN_TIMEOUT_S = 8


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of the relay processes, which are gone after the test."""
    yield tmp_path / "relay"
    for pid in pids_in(tmp_path / "relay"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def settings(folder: Path) -> dict[str, str]:
    return {
        "audiosocket": f"listen = 127.0.0.1:{free_port(socket.SOCK_STREAM)}\n",
        "relay": f"detached = yes\nfolder = {folder}\norphan_timeout = {ORPHAN_TIMEOUT_S}\n",
        "security": "max_forks_per_channel = 20\n",
    }


@pytest.fixture
async def scene(
    asterisk: Asterisk, recorder: Recorder, settings: dict[str, str]
) -> AsyncIterator[Scene[Recorder]]:
    async with staged(asterisk, recorder, settings) as one:
        yield one


def pids_in(folder: Path) -> list[int]:
    """Return the processes whose command names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"audiofork.relay.detached" in arguments and os.fsencode(folder) in arguments[-2]:
            found.append(int(path.parent.name))
    return found


def in_is_silent(messages: list[bytes | str]) -> bool:
    """Return whether the left side of stereo audio is silent, and there is some."""
    audio = b"".join(one for one in messages if isinstance(one, bytes))
    return set(audio[0::4] + audio[1::4]) == {0}


async def end(daemon: Daemon, how: str) -> None:
    """End a daemon by SIGKILL, or by SIGTERM so that its forks are kept."""
    if how == "killed":
        daemon.kill()
    else:
        daemon.signal(signal.SIGUSR1)
        await asyncio.to_thread(daemon.stop)


@counts_blocks
@pytest.mark.parametrize("how", ["killed", "upgraded"])
async def test_50_forks_lose_no_frame_while_the_daemon_is_away(
    scene: Scene[Recorder], how: str, folder: Path
) -> None:
    targets = [await scene.call() for _ in range(CALLS)]
    with scene.daemon() as daemon:
        talks = [target.call.talk() for target in targets]
        forks = {
            f"/{number}-{again}": scene.fork(target, f"/{number}-{again}", "D(in)")
            for number, target in enumerate(targets)
            for again in range(FORKS_EACH)
        }
        ids = {path: (await fork.started())["AudioForkID"] for path, fork in forks.items()}
        (relay,) = pids_in(folder)
        for talk in talks:
            talk.cancel()
        spoken = [asyncio.ensure_future(target.call.play(BLOCKS)) for target in targets]
        await asyncio.sleep(2)
        position = len(scene.ami.events)
        await end(daemon, how)
        await asyncio.sleep(1)
        await asyncio.to_thread(daemon.start)
        for path, fork in forks.items():
            again = await fork.started(after=position)
            assert (again["AudioForkID"], again["TakenUp"]) == (ids[path], "yes")
        await asyncio.gather(*spoken)
        for target in targets:
            await target.call.play(WARM_UP)
        for target in targets:
            await target.call.hangup()
        for fork in forks.values():
            stopped = await fork.stopped(after=position)
            assert stopped["Reason"] == "hangup"
            assert int(stopped["FramesIn"]) > len(BLOCKS)
            assert stopped["FramesDropped"] == "0"
        assert pids_in(folder) == [relay]
        await scene.legs(0)
    assert sorted(one.path for one in scene.server.recordings) == sorted(forks)
    assert {one.close_code for one in scene.server.recordings} == {1000}
    for one in scene.server.recordings:
        assert report(find_blocks(one.audio, HEARD), len(HEARD)).intact
    assert "Traceback" not in daemon.log()


async def test_call_that_ends_while_the_daemon_is_away_ends_its_fork_with_its_frames(
    scene: Scene[Recorder],
) -> None:
    with scene.daemon() as daemon:
        fork = await scene.talking_fork("/fork", "D(in)")
        await scene.server.wait_messages("/fork", 50)
        position = len(scene.ami.events)
        daemon.kill()
        await fork.target.call.hangup()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(daemon.start)
        stopped = await fork.stopped(after=position)
        assert stopped["Reason"] == "hangup"
        assert int(stopped["FramesIn"]) == int(stopped["FramesSent"]) >= 50
        recording = await scene.server.wait_closed("/fork")
        assert (recording.close_code, recording.close_reason) == (1000, "hangup")
        await scene.legs(0)


async def test_forks_end_and_leave_no_leg_if_no_daemon_comes(
    scene: Scene[Recorder], folder: Path
) -> None:
    with scene.daemon() as daemon:
        await scene.talking_fork("/fork", "D(in)")
        daemon.kill()
        recording = await scene.server.wait(
            lambda one: one.path == "/fork" and bool(one.closed), timeout_s=ORPHAN_TIMEOUT_S + 10
        )
        assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
        await scene.legs(0)
        await until(lambda: not pids_in(folder))


async def test_stop_that_does_not_keep_ends_forks_and_the_process(
    scene: Scene[Recorder], folder: Path
) -> None:
    with scene.daemon() as daemon:
        fork = await scene.talking_fork("/fork", "D(in)")
        await asyncio.to_thread(daemon.stop)
        assert (await fork.stopped())["Reason"] == "shutdown"
        await scene.legs(0)
        assert pids_in(folder) == []


async def test_process_that_dies_gives_its_forks_to_another_with_a_gap(
    scene: Scene[Recorder], folder: Path
) -> None:
    with scene.daemon() as daemon:
        fork = await scene.talking_fork("/fork", "D(in)")
        before = await scene.server.wait_messages("/fork", 25)
        (pid,) = pids_in(folder)
        os.kill(pid, signal.SIGKILL)
        lost = await fork.event("AudioForkReconnecting")
        assert lost["Reason"] == "a relay process died"
        await fork.event("AudioForkResumed")
        await scene.server.wait(lambda one: one is not before and len(one.messages) > 25)
        assert (await fork.hang_up())["Reason"] == "hangup"
        assert "Traceback" not in daemon.log()


async def test_fork_of_two_legs_and_its_mute_and_text_survive_the_daemon(
    scene: Scene[Recorder], asterisk: Asterisk
) -> None:
    scene.settings["ari"] = ari_settings(asterisk)
    with scene.daemon() as daemon:
        fork = await scene.talking_fork("/fork", "D(stereo)")
        legs = [name for name in await channels(scene.ami) if name.startswith("Snoop/")]
        assert len(legs) == 2
        mute = {"Command": "AudioForkMute", "Channel": fork.target.channel}
        scene.ami.send("UserEvent", UserEvent="AudioFork", Direction="read", State="1", **mute)
        recording = await scene.server.wait(lambda one: in_is_silent(one.messages[-5:]))
        position = len(scene.ami.events)
        daemon.kill()
        await until(lambda: "there is no daemon" in daemon.log())
        assert recording.connection is not None
        await recording.connection.send("meanwhile")
        await asyncio.sleep(0.5)
        await asyncio.to_thread(daemon.start)
        await fork.started(after=position)
        told = await fork.event("AudioForkMessage", after=position)
        assert told["Message"] == "meanwhile"
        count = len(recording.messages)
        await scene.server.wait_messages("/fork", count + 50)
        assert in_is_silent(recording.messages[count:])
        assert len(scene.server.recordings) == 1
        assert (await fork.hang_up())["Reason"] == "hangup"
        await only_channels(scene.ami)
        assert "Traceback" not in daemon.log()


async def test_second_daemon_of_the_same_processes_does_not_start_and_disturbs_nothing(
    scene: Scene[Recorder], asterisk: Asterisk
) -> None:
    with scene.daemon() as daemon:
        fork = await scene.talking_fork("/fork", "D(in)")
        with pytest.raises(RuntimeError, match="another daemon has the process of"):
            Daemon(asterisk, scene.settings).start()
        recording = await scene.server.wait_messages("/fork", 50)
        await scene.server.wait_messages("/fork", len(recording.messages) + 50)
        assert (await fork.hang_up())["FramesDropped"] == "0"
        assert "Traceback" not in daemon.log()
