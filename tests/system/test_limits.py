"""What the daemon refuses, on the real Asterisk, while its forks run on; and what it keeps secret.

Each test has a daemon of its own.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from audiofork.forks.admission import SPARE_FILES
from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.faulty_server import FaultyServer, Manner
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import (
    Target,
    counts_blocks,
    needs_whole_in,
    no_channels,
    place_call,
    start_fork,
)

pytestmark = pytest.mark.asterisk

SECRET = "hunter2-in-the-query"
BLOCKS = make_blocks(300, seed=21)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(25, seed=22)


async def failed(ami: AmiClient, action_id: str) -> Headers:
    return await ami.wait_user_event("AudioForkFailed", ActionID=action_id)


async def started(ami: AmiClient, action_id: str) -> Headers:
    return await ami.wait_user_event("AudioForkStarted", ActionID=action_id)


@asynccontextmanager
async def whole_fork(ami: AmiClient, caller: SipUser, recorder: Recorder) -> AsyncIterator[Target]:
    """A call whose fork must bring every block that the caller sends meanwhile."""
    target = await place_call(ami, caller)
    action_id = start_fork(ami, target.channel, recorder.url("/whole"), "D(in)")
    before = target.call.play(WARM_UP, loop=True)
    await started(ami, action_id)
    before.cancel()
    playing = target.call.play(BLOCKS + WARM_UP)
    yield target
    await playing
    await target.call.hangup()
    await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    recording = await recorder.wait_closed("/whole")
    assert report(find_blocks(recording.audio, HEARD), len(BLOCKS)).intact


# --- How many, and how fast ----------------------------------------------------------------------


async def test_more_forks_than_max_forks_per_channel_are_refused(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk, {"security": "max_forks_per_channel = 2\n"}):
        target = await place_call(ami, caller)
        target.call.talk()
        for name in (target.channel, target.uniqueid):
            await started(ami, start_fork(ami, name, recorder.url("/")))
        action_id = start_fork(ami, target.channel, recorder.url("/refused"))
        reason = (await failed(ami, action_id))["Reason"]
        assert reason == "2 forks run already on the channel (max_forks_per_channel)"
        await target.call.hangup()
        await no_channels(ami)
    assert not recorder.at("/refused")


async def test_starts_that_come_too_fast_wait_in_order_then_are_refused_and_a_stop_goes_before(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk, {"security": "max_starts = 1\n"}) as daemon:
        target = await place_call(ami, caller)
        target.call.talk()
        asked = [start_fork(ami, target.channel, recorder.url(f"/{n}")) for n in range(9)]
        assert (await failed(ami, asked[8]))["Reason"] == "more than 1 starts a second (max_starts)"
        first = await started(ami, asked[0])
        ami.send(
            "UserEvent",
            UserEvent="AudioFork",
            Command="StopAudioFork",
            AudioForkID=first["AudioForkID"],
        )
        await recorder.wait_closed("/0")
        assert not recorder.at("/4"), "the stop came before the starts that were asked for earlier"
        second = await recorder.wait_messages("/1", 1)
        assert [recording.path for recording in recorder.recordings] == ["/0", "/1"]
        assert second.opened - recorder.at("/0")[0].opened > 0.3  # 1 s, on an idle machine
        await asyncio.to_thread(daemon.stop)
        assert (await failed(ami, asked[5]))["Reason"] == "the daemon stops"
        await target.call.hangup()
        await no_channels(ami)


# --- Descriptors ---------------------------------------------------------------------------------


@contextmanager
def files(daemon: Daemon, more: int) -> Iterator[None]:
    """Let a daemon open so many files more than it has open now."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    limit = daemon.descriptors() + more
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    yield
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


def connect(daemon: Daemon, count: int, connections: ExitStack) -> None:
    """Connect so often to where Asterisk brings its audio, and say nothing."""
    for _ in range(count):
        address = ("127.0.0.1", daemon.audiosocket_port)
        connections.enter_context(socket.create_connection(address, 30))


@counts_blocks
@needs_whole_in()
async def test_without_descriptors_new_forks_are_refused_and_the_running_one_loses_nothing(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk) as daemon:
        async with whole_fork(ami, caller, recorder) as target:
            with files(daemon, SPARE_FILES + 1):
                limit = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0]
                for _ in range(3):
                    action_id = start_fork(ami, target.channel, recorder.url("/refused"))
                    assert (await failed(ami, action_id))["Reason"] == (
                        f"no file descriptors left for another fork; raise LimitNOFILE, now {limit}"
                    )
            action_id = start_fork(ami, target.channel, recorder.url("/again"))
            await started(ami, action_id)
        await recorder.wait_closed("/again")
        await no_channels(ami)
    assert not recorder.at("/refused")


@counts_blocks
@needs_whole_in()
async def test_strangers_that_take_every_descriptor_do_not_hurt_the_running_fork(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk) as daemon, ExitStack() as strangers:
        async with whole_fork(ami, caller, recorder) as target:
            with files(daemon, 5):
                await asyncio.to_thread(connect, daemon, 50, strangers)
                action_id = start_fork(ami, target.channel, recorder.url("/refused"))
                assert "no file descriptors" in (await failed(ami, action_id))["Reason"]
                used = daemon.cpu_s()
                await asyncio.sleep(1)  # what is measured is that nothing is done
                assert daemon.cpu_s() - used < 0.5
            strangers.close()
            await started(ami, start_fork(ami, target.channel, recorder.url("/again")))
        await no_channels(ami)


async def test_low_limit_of_descriptors_is_said_at_the_start(asterisk: Asterisk) -> None:
    command = ("sh", "-c", 'ulimit -n 2000; exec "$0" -m audiofork run "$@"', sys.executable)
    with Daemon(asterisk, command=command) as daemon:
        assert (
            "this process may open 2000 files, but [security] max_forks = 1000 needs 4400; "
            "set LimitNOFILE=4400, or lower max_forks"
        ) in daemon.log()
    with Daemon(asterisk, {"security": "max_forks = 50\n"}, command=command) as daemon:
        assert "this process may open" not in daemon.log()


# --- Who, and where to ---------------------------------------------------------------------------


async def test_where_no_private_address_is_allowed_every_form_of_one_is_refused(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk, {"security": "allow_private = no\nallow_urls = *://*\n"}):
        target = await place_call(ami, caller)
        target.call.talk()
        for host in ("127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::1]", "[::ffff:7f00:1]"):
            action_id = start_fork(ami, target.channel, f"ws://{host}:{recorder.port}/")
            reason = (await failed(ami, action_id))["Reason"]
            assert reason.endswith("is a private address, which [security] allow_private forbids")
        action_id = start_fork(ami, target.channel, f"ws://localhost:{recorder.port}/")
        end = await failed(ami, action_id)
        assert end["Reason"] == "sink-refused"
        assert end["Detail"].startswith("localhost resolves to the private address ")
        await target.call.hangup()
        await no_channels(ami)
    assert recorder.recordings == []


async def test_legs_come_from_allowed_networks_alone(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    listen = "listen = 127.0.0.1:0\nallow = {}\n"
    with Daemon(asterisk, {"audiosocket": listen.format("127.0.0.0/8, ::1")}):
        target = await place_call(ami, caller)
        target.call.talk()
        await started(ami, start_fork(ami, target.channel, recorder.url("/")))
        await target.call.hangup()
        await no_channels(ami)
    with Daemon(asterisk, {"audiosocket": listen.format("192.0.2.0/24")}) as daemon:
        target = await place_call(ami, caller)
        target.call.talk()
        end = await failed(ami, start_fork(ami, target.channel, recorder.url("/refused")))
        assert end["Reason"] == "leg-failed"
        assert "not allowed ([audiosocket] allow), from 127.0.0.1" in daemon.log()
        await target.call.hangup()
        await no_channels(ami)


@counts_blocks
@needs_whole_in()
async def test_500_idle_connections_disturb_no_fork(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk) as daemon, ExitStack() as idle:
        async with whole_fork(ami, caller, recorder) as target:
            await asyncio.to_thread(connect, daemon, 500, idle)
            await started(ami, start_fork(ami, target.channel, recorder.url("/another")))
            await daemon.says("no UUID within 2 s, from 127.0.0.1")
        await no_channels(ami)


# --- Secrets -------------------------------------------------------------------------------------

REFUSED_URLS = [
    "http://127.0.0.1/?token={}",
    "ws://user:{}@127.0.0.1/",
    "ws://user:{}\u2100@127.0.0.1/",
    "ws://127.0.0.1:port/?token={}",
    "ws://127.0.0.1/..?token={}",
    "ws://127.0.0.1/?token={}#x",
    "ws://127.0.0.1/?token={} x",
    "//127.0.0.1/?token={}",
    "ws:///?token={}",
    "ws://a..b/?token={}",
    "ws://127.0.0.1/?token={}\x01",
]
# What a server may do to a fork; all of it ends the fork or is tried again.
FAULTS = [
    Manner(accepts=False),
    Manner(raw_answer=b"garbage\r\n\r\n"),
    Manner(status=503),
    Manner(status=401),
    Manner(status=302, headers={"Location": "ws://127.0.0.1/?token=elsewhere"}),
    Manner(close_code=1011),
    Manner(close_code=4001),
]


async def end_of(ami: AmiClient, action_id: str) -> Headers:
    names = ("AudioForkFailed", "AudioForkStopped")
    return await ami.wait_event(
        lambda headers: headers.get("UserEvent") in names and headers.get("ActionID") == action_id,
    )


async def test_token_in_a_url_is_in_no_line_of_the_log(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, tmp_path: Path
) -> None:
    settings = {"log": "level = debug\n"}
    async with FaultyServer() as server:
        with Daemon(asterisk, settings) as daemon:
            target = await place_call(ami, caller)
            target.call.talk()
            for url in REFUSED_URLS:
                await failed(ami, start_fork(ami, target.channel, url.format(SECRET)))
            await failed(ami, start_fork(ami, "PJSIP/nobody-1", server.url(f"/?token={SECRET}")))
            for fault in FAULTS:
                server.manner = fault
                url = server.url(f"/?token={SECRET}")
                await end_of(ami, start_fork(ami, target.channel, url, "R(1)r(2)"))
            url = server.url(f"/?token={SECRET}").replace("ws:", "wss:")
            await end_of(ami, start_fork(ami, target.channel, url, "R(1)r(2)"))
            server.manner = Manner()
            await command_with_url(daemon, target.channel, server.url(f"/last?token={SECRET}"))
            await server.wait_messages(f"/last?token={SECRET}", 5)
            await target.call.hangup()
            await no_channels(ami)
            await asyncio.to_thread(daemon.stop)
            log = daemon.log()
    assert "DEBUG" in log
    assert f"127.0.0.1:{server.port}/?..." in log
    assert SECRET not in log
    assert "Traceback" not in log


async def command_with_url(daemon: Daemon, channel: str, url: str) -> None:
    """Start a fork by the command line, which reads the URL and shows it to nobody."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "audiofork", "start", channel, "-", "-c", str(daemon.config)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate(url.encode() + b"\n")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, output
    assert SECRET.encode() not in output
