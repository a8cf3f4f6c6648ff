"""Forks of real calls through proxies that others wrote, by two relay processes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from audiofork.doors.control_client import Client
from testbed.ami import AmiClient
from testbed.asterisk import free_port
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.real_proxies import real_proxy
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.relay.conftest import server_tls
from tests.system.conftest import counts_blocks, needs_whole_in, place_call, start_fork

pytestmark = [pytest.mark.asterisk, pytest.mark.usefixtures("daemon")]

PASSWORD = "hunter2"
LOGIN = f"pbx:{PASSWORD}"
BLOCKS = make_blocks(200, seed=71)
HEARD = [decode(block) for block in BLOCKS]
WARM_UP = make_blocks(50, seed=72)
# For the profile whose proxy nobody is.
DEAD = "socks5://127.0.0.1:1"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module", params=["http", "socks5"])
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with real_proxy(request.param, tmp_path_factory.mktemp("proxy"), LOGIN) as url:
        yield url


@pytest.fixture(scope="module")
def settings(
    proxy: str, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("settings")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "login").write_text(LOGIN)
    return {
        "audiosocket": f"listen = 127.0.0.1:{free_port(socket.SOCK_STREAM, 2)}\n",
        "relay": "workers = 2\n",
        "websocket": f"ca_list_file = {folder}/ca.pem\nproxy = {proxy}\nno_proxy =\n"
        f"proxy_login_file = {folder}/login\n",
        "profile:dead": f"url = ws://server.invalid/\nproxy = {DEAD}\nproxy_login = {LOGIN}\n",
    }


def no_secret_in(*texts: str) -> None:
    for text in texts:
        assert PASSWORD not in text


@needs_whole_in()
@counts_blocks
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_audio_comes_bit_exact_through_the_proxy_by_the_name_of_the_server(
    ami: AmiClient, caller: SipUser, daemon: Daemon, authority: trustme.CA, scheme: str
) -> None:
    tls = server_tls(authority.issue_cert("localhost")) if scheme == "wss" else None
    async with Recorder(tls) as recorder:
        target = await place_call(ami, caller)
        url = f"{scheme}://localhost:{recorder.port}/"
        action_id = start_fork(ami, target.channel, url, "D(in)")
        await target.call.play(WARM_UP)
        await target.call.play(BLOCKS + WARM_UP[:10])
        connected = recorder.recordings[0].connection
        assert connected is not None
        assert connected.remote_address[1] not in _ports_of(daemon), "it is the proxy's connection"
        await target.call.hangup()
        recording = await recorder.wait_closed("/")
        stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
    assert report(find_blocks(recording.audio, HEARD), len(BLOCKS)).intact
    assert stopped["FramesDropped"] == "0"
    no_secret_in(daemon.log(), json.dumps(stopped))


def _ports_of(daemon: Daemon) -> set[int]:
    """Return the local ports of TCP connections of the daemon's own processes."""
    inodes = set()
    for pid in [daemon.pid, *_children_of(daemon.pid)]:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(link.readlink()).removeprefix("socket:[").rstrip("]"))
            except OSError:  # closed meanwhile
                continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[9] in inodes}


def _children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_proxy_of_a_profile_that_is_not_there_is_told_without_its_login(
    ami: AmiClient, caller: SipUser, daemon: Daemon
) -> None:
    target = await place_call(ami, caller)
    action_id = start_fork(ami, target.channel, "@dead", "D(in)")
    lost = await ami.wait_user_event("AudioForkReconnecting", ActionID=action_id)
    expected = f"ws://server.invalid (by the proxy {DEAD}): the proxy: Connection refused"
    assert lost["Reason"].startswith(expected)
    with Client(daemon.socket) as client:
        listed = await asyncio.to_thread(client.forks)
    assert listed[0]["last_error"].startswith(expected)
    await target.call.hangup()
    no_secret_in(daemon.log(), json.dumps(listed), json.dumps(lost), *_command_lines(daemon))


def _command_lines(daemon: Daemon) -> list[str]:
    processes = [daemon.pid, *_children_of(daemon.pid)]
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes]
