"""The relay as two processes: what one does, two do, and the death of one is survived.

The callers speak numbered blocks, so that a gap at the server can be counted. The limits of the
gaps are wide, since the machine may be busy; what was measured is printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from audiofork.asterisk.taps.base import fork_id_of
from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk, free_port
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.recorder import Recorder, Recording
from testbed.sip import SipUser
from tests.relay.peers import lives
from tests.system.conftest import (
    Target,
    counts_blocks,
    listed_channels,
    needs_whole_in,
    no_channels,
    only_channels,
    place_call,
    start_fork,
)

pytestmark = pytest.mark.asterisk

BLOCKS = make_blocks(400, seed=91)
LONG = make_blocks(3000, seed=92)  # a minute
WARM_UP = make_blocks(25, seed=93)
HEARD, HEARD_LONG = ([decode(block) for block in blocks] for blocks in (BLOCKS, LONG))
PATHS = [f"/{number}" for number in range(10)]
SLACK_S = 2.0  # beyond what is promised, for a busy machine
WAIT_S = 30.0
DIED = "a relay process died"


@pytest.fixture
def daemon(asterisk: Asterisk) -> Iterator[Daemon]:
    """A daemon of two workers, for one test; most of them end it."""
    settings = {
        "audiosocket": f"listen = 127.0.0.1:{free_port(socket.SOCK_STREAM, 2)}\n",
        "relay": "workers = 2\n",
        "security": "max_forks = 20\nmax_forks_per_channel = 20\n",
    }
    with Daemon(asterisk, settings) as one:
        yield one
        assert "Traceback" not in one.log()


def workers_of(daemon: Daemon) -> dict[int, int]:
    """Return the process that listens at each port, as the log tells."""
    lines = re.findall(r"relay process (\d+) at 127\.0\.0\.1:(\d+) listens", daemon.log())
    return {int(port): int(pid) for pid, port in lines}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (neither a process nor a file has an event)
            await asyncio.sleep(0.02)


async def legs(ami: AmiClient) -> dict[str, int]:
    """Return the port that each fork's leg dials, once no fork has two."""
    async with asyncio.timeout(WAIT_S):
        while True:
            present = [(h["Uniqueid"], h["Channel"]) for h in await listed_channels(ami)]
            found = [
                (fork_id_of(uniqueid), re.match(r"AudioSocket/127.0.0.1:(\d+)-", name))
                for uniqueid, name in present
            ]
            dialled = [(fork_id, int(match[1])) for fork_id, match in found if match]
            ports = dict(dialled)
            if len(ports) == len(dialled):
                return ports
            await asyncio.sleep(0.05)


async def start_forks(
    ami: AmiClient, recorder: Recorder, target: Target, paths: list[str] = PATHS
) -> dict[str, str]:
    """Start a fork to each path; return their ids by path when all have streamed."""
    asked = {path: start_fork(ami, target.channel, recorder.url(path), "D(in)") for path in paths}
    ids = {}
    for path, action_id in asked.items():
        started = await ami.wait_user_event(
            "AudioForkStarted", ActionID=action_id, timeout_s=WAIT_S
        )
        ids[path] = started["AudioForkID"]
        await recorder.wait_messages(path, 1, timeout_s=WAIT_S)
    return ids


async def has(recorder: Recorder, path: str, condition: Callable[[Recording], bool]) -> Recording:
    """Return the latest recording of a path once it is as wanted."""
    return await recorder.wait(
        lambda one: one is recorder.at(path)[-1] and condition(one), timeout_s=WAIT_S
    )


async def event_of(ami: AmiClient, name: str, fork_id: str, after: int = 0) -> Headers:
    return await ami.wait_user_event(name, AudioForkID=fork_id, after=after, timeout_s=WAIT_S)


async def command(daemon: Daemon, *arguments: str) -> str:
    """Run a command beside the daemon; return what it prints."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "audiofork", *arguments, "-c", str(daemon.config)],
        stdout=subprocess.PIPE,
        timeout=WAIT_S,
        check=True,
    )
    return done.stdout.decode()


@needs_whole_in()
@counts_blocks
async def test_ten_forks_go_five_to_each_worker_and_keep_every_block(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    warm_up = target.call.play(WARM_UP, loop=True)
    ids = await start_forks(ami, recorder, target)
    ports = await legs(ami)
    assert ports.keys() == set(ids.values())
    assert sorted(workers_of(daemon)) == sorted(set(ports.values()))
    assert [list(ports.values()).count(port) for port in set(ports.values())] == [5, 5]
    warm_up.cancel()
    await target.call.play(BLOCKS + WARM_UP)
    await asyncio.sleep(0.3)
    await target.call.hangup()
    for path, fork_id in ids.items():
        recording = await recorder.wait_closed(path, timeout_s=WAIT_S)
        assert report(find_blocks(recording.audio, HEARD), 400).intact
        assert (recording.close_code, recording.close_reason) == (1000, "hangup")
        stopped = await event_of(ami, "AudioForkStopped", fork_id)
        assert stopped["FramesIn"] == stopped["FramesSent"] == str(len(recording.messages))
        assert "RelaysLost" not in stopped
    await no_channels(ami)


async def test_list_mute_reload_limit_and_stop_work_on_forks_of_both_workers(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    ids = await start_forks(ami, recorder, target, ["/a", "/b"])
    assert len(set((await legs(ami)).values())) == 2
    for path in ids:
        await recorder.wait_messages(path, 50)
    listed = {fork["id"]: fork for fork in json.loads(await command(daemon, "list", "--json"))}
    assert listed.keys() == set(ids.values())
    assert all(fork["frames_sent"] >= 45 for fork in listed.values())
    await command(daemon, "mute", target.channel, "on", "--direction", "read")
    for path in ids:
        await has(recorder, path, lambda latest: latest.messages[-1] == bytes(320))
    with daemon.config.open("a") as file:
        file.write("[websocket]\nframe_ms = 100\n")
    text = daemon.config.read_text().replace("max_forks = 20", "max_forks = 4")
    daemon.config.write_text(text)
    await daemon.reload("reloaded")
    more = await start_forks(ami, recorder, target, ["/c", "/d"])
    assert len(set((await legs(ami)).values())) == 2
    for path in more:
        recording = await recorder.wait_messages(path, 2)
        # The first may be shorter, where a frame is late; those of 20 ms have 320 bytes.
        assert len(recording.messages[-1]) == 1600
    refused = start_fork(ami, target.channel, recorder.url("/e"))
    failed = await ami.wait_user_event("AudioForkFailed", ActionID=refused)
    assert failed["Reason"] == "4 forks run already (max_forks)"
    await command(daemon, "stop", target.channel)
    for path in (*ids, *more):
        assert (await recorder.wait_closed(path)).close_reason == "stopped"
    await only_channels(ami, target.channel)
    await target.call.hangup()


async def test_sigterm_ends_the_forks_of_both_workers_and_their_processes(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    ids = await start_forks(ami, recorder, target)
    processes = workers_of(daemon)
    assert all(lives(pid) for pid in processes.values())
    # systemd and a terminal tell all processes.
    for pid in processes.values():
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    took_s = await asyncio.to_thread(daemon.stop)
    print(f"stop of 10 forks of 2 workers: {took_s:.2f} s")
    assert daemon.exit_code == 0
    assert not any(lives(pid) for pid in processes.values())
    for path, fork_id in ids.items():
        recording = await recorder.wait_closed(path)
        assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
        stopped = await event_of(ami, "AudioForkStopped", fork_id)
        assert stopped["FramesSent"] == str(len(recording.messages))
    assert "died" not in daemon.log()
    await only_channels(ami, target.channel)
    await target.call.hangup()


def gap_of(*recordings: Recording) -> int:
    """Return how many blocks are missing between the first and the last; all else in order."""
    found = [index for one in recordings for index in find_blocks(one.audio, HEARD_LONG)]
    assert found == sorted(set(found))
    assert len(found) > 100
    return found[-1] - found[0] + 1 - len(found)


@needs_whole_in()
async def test_sigkill_of_a_worker_costs_its_own_forks_a_gap_and_the_others_nothing(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.play(LONG)
    ids = await start_forks(ami, recorder, target)
    ports = await legs(ami)
    processes = workers_of(daemon)
    dying = ports[ids["/0"]]
    moved = {path: fork_id for path, fork_id in ids.items() if ports[fork_id] == dying}
    assert len(moved) == 5
    for path in PATHS:
        await recorder.wait_messages(path, 75)
    position = len(ami.events)
    os.kill(processes[dying], signal.SIGKILL)
    gaps_ms = []
    for fork_id in moved.values():
        told = await event_of(ami, "AudioForkReconnecting", fork_id, after=position)
        assert (told["Reason"], told["Attempt"]) == (DIED, "1")
        back = await event_of(ami, "AudioForkResumed", fork_id, after=position)
        gaps_ms.append(int(back["GapMs"]))
    await until(lambda: workers_of(daemon)[dying] != processes[dying])
    assert lives(workers_of(daemon)[dying])
    assert (await legs(ami)).keys() == set(ids.values())
    for path in moved:
        await has(recorder, path, lambda latest: len(latest.messages) > 75)
    # The next fork goes to the new process, which has none.
    new = await start_forks(ami, recorder, target, ["/new"])
    assert (await legs(ami))[new["/new"]] == dying
    await target.call.hangup()
    missing = []
    for path, fork_id in ids.items():
        recordings = recorder.at(path)
        await has(recorder, path, lambda latest: bool(latest.closed))
        stopped = await event_of(ami, "AudioForkStopped", fork_id)
        assert stopped["Reason"] == "hangup"
        if path in moved:
            assert len(recordings) == 2
            assert recordings[0].close_code is None
            assert stopped["RelaysLost"] == "1"
            assert stopped["FramesSent"] == str(len(recordings[1].messages))
            missing.append(gap_of(*recordings))
        else:
            assert len(recordings) == 1
            assert gap_of(*recordings) == 0
            assert "RelaysLost" not in stopped
    print(
        f"SIGKILL of a worker with 5 forks: {min(missing) * 20} to {max(missing) * 20} ms lost "
        f"in each; GapMs {min(gaps_ms)} to {max(gaps_ms)}"
    )
    assert max(missing) * 0.02 < 0.5 + SLACK_S
    assert f"at 127.0.0.1:{dying} died (killed by SIGKILL); it had 5 forks" in daemon.log()
    await no_channels(ami)


async def test_fork_of_a_silent_party_moves_and_streams_once_it_speaks(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """ChanSpy on a silent party sends nothing, and does not see before that its peer is gone."""
    target = await place_call(ami, caller, "wait")
    action_id = start_fork(ami, target.channel, recorder.url("/a"), "D(in)")
    opened = await recorder.wait(lambda r: r.path == "/a")
    await ami.wait_event(lambda headers: headers.get("Event") == "ChanSpyStart")
    ((fork_id, port),) = (await legs(ami)).items()
    position = len(ami.events)
    os.kill(workers_of(daemon)[port], signal.SIGKILL)
    await recorder.wait(lambda r: r.path == "/a" and r is not opened)
    await event_of(ami, "AudioForkReconnecting", fork_id, after=position)
    await ami.wait_event(
        lambda headers: headers.get("Event") == "ChanSpyStart", after=position, timeout_s=WAIT_S
    )
    target.call.talk()
    await ami.wait_user_event("AudioForkStarted", ActionID=action_id, timeout_s=WAIT_S)
    assert (await legs(ami)).keys() == {fork_id}
    assert port not in (await legs(ami)).values()
    await target.call.hangup()
    await no_channels(ami)


async def test_sigkill_of_both_workers_is_survived(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.play(LONG)
    ids = await start_forks(ami, recorder, target, ["/a", "/b"])
    for path in ids:
        await recorder.wait_messages(path, 75)
    position = len(ami.events)
    for pid in workers_of(daemon).values():
        os.kill(pid, signal.SIGKILL)
    gaps_ms = []
    for fork_id in ids.values():
        # Its first new home may have been the one that was just dead too.
        back = await event_of(ami, "AudioForkResumed", fork_id, after=position)
        gaps_ms.append(int(back["GapMs"]))
    for path in ids:
        await has(recorder, path, lambda latest: len(latest.messages) > 75)
    assert (await legs(ami)).keys() == set(ids.values())
    await target.call.hangup()
    for path, fork_id in ids.items():
        stopped = await event_of(ami, "AudioForkStopped", fork_id)
        assert stopped["Reason"] == "hangup"
        await has(recorder, path, lambda latest: bool(latest.closed))
        print(f"SIGKILL of both workers: {gap_of(*recorder.at(path)) * 20} ms lost")
    print(f"GapMs {gaps_ms}")
    await no_channels(ami)


async def test_sigkill_of_the_daemon_ends_its_workers_and_the_next_takes_up_all_forks(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.play(LONG)
    ids = await start_forks(ami, recorder, target, ["/a", "/b"])
    processes = workers_of(daemon)
    position = len(ami.events)
    await asyncio.to_thread(daemon.kill)
    await asyncio.to_thread(daemon.start)
    for path, fork_id in ids.items():
        again = await event_of(ami, "AudioForkStarted", fork_id, after=position)
        assert again["TakenUp"] == "yes"
        recording = await recorder.wait_closed(path)
        assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
    await until(lambda: not any(lives(pid) for pid in processes.values()))
    assert workers_of(daemon).keys() == processes.keys()
    assert (await legs(ami)).keys() == set(ids.values())
    assert len(set((await legs(ami)).values())) == 2
    await target.call.hangup()
    await no_channels(ami)
