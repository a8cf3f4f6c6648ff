"""The history of real calls: what became of forks that have ended, and who asks for it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from testbed.ami import AmiClient
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import place_call, start_fork

pytestmark = pytest.mark.asterisk


async def history(daemon: Daemon, *arguments: str) -> Any:
    """Return what `audiofork history --json` prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "audiofork", "history", "--json", *arguments),
        *("-c", str(daemon.config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


async def test_call_that_was_forked_and_one_that_could_not_be_are_in_the_history(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    action = start_fork(ami, target.channel, recorder.url("/kept?token=hunter2"), "D(in)x(json)")
    await ami.wait_user_event("AudioForkStarted", ActionID=action)
    await recorder.wait_messages("/kept?token=hunter2", 30)
    in_vain = start_fork(ami, target.channel, "ws://127.0.0.1:1/", "r(1)R(1)")
    await ami.wait_user_event("AudioForkFailed", ActionID=in_vain, timeout_s=20)
    refused = start_fork(ami, target.channel, "ws://127.0.0.1:1/", "D(in)T(insecure)")
    await ami.wait_user_event("AudioForkFailed", ActionID=refused)
    await target.call.hangup()
    stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action)

    ended, failed, no_start = [
        await history(daemon, "--channel", target.channel, "--reason", reason)
        for reason in ("hangup", "sink-gone", "refused")
    ]
    (entry,) = ended
    assert entry["fork_id"] == stopped["AudioForkID"]
    assert (entry["channel"], entry["uniqueid"]) == (target.channel, target.uniqueid)
    assert entry["caller_number"] == "caller"
    assert entry["url"].endswith("/kept?...")
    assert (entry["host"], entry["direction"], entry["format"]) == ("127.0.0.1", "in", "json")
    assert entry["requested_at"] < entry["started_at"] < entry["ended_at"]
    for total, header in (
        ("frames_in", "FramesIn"),
        ("frames_sent", "FramesSent"),
        ("frames_dropped", "FramesDropped"),
    ):
        assert entry["totals"][total] == int(stopped[header])
    assert entry["totals"]["frames_sent"] >= 20

    whole = await history(daemon, entry["fork_id"][:8])
    assert [moment["kind"] for moment in whole["timeline"]] == ["requested", "started", "ended"]
    assert "by ami" in whole["timeline"][0]["text"].lower()

    (without_audio,) = failed
    assert (without_audio["failed"], without_audio["started_at"]) == (True, None)
    assert "Connection refused" in without_audio["detail"]
    (never,) = no_start
    assert (never["failed"], never["tap"]) == (True, "")
    assert "insecure" in never["detail"]
    causes = await history(daemon, "--causes", "--since", "10m")
    assert {cause["reason"] for cause in causes} >= {"sink-gone", "refused"}
    assert "hunter2" not in str(daemon.history.read_bytes())


async def test_forks_that_the_stop_of_the_daemon_ends_are_in_the_file_that_it_leaves(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    targets = [await place_call(ami, caller) for _ in range(3)]
    for target in targets:
        target.call.talk()
        action = start_fork(ami, target.channel, recorder.url("/stop"))
        await ami.wait_user_event("AudioForkStarted", ActionID=action)
    await asyncio.to_thread(daemon.stop)
    assert not daemon.history.with_name("history.sqlite3-wal").exists(), "it was closed"
    try:
        entries = await history(daemon, "--reason", "shutdown")  # from the file: no daemon runs
        assert {entry["channel"] for entry in entries} == {one.channel for one in targets}
        assert all(entry["totals"]["frames_sent"] for entry in entries)
    finally:
        await asyncio.to_thread(daemon.start)
    again = await history(daemon, "--reason", "shutdown")
    assert again == entries


async def test_forgotten_caller_is_in_no_byte_of_the_file(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    await ami.action("Setvar", Channel=target.channel, Variable="CALLERID(num)", Value="4930123456")
    action = start_fork(ami, target.channel, recorder.url("/forget"))
    await ami.wait_user_event("AudioForkStarted", ActionID=action)
    await target.call.hangup()
    await ami.wait_user_event("AudioForkStopped", ActionID=action)
    assert len(await history(daemon, "--caller", "+49 30 123456")) == 1
    assert b"4930123456" in files(daemon)
    assert await history(daemon, "--forget", "+4930123456", "--yes") == {"removed": 1, "blanked": 0}
    assert await history(daemon, "--caller", "+49 30 123456") == []
    assert b"4930123456" not in files(daemon)


def files(daemon: Daemon) -> bytes:
    """Return the content of all files of the history."""
    found = daemon.history.parent.glob(daemon.history.name + "*")
    return b"".join(one.read_bytes() for one in found)
