"""Requests by the thousand, a fork that the daemon does not outlive, and what the journal keeps.

All on the real Asterisk, each test with a daemon of its own.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from audiofork.doors.control_client import Client
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.attacks.starts import FLOODS, REQUESTER, flood
from testbed.daemon import Daemon, ari_conf, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import DIALPLAN, no_channels, place_call, start_fork
from tests.system.journals import in_journal, until

pytestmark = pytest.mark.asterisk

FLOOD_A_SECOND = 1500  # what a machine stands that runs other tests beside


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    """An Asterisk of this module's own, with a user who may do no more than raise user events."""
    config = {"manager.conf": manager_conf() + REQUESTER, "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + dialplan(), config=config) as one:
        yield one


@pytest.mark.parametrize("name", FLOODS)
async def test_flood_of_requests_by_ami_holds_up_no_start_by_another_door(
    asterisk: Asterisk,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    name: str,
) -> None:
    with Daemon(asterisk) as daemon:
        target = await place_call(ami, caller)
        target.call.talk()
        await ami.action("Events", EventMask="off")
        log = len(daemon.log())
        async with flood(asterisk, FLOODS[name](target.channel), FLOOD_A_SECOND) as sent:
            await asyncio.sleep(1)
            for number in range(3):
                await asyncio.to_thread(start, daemon, target.channel, recorder.url(f"/{number}"))
                await recorder.wait_messages(f"/{number}", 1)
            assert sent.count > FLOOD_A_SECOND
        assert len(daemon.log()) - log < 10_000
        await ami.action("Events", EventMask="on")
        await target.call.hangup()
        await no_channels(ami)
        assert "no connection to Asterisk" not in daemon.log()


def start(daemon: Daemon, channel: str, url: str) -> None:
    with Client(daemon.socket) as client:
        client.start(channel, url, Options="D(in)")


# --- The journal ---------------------------------------------------------------------------------


async def test_url_of_a_fork_that_has_ended_is_in_no_byte_of_the_journal(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk) as daemon:
        target = await place_call(ami, caller)
        target.call.talk()
        for token in ("hunter2", "stays"):
            start_fork(ami, target.channel, recorder.url(f"/{token}?token={token}"))
            await recorder.wait_messages(f"/{token}?token={token}", 1)
        await until(daemon, "token=hunter2", is_there=True)
        with Client(daemon.socket) as client:
            forks = await asyncio.to_thread(client.forks)
            ended = next(fork["id"] for fork in forks if fork["url"].endswith("hunter2"))
            await asyncio.to_thread(client.stop, ended)
        await until(daemon, "token=hunter2", is_there=False)
        assert in_journal(daemon, "token=stays")
        await target.call.hangup()
        await until(daemon, "token=stays", is_there=False)
        await no_channels(ami)


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """Yield the URL of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"ws://127.0.0.1:{server.getsockname()[1]}/"


async def test_fork_that_was_being_started_when_the_daemon_died_twice_is_not_taken_up_again(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    async with silent_server() as url:
        with Daemon(asterisk, {"websocket": "connect_timeout = 60\n"}) as daemon:
            target = await place_call(ami, caller)
            target.call.talk()
            start_fork(ami, target.channel, recorder.url("/good"))
            await recorder.wait_messages("/good", 5)
            start_fork(ami, target.channel, url)
            for attempts in (1, 2):
                await streams_to_connection(recorder, "/good", attempts)
                entry = re.escape(url) + f'.{{1,300}}"attempts": {attempts}'
                await until(daemon, entry, is_there=True)
                daemon.kill()
                await asyncio.to_thread(daemon.start)
            await daemon.says(
                "not resumed: the daemon died 2 times in a row while it was being started"
            )
            stopped = await ami.wait_user_event("AudioForkStopped", WsServer=url)
            assert stopped["Detail"].startswith("not resumed: the daemon died 2 times")
            await streams_to_connection(recorder, "/good", 3)
            await target.call.hangup()
            await no_channels(ami)
    assert len(recorder.at("/good")) == 3


async def streams_to_connection(recorder: Recorder, path: str, count: int) -> None:
    """Wait until audio comes over the connection of this number; a kill before it would skip it."""
    await recorder.wait(lambda one: recorder.at(path)[count - 1 :] == [one] and bool(one.messages))
