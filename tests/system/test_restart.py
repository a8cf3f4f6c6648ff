"""Daemon, Asterisk and legs that die in mid-call: what is taken up, and what it costs.

The callers speak numbered blocks, so that a gap at the server can be counted. The limits of the
gaps are wide, since the machine may be busy; what was measured is printed.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from testbed.asterisk import Asterisk, free_port
from testbed.blocks import decode, find_blocks, make_blocks
from testbed.daemon import Daemon, dialplan, manager_conf
from testbed.proxy import Proxy
from testbed.recorder import Recorder, Recording
from tests.system.conftest import DIALPLAN, channels
from tests.system.journals import until
from tests.system.scene import Fork, Scene, staged

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(3000, seed=61)  # a minute
HEARD = [decode(block) for block in BLOCKS]
BLOCK_S = 0.02
SLACK_S = 2.0  # beyond what is promised, for a busy machine


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    """An Asterisk of this module's own, which may be killed."""
    with Asterisk(dialplan=DIALPLAN + dialplan(), config={"manager.conf": manager_conf()}) as one:
        yield one


@pytest.fixture
def settings() -> dict[str, str]:
    """A port that stays: legs are known by it."""
    return {"audiosocket": f"listen = 127.0.0.1:{free_port(socket.SOCK_STREAM)}\n"}


@pytest.fixture
async def scene(
    asterisk: Asterisk, recorder: Recorder, settings: dict[str, str]
) -> AsyncIterator[Scene[Recorder]]:
    async with staged(asterisk, recorder, settings) as one:
        yield one


@pytest.fixture
async def proxy(recorder: Recorder) -> AsyncIterator[Proxy]:
    async with Proxy(("127.0.0.1", recorder.port)) as one:
        yield one


async def start_again(daemon: Daemon) -> None:
    """Start a daemon that was killed or stopped."""
    await asyncio.to_thread(daemon.start)


async def after_restart(recorder: Recorder, old: Recording, messages: int) -> Recording:
    """Return the next recording of the same path, once it has so many messages."""
    return await recorder.wait(
        lambda r: r is not old and r.path == old.path and len(r.messages) >= messages,
        timeout_s=20,
    )


def gap_s(*parts: bytes) -> float:
    """Return the time of the blocks that are missing between those that came; all in order."""
    found = [index for part in parts for index in find_blocks(part, HEARD)]
    assert found == sorted(set(found))
    assert len(found) > 50
    return (found[-1] - found[0] + 1 - len(found)) * BLOCK_S


async def test_sigkill_while_streaming_takes_up_all_forks_with_their_ids(
    scene: Scene[Recorder],
) -> None:
    target = await scene.call()
    target.call.play(BLOCKS)
    paths = [f"/{number}" for number in range(5)]
    with scene.daemon() as daemon:
        forks = [scene.fork(target, path, "D(in)") for path in paths]
        ids = [(await fork.started())["AudioForkID"] for fork in forks]
        before = [await scene.server.wait_messages(path, 25) for path in paths]
        position = len(scene.ami.events)
        killed = time.monotonic()
        daemon.kill()
        await start_again(daemon)
        away_s = time.monotonic() - killed
        again = [await fork.started(after=position) for fork in forks]
        took_up_s = time.monotonic() - killed - away_s
        assert [event["AudioForkID"] for event in again] == ids
        assert {event["TakenUp"] for event in again} == {"yes"}
        after = [await after_restart(scene.server, one, 50) for one in before]
        await scene.legs(5)
        stop_position = len(scene.ami.events)
        await target.call.hangup()
        for fork in forks:
            stopped = await fork.stopped(after=stop_position)
            assert stopped["Reason"] == "hangup"
            assert float(stopped["Duration"]) > away_s  # from its own start
        await scene.legs(0)
        assert "Traceback" not in daemon.log()
    gaps_s = [gap_s(one.audio, two.audio) for one, two in zip(before, after, strict=True)]
    print(f"away {away_s:.2f} s, taken up {took_up_s:.2f} s later, longest gap {max(gaps_s):.2f} s")
    assert max(gaps_s) <= away_s + 0.3 + SLACK_S


@pytest.mark.parametrize("moment", ["attaching", "reconnecting"])
async def test_sigkill_while_the_server_is_away_takes_up_the_fork(
    scene: Scene[Recorder],
    proxy: Proxy,
    moment: str,
) -> None:
    target = await scene.call()
    target.call.talk()
    with scene.daemon() as daemon:
        if moment == "attaching":
            proxy.stall()  # the handshake gets no answer
        fork = scene.fork(target, options="r(0)", url=proxy.ws_url())
        if moment == "attaching":
            await scene.ami.wait_event(lambda headers: headers.get("Event") == "ChanSpyStart")
        else:
            await fork.started()
            proxy.refuse()
            proxy.cut()
            await fork.event("AudioForkReconnecting")
        fork_id = await scene.ami.variable(target.channel, "AUDIOFORK_ID")
        await until(daemon, fork_id, is_there=True)  # it is written by a thread
        daemon.kill()
        position = len(scene.ami.events)
        await start_again(daemon)
        await daemon.says("resumed")
        proxy.resume() if moment == "attaching" else proxy.accept()
        event = await fork.started(after=position)
        assert (event["AudioForkID"], event["TakenUp"]) == (fork_id, "yes")
        await scene.legs(1)
        await target.call.hangup()
        await scene.ami.wait_user_event("AudioForkStopped", AudioForkID=fork_id, after=position)
        await scene.legs(0)


async def test_call_without_media_is_taken_up_though_its_old_leg_cannot_end(
    scene: Scene[Recorder],
) -> None:
    target = await scene.call("wait")
    with scene.daemon() as daemon:
        fork = scene.fork(target)
        event = await fork.started()  # direction both: silence is audio too
        position = len(scene.ami.events)
        daemon.kill()
        await start_again(daemon)
        again = await fork.started(after=position)
        assert again["AudioForkID"] == event["AudioForkID"]
        target.call.talk()  # lets the old leg go
        await scene.legs(1)
        await target.call.hangup()
        await scene.legs(0)


async def test_call_that_ends_while_the_daemon_is_away_is_told_of_at_its_start(
    scene: Scene[Recorder],
    tmp_path: Path,
) -> None:
    scene.settings["security"] = "allow_post_process = yes\n"
    target = await scene.call()
    target.call.talk()
    with scene.daemon() as daemon:
        fork = scene.fork(
            target,
            PostProcess=f"echo ^{{UNIQUEID}} > {tmp_path}/ended",
        )
        await fork.started()
        await until(daemon, target.uniqueid, is_there=True)
        daemon.kill()
        await target.call.hangup()
        await scene.legs(0)
        await start_again(daemon)
        stopped = await fork.event("AudioForkStopped")
        assert stopped["Reason"] == "hangup"
        assert stopped["Detail"].startswith("the call ended while the daemon was away")
        assert stopped["PostProcessStatus"] == "0"
        assert (tmp_path / "ended").read_text().strip() == target.uniqueid
        await until(daemon, target.uniqueid, is_there=False)
        daemon.kill()
        position = len(scene.ami.events)
        await start_again(daemon)  # not told twice
        later = [headers.get("UserEvent") for _, headers in scene.ami.events[position:]]
        assert "AudioForkStopped" not in later


async def keep_by_configuration(daemon: Daemon) -> None:
    config = daemon.config.read_text()
    daemon.config.write_text(config.replace("[daemon]\n", "[daemon]\non_stop = keep\n"))
    await daemon.reload("reloaded")


async def keep_by_signal(daemon: Daemon) -> None:
    daemon.signal(signal.SIGUSR1)
    await daemon.says("forks that run at the next stop will be resumed")


@pytest.mark.parametrize("keep", [keep_by_configuration, keep_by_signal])
async def test_stop_that_keeps_closes_with_1001_and_the_next_start_takes_up(
    scene: Scene[Recorder], keep: Callable[[Daemon], Awaitable[None]]
) -> None:
    target = await scene.call()
    target.call.play(BLOCKS)
    with scene.daemon() as daemon:
        await keep(daemon)
        fork = scene.fork(target, "/", "D(in)")
        fork_id = (await fork.started())["AudioForkID"]
        before = await scene.server.wait_messages("/", 25)
        position = len(scene.ami.events)
        assert await asyncio.to_thread(daemon.stop) <= 3
        assert daemon.exit_code == 0
        await scene.server.wait_closed("/")
        assert (before.close_code, before.close_reason) == (1001, "shutdown")
        away = await scene.ami.wait_user_event("AudioForkReconnecting", after=position)
        assert (away["AudioForkID"], away["Reason"]) == (fork_id, "the daemon is restarted")
        assert await scene.ami.variable(target.channel, "AUDIOFORK_STATUS") == "RECONNECTING"
        await scene.legs(0)
        await start_again(daemon)
        again = await fork.started(after=position)
        assert (again["AudioForkID"], again["TakenUp"]) == (fork_id, "yes")
        assert await scene.ami.variable(target.channel, "AUDIOFORK_STATUS") == "STREAMING"
        after = await after_restart(scene.server, before, 50)
        await target.call.hangup()
        stopped = await scene.ami.wait_user_event("AudioForkStopped", AudioForkID=fork_id)
        assert stopped["Reason"] == "hangup"
        assert gap_s(before.audio, after.audio) > 0


async def test_stop_that_ends_leaves_nothing_to_take_up(
    scene: Scene[Recorder],
) -> None:
    target = await scene.call()
    target.call.talk()
    with scene.daemon() as daemon:
        await scene.fork(target).started()
        await asyncio.to_thread(daemon.stop)
        await scene.ami.wait_user_event("AudioForkStopped", Reason="shutdown")
        await start_again(daemon)
        await scene.fork(target, "/other").started()
        assert "an earlier run left" not in daemon.log()
        assert len(scene.server.at("/")) == 1
        await target.call.hangup()


# An Asterisk that is stopped in order hangs its channels up first, and says so.
RESTARTS = [(True, 1011, "leg-failed"), (False, 1000, "hangup")]


@pytest.mark.parametrize(("killed", "code", "reason"), RESTARTS)
async def test_restarted_asterisk_ends_its_forks_and_new_ones_work(
    asterisk: Asterisk,
    recorder: Recorder,
    settings: dict[str, str],
    killed: bool,
    code: int,
    reason: str,
) -> None:
    with Daemon(asterisk, settings) as daemon:
        async with staged(asterisk, recorder, settings) as scene:
            target = await scene.call()
            target.call.talk()
            for number in range(3):
                await scene.fork(target, f"/{number}").started()
            if killed:
                await asyncio.to_thread(asterisk.kill)
            await asyncio.to_thread(asterisk.restart)
        for number in range(3):
            recording = await recorder.wait_closed(f"/{number}", timeout_s=20)
            assert (recording.close_code, recording.close_reason) == (code, reason)
        await daemon.says(f"ended: {reason}", times=3)
        if killed:  # the latter if it took long to start
            why = re.findall(r"ended: leg-failed \((.*?)\)", daemon.log())
            assert len(why) == 3
            assert all("Asterisk was restarted" in one or "cannot be asked" in one for one in why)
        await daemon.says("connected to Asterisk", times=2)
        async with staged(asterisk, recorder, settings) as scene:
            target = await scene.call()
            target.call.talk()
            await scene.fork(target, "/new").started()
            await scene.legs(1)
            await target.call.hangup()
            await scene.server.wait_closed("/new")


async def test_fork_of_a_killed_asterisk_is_not_taken_up(
    asterisk: Asterisk, recorder: Recorder, settings: dict[str, str]
) -> None:
    """Both die: the machine was rebooted, say."""
    with Daemon(asterisk, settings) as daemon:
        async with staged(asterisk, recorder, settings) as scene:
            target = await scene.call()
            target.call.talk()
            await scene.fork(target).started()
            daemon.kill()
            await asyncio.to_thread(asterisk.kill)
            await asyncio.to_thread(asterisk.restart)
        await start_again(daemon)
        await daemon.says("ended: leg-failed (Asterisk was restarted while the daemon was away)")


async def test_leg_that_is_hung_up_is_replaced_and_the_server_sees_a_gap_alone(
    scene: Scene[Recorder],
) -> None:
    target = await scene.call()
    target.call.play(BLOCKS)
    with scene.daemon():
        fork = scene.fork(target, "/", "D(in)")
        await fork.started()
        recording = await scene.server.wait_messages("/", 25)
        (leg,) = await scene.legs(1)
        await scene.ami.action("Hangup", Channel=leg)
        lost = await fork.event("AudioForkReconnecting")
        why = "the leg of in was lost: Asterisk closed it"
        assert (lost["Attempt"], lost["Reason"]) == ("1", why)
        back = await fork.event("AudioForkResumed")
        assert back["FramesDropped"] == "0"
        came = len(recording.messages)
        await scene.server.wait_messages("/", came + 50)
        assert await scene.ami.variable(target.channel, "AUDIOFORK_STATUS") == "STREAMING"
        await target.call.hangup()
        await scene.server.wait_closed("/")
        await scene.legs(0)
    assert scene.server.at("/") == [recording]
    gap = gap_s(recording.audio)
    print(f"gap {gap * 1000:.0f} ms, without a leg {back['GapMs']} ms")
    assert 0 < gap <= 0.5 + SLACK_S


async def test_leg_that_is_hung_up_again_and_again_ends_the_fork(
    scene: Scene[Recorder],
) -> None:
    target = await scene.call()
    target.call.talk()
    drops = 0

    async def hang_up_legs() -> None:
        nonlocal drops
        while True:
            for name in await channels(scene.ami):
                if name.startswith("AudioSocket/"):
                    answer = await scene.ami.action("Hangup", Channel=name)
                    drops += answer["Response"] == "Success"
            await asyncio.sleep(0.02)

    with scene.daemon():
        fork = scene.fork(target)
        await fork.started()
        hanging_up = asyncio.create_task(hang_up_legs())
        stopped = await fork.event("AudioForkStopped", timeout_s=30)
        hanging_up.cancel()
        assert stopped["Reason"] == "leg-failed"
        assert stopped["Detail"].startswith("the leg was lost 4 times in 10 s")
        assert drops >= 4
        await scene.legs(0)
        await target.call.hangup()


async def test_damaged_journal_costs_its_forks_and_nothing_else(
    scene: Scene[Recorder],
) -> None:
    target = await scene.call()
    target.call.talk()
    with scene.daemon() as daemon:
        await scene.fork(target, "/lost").started()
        daemon.kill()
        for path in daemon.journal.parent.glob(daemon.journal.name + "*"):
            path.write_bytes(b"no journal " * 1000)
        await start_again(daemon)
        assert "cannot be used (file is not a database)" in daemon.log()
        fork = scene.fork(target, "/new")
        await fork.started()
        position = len(scene.ami.events)
        daemon.kill()
        await start_again(daemon)
        await fork.started(after=position)
        assert len(scene.server.at("/lost")) == 1
        await target.call.hangup()
        await scene.legs(0)


async def test_folder_that_takes_no_journal_stops_no_fork(
    scene: Scene[Recorder],
) -> None:
    """Root may write to a read-only folder, but not to /proc."""
    scene.settings["daemon"] = "journal = /proc/journal.sqlite3\non_stop = keep\n"
    target = await scene.call()
    target.call.talk()
    with scene.daemon() as daemon:
        fork = scene.fork(target)
        await fork.started()
        await asyncio.to_thread(daemon.stop)
        stopped = await fork.event("AudioForkStopped")
        assert stopped["Reason"] == "shutdown"
        assert daemon.log().count("cannot be written") == 1
        assert "cannot be kept, because the journal does not work" in daemon.log()
    await target.call.hangup()


async def test_full_disk_stops_no_fork_and_the_journal_is_whole_when_there_is_room(
    scene: Scene[Recorder],
) -> None:
    """No file of the daemon's may grow beyond 20,000 bytes: its journal is full soon."""
    target = await scene.call()
    target.call.talk()
    command = ("prlimit", "--fsize=20000:unlimited", sys.executable, "-m", "audiofork", "run")
    asked: list[Fork] = []
    with scene.daemon(*command) as daemon:
        while f"the journal {daemon.journal} cannot be written" not in daemon.log():
            assert len(asked) < 20
            asked.append(scene.fork(target, f"/{len(asked)}".ljust(900, "x")))
            await asked[-1].started()
        subprocess.run(  # noqa: ASYNC221
            ["prlimit", f"--pid={daemon.pid}", "--fsize=unlimited"], check=True
        )
        await daemon.says(f"works again, {len(asked)} forks are in it")
        position = len(scene.ami.events)
        daemon.kill()
        await start_again(daemon)
        for fork in asked:
            await fork.started(after=position)
        await target.call.hangup()
        await scene.legs(0)
