"""Connected calls whose daemon, server or Asterisk fails: each test has a daemon of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.server import ServerConnection

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, free_port
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon, dialplan, manager_conf
from testbed.proxy import Proxy
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.relay.peers import until
from tests.system.bots import BOT, call_bot, hear, went_on
from tests.system.conftest import (
    DIALPLAN,
    Target,
    channels,
    counts_blocks,
    no_channels,
    no_forks,
    place_call,
    set_globals,
)
from tests.system.servers import server
from tests.system.test_workers import workers_of

pytestmark = pytest.mark.asterisk


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


async def test_call_of_a_daemon_that_is_killed_goes_on_with_the_next_one_if_that_is_there_soon(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk) as daemon:
        target = await call_bot(ami, caller, recorder)
        await recorder.wait_messages("/bot", 50)
        daemon.kill()
        await asyncio.to_thread(daemon.start)
        await until(lambda: len(recorder.at("/bot")) == 2, 20)
        again = recorder.at("/bot")[1]
        await until(lambda: len(again.messages) > 100, 20)
        assert not any(h.get("UserEvent") == "Back" for _, h in ami.events)
        assert again.connection is not None
        await again.connection.close(1000, "thanks")
        back = await went_on(ami)
        assert (back["Status"], back["Why"]) == ("STOPPED", "sink-closed")
        await target.call.hangup()
        await no_channels(ami)


async def test_daemon_that_is_killed_lets_the_dialplan_go_on_and_the_next_one_leaves_it_alone(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk) as daemon:
        target = await call_bot(ami, caller, recorder)
        await recorder.wait_messages("/bot", 50)
        daemon.kill()
        back = await went_on(ami)
        assert (back["Status"], back["Why"]) == ("STOPPED", "no answer from the audiofork daemon")
        await asyncio.to_thread(daemon.start)
        await target.call.hangup()
        await no_channels(ami)
    assert len(recorder.at("/bot")) == 1


@pytest.mark.parametrize("count", [1, 3], ids=["once", "three times"])
async def test_call_goes_on_with_another_relay_process_when_its_own_is_killed(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder, count: int
) -> None:
    with Daemon(asterisk, {"relay": "workers = 2\n"}) as daemon:
        target = await call_bot(ami, caller, recorder)
        await recorder.wait_messages("/bot", 50)
        for number in range(1, count + 1):
            (leg,) = [name for name in await channels(ami) if name.startswith("AudioSocket/")]
            port = int(leg.partition(":")[2].partition("-")[0])
            os.kill(workers_of(daemon)[port], signal.SIGKILL)
            await until(lambda: len(recorder.at("/bot")) == number + 1, 20)  # noqa: B023 (awaited)
            again = recorder.at("/bot")[number]
            await until(lambda: len(again.messages) > 50, 20)  # noqa: B023
        resumed = await ami.wait_user_event("AudioForkResumed", Uniqueid=target.uniqueid)
        print(f"a gap of {resumed['GapMs']} ms")
        assert not any(h.get("UserEvent") == "Back" for _, h in ami.events)
        assert again.connection is not None
        await again.connection.close(1000, "thanks")
        back = await went_on(ami)
        assert (back["Status"], back["Why"]) == ("STOPPED", "sink-closed")
        await target.call.hangup()
        await no_channels(ami)
        assert "Traceback" not in daemon.log()


@counts_blocks
@pytest.mark.parametrize("how", ["killed", "upgraded"])
async def test_caller_and_server_hear_each_other_whole_while_the_daemon_is_away(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, tmp_path: Path, how: str
) -> None:
    """With relay processes that outlive it: even the server's own end is acted on afterwards."""
    spoken = make_blocks(400, seed=1)
    settings = {"relay": f"detached = yes\nfolder = {tmp_path}\norphan_timeout = 10\n"}
    ends = asyncio.Event()

    async def behave(connection: ServerConnection) -> None:
        await echo_binary(connection, ends)

    with Daemon(asterisk, settings) as daemon:
        async with server(behave) as url:
            await set_globals(ami, BOT_URL=url, BOT_OPTIONS="")
            target = await place_call(ami, caller, "bot")
            target.call.recording = True
            await target.call.play(make_blocks(50, seed=2))
            speaking = target.call.play(spoken)
            await asyncio.sleep(1)
            if how == "killed":
                daemon.kill()
            else:
                daemon.signal(signal.SIGUSR1)
                await asyncio.to_thread(daemon.stop)
            await asyncio.sleep(2)
            position = len(ami.events)
            await asyncio.to_thread(daemon.start)
            await ami.wait_user_event("AudioForkStarted", after=position)
            await speaking
            await hear(target, spoken[-1], make_blocks(25, seed=2))
            assert not [one for _, one in ami.events if one.get("UserEvent") == "Back"]
            ends.set()
            back = await went_on(ami)
            assert (back["Status"], back["Why"]) == ("STOPPED", "sink-closed")
        audio = decode(target.call.received_audio())
        await target.call.hangup()
        await no_channels(ami)
        await asyncio.to_thread(daemon.stop)
        assert "Traceback" not in daemon.log()
    blocks = [decode(block) for block in spoken]
    assert report(find_blocks(audio, blocks), 400).intact


async def echo_binary(connection: ServerConnection, ends: asyncio.Event) -> None:
    """Send all audio back, until told to close."""
    ending = asyncio.ensure_future(ends.wait())
    try:
        while True:
            receiving = asyncio.ensure_future(connection.recv())
            await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)
                return
            message = receiving.result()
            if isinstance(message, bytes):
                await connection.send(message)
    finally:
        ending.cancel()


async def test_daemon_that_is_not_there_lets_the_dialplan_go_on_after_2_s(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    await set_globals(ami, BOT_URL="ws://127.0.0.1:1/", BOT_OPTIONS="")
    target = await place_call(ami, caller, "bot")
    back = await went_on(ami)
    assert (back["Status"], back["Why"]) == ("FAILED", "no answer from the audiofork daemon")
    await target.call.hangup()
    await no_channels(ami)


async def test_daemon_that_stops_and_keeps_forks_lets_the_dialplan_go_on(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk, {"daemon": "on_stop = keep\n"}) as daemon:
        target = await call_bot(ami, caller, recorder)
        await recorder.wait_messages("/bot", 50)
        await asyncio.to_thread(daemon.stop)
        assert (await went_on(ami))["Status"] == "STOPPED"
        await target.call.hangup()
        await no_channels(ami)


async def hears(target: Target, anything: bool) -> None:
    """Wait until the caller hears the server, or nothing but silence, for a tenth of a second."""
    call = target.call
    async with asyncio.timeout(20):
        while True:
            since = len(call.received_audio())
            await call.wait_received(call.rtp.packets_received + 5)
            heard = decode(call.received_audio()[since:])
            if heard and any(heard) == anything:
                return


async def quiet(connection: ServerConnection) -> None:
    await connection.wait_closed()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_server_that_breaks_off_and_returns_is_silence_in_between(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    with Daemon(asterisk):
        async with server(echo) as url, Proxy(("127.0.0.1", port_of(url))) as proxy:
            await set_globals(ami, BOT_URL=proxy.ws_url(), BOT_OPTIONS="R(1)r(30)")
            position = len(ami.events)
            target = await place_call(ami, caller, "bot")
            target.call.recording = True
            target.call.talk()
            await hears(target, anything=True)
            proxy.refuse()
            proxy.cut()
            await ami.wait_user_event("AudioForkReconnecting", Uniqueid=target.uniqueid)
            await hears(target, anything=False)
            proxy.accept()
            await hears(target, anything=True)
            assert not any(h.get("UserEvent") == "Back" for _, h in ami.events[position:])
            await target.call.hangup()
            await no_channels(ami)


PROFILE = "url = {}\noptions = R(1)r(30)\nmusic = default\n"


async def hears_music(ami: AmiClient, caller: SipUser, proxy: Proxy) -> Target:
    """Call the server of the profile, and lose it; return once the caller hears the music."""
    await set_globals(ami, BOT_URL="@bot", BOT_OPTIONS="")
    target = await place_call(ami, caller, "bot")
    target.call.recording = True
    target.call.talk()
    await ami.wait_user_event("AudioForkStarted", Uniqueid=target.uniqueid)
    await hears(target, anything=False)
    proxy.refuse()
    proxy.cut()
    await hears(target, anything=True)
    return target


def players(asterisk: Asterisk) -> list[str]:
    return [line for line in asterisk.cli("core show channels").splitlines() if "music@" in line]


async def test_caller_hears_the_profile_s_music_until_the_server_is_back(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    async with server(quiet) as url, Proxy(("127.0.0.1", port_of(url))) as proxy:
        profile = {"profile:bot": PROFILE.format(proxy.ws_url())}
        with Daemon(asterisk, profile):
            records = len(asterisk.cdr_rows())
            target = await hears_music(ami, caller, proxy)
            assert players(asterisk)
            proxy.accept()
            await hears(target, anything=False)
            assert not players(asterisk)
            await target.call.hangup()
            await no_channels(ami)
            await until(lambda: len(asterisk.cdr_rows()) == records + 1)


async def test_music_of_a_killed_daemon_is_hung_up_by_the_next_one(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    async with server(quiet) as url, Proxy(("127.0.0.1", port_of(url))) as proxy:
        profile = {"profile:bot": PROFILE.format(proxy.ws_url())}
        fixed = {"audiosocket": f"listen = 127.0.0.1:{free_port(socket.SOCK_STREAM)}\n"}
        with Daemon(asterisk, profile | fixed) as daemon:
            target = await hears_music(ami, caller, proxy)
            daemon.kill()
            await went_on(ami)
            assert players(asterisk)
            position = len(ami.events)
            await asyncio.to_thread(daemon.start)
            await ami.wait_event(
                lambda h: h.get("Event") == "Hangup" and h["Channel"].startswith("Local/music@"),
                after=position,
            )
            assert not target.call.ended.is_set()
            await target.call.hangup()
            await no_channels(ami)


async def test_server_that_breaks_off_and_stays_away_lets_the_dialplan_go_on(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    with Daemon(asterisk):
        async with server(echo) as url, Proxy(("127.0.0.1", port_of(url))) as proxy:
            await set_globals(ami, BOT_URL=proxy.ws_url(), BOT_OPTIONS="R(1)r(1)")
            target = await place_call(ami, caller, "bot")
            target.call.recording = True
            target.call.talk()
            await hears(target, anything=True)
            proxy.refuse()
            proxy.cut()
            back = await went_on(ami)
            assert (back["Status"], back["Why"]) == ("STOPPED", "sink-gone")
            await target.call.hangup()
            await no_channels(ami)


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_restarted_asterisk_ends_the_forks_and_the_next_call_has_a_server_again(
    asterisk: Asterisk, recorder: Recorder, killed: bool
) -> None:
    with Daemon(asterisk) as daemon:
        async with called(asterisk, recorder, "/before"):
            if killed:
                await asyncio.to_thread(asterisk.kill)
            await asyncio.to_thread(asterisk.restart)
        await recorder.wait_closed("/before", timeout_s=20)
        await no_forks(daemon)
        await daemon.says("connected to Asterisk", times=2)
        async with called(asterisk, recorder, "/after") as target:
            await target.call.hangup()
        await recorder.wait_closed("/after")
        await no_forks(daemon)
        assert "Traceback" not in daemon.log()


@contextlib.asynccontextmanager
async def called(asterisk: Asterisk, recorder: Recorder, path: str) -> AsyncIterator[Target]:
    """Place a call with a server; yield it when the server hears it."""
    async with (
        AmiClient(asterisk) as ami,
        SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
    ):
        await set_globals(ami, BOT_URL=recorder.url(path), BOT_OPTIONS="")
        target = await place_call(ami, caller, "bot")
        target.call.talk()
        await recorder.wait_messages(path, 25)
        yield target


def port_of(url: str) -> int:
    """Return the port of a URL."""
    port = urlsplit(url).port
    assert port is not None
    return port
