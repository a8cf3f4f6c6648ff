"""Calls whose other party is a WebSocket server: `connect`, on the real Asterisk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request

from audiofork.doors.control_client import Client
from audiofork.errors import RequestRefused
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon, ari_conf, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.bots import BOT, call_bot, went_on
from tests.system.conftest import DIALPLAN, no_channels, place_call, set_globals

pytestmark = pytest.mark.asterisk


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + BOT + dialplan(), config=config) as one:
        yield one


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"security": "allow_speak = ws://127.0.0.1\n"}


async def test_server_that_closes_lets_the_dialplan_go_on(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await call_bot(ami, caller, recorder)
    recording = await recorder.wait_messages("/bot", 50)
    assert recording.connection is not None
    await recording.connection.close(1000, "thanks")
    back = await went_on(ami)
    assert (back["Status"], back["Why"]) == ("STOPPED", "sink-closed")
    await target.call.hangup()
    await no_channels(ami)


async def test_caller_that_hangs_up_ends_the_server_s_connection(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await call_bot(ami, caller, recorder)
    await recorder.wait_messages("/bot", 50)
    await target.call.hangup()
    recording = await recorder.wait_closed("/bot")
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
    assert stopped["Reason"] == "hangup"


async def test_other_fork_of_the_call_does_not_end_the_wait_for_a_slow_server(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    async def wait(_connection: ServerConnection, _request: Request) -> None:
        await asyncio.sleep(0.7)  # meanwhile the other fork streams

    async def close_soon(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close()

    async with serve(close_soon, "127.0.0.1", 0, process_request=wait) as bot:
        url = f"ws://127.0.0.1:{bot.sockets[0].getsockname()[1]}/"
        await set_globals(ami, BOT_URL=url, BOT_OPTIONS="", COPY_URL=recorder.url("/copy"))
        target = await place_call(ami, caller, "bot-and-copy")
        target.call.talk()
        back = await went_on(ami)
    assert (back["Status"], back["Why"]) == ("STOPPED", "sink-closed")
    await target.call.hangup()


@pytest.mark.parametrize(
    ("takes_s", "status", "why", "reason"),
    [
        (0.5, "STOPPED", "sink-closed", "sink-closed"),
        (2.5, "FAILED", "the server was not there in time", "stopped"),
    ],
)
async def test_server_is_waited_for_as_long_as_the_dialplan_says_and_is_not_wanted_later(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    takes_s: float,
    status: str,
    why: str,
    reason: str,
) -> None:
    async def wait(_connection: ServerConnection, _request: Request) -> None:
        await asyncio.sleep(takes_s)

    async def close_soon(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close()

    async with serve(close_soon, "127.0.0.1", 0, process_request=wait) as bot:
        url = f"ws://127.0.0.1:{bot.sockets[0].getsockname()[1]}/"
        await set_globals(ami, BOT_URL=url, BOT_OPTIONS="")
        target = await place_call(ami, caller, "bot-in-time")
        target.call.talk()
        back = await went_on(ami)
        assert (back["Status"], back["Why"]) == (status, why)
        stopped = await ami.wait_user_event("AudioForkStopped", Uniqueid=target.uniqueid)
        assert stopped["Reason"] == reason
    await target.call.hangup()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ws://127.0.0.1:1/", "sink-gone"),
        ("ws://203.0.113.1/", "WsServer: "),
        ("nonsense", "WsServer: "),
    ],
)
async def test_server_that_is_not_there_lets_the_dialplan_go_on_at_once(
    daemon: Daemon, ami: AmiClient, caller: SipUser, url: str, why: str
) -> None:
    await set_globals(ami, BOT_URL=url, BOT_OPTIONS="r(0)")
    target = await place_call(ami, caller, "bot")
    back = await went_on(ami)
    assert back["Status"] == "FAILED"
    assert back["Why"].startswith(why)
    await target.call.hangup()


async def test_stop_by_another_door_lets_the_dialplan_go_on(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await call_bot(ami, caller, recorder)
    await recorder.wait_messages("/bot", 20)
    with Client(daemon.socket) as client:
        await asyncio.to_thread(client.stop, target.uniqueid)
    assert (await went_on(ami))["Why"] == "stopped"
    await target.call.hangup()


async def test_server_that_does_not_answer_the_close_does_not_hold_the_call_up(
    daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    over = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.pause_reading()
        await over.wait()
        connection.transport.abort()

    async with serve(deaf, "127.0.0.1", 0) as bot:
        url = f"ws://127.0.0.1:{bot.sockets[0].getsockname()[1]}/"
        await set_globals(ami, BOT_URL=url, BOT_OPTIONS="")
        target = await place_call(ami, caller, "bot")
        target.call.talk()
        await ami.wait_user_event("AudioForkStarted", Uniqueid=target.uniqueid)
        began = asyncio.get_running_loop().time()
        try:
            with Client(daemon.socket) as client:
                await asyncio.to_thread(client.stop, target.uniqueid)
            assert (await went_on(ami))["Why"] == "stopped"
            assert asyncio.get_running_loop().time() - began < 0.5
        finally:
            over.set()
    await target.call.hangup()


async def test_direction_that_a_connected_server_cannot_have_is_refused(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    await set_globals(ami, BOT_URL=recorder.url("/bot"), BOT_OPTIONS="D(stereo)")
    target = await place_call(ami, caller, "bot")
    back = await went_on(ami)
    assert back["Why"].startswith("Options: D(stereo): a connected server gets what the party says")
    await target.call.hangup()


@pytest.mark.parametrize("after", ["", "testbed,next,1"])
async def test_call_that_is_led_to_a_server_goes_on_where_it_was_told(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, after: str
) -> None:
    target = await place_call(ami, caller, "echo")
    target.call.talk()
    if after:
        await ami.action("Setvar", Channel=target.channel, Variable="AUDIOFORK_NEXT", Value=after)
    with Client(daemon.socket) as client:
        url = recorder.url("/bot")
        await asyncio.to_thread(client.start, target.channel, url, Command="ConnectAudioFork")
    recording = await recorder.wait_messages("/bot", 50)
    assert recording.connection is not None
    await recording.connection.close()
    if after:
        await ami.wait_event(lambda h: h.get("UserEvent") == "Next")
        await target.call.hangup()
    else:
        await target.call.wait_ended()


async def test_channel_with_a_server_gets_no_second_one(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await call_bot(ami, caller, recorder)
    await recorder.wait_messages("/bot", 20)
    url = recorder.url("/other")
    with Client(daemon.socket) as client, pytest.raises(RequestRefused, match="connected already"):
        await asyncio.to_thread(client.start, target.channel, url, Command="ConnectAudioFork")
    await target.call.hangup()
