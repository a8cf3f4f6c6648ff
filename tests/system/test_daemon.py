"""The daemon's own start and end; each test runs daemons of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import (
    channels,
    counts_blocks,
    needs_whole_in,
    only_channels,
    place_call,
    start_fork,
    start_fork_heard,
)

pytestmark = pytest.mark.asterisk


async def test_sigterm_ends_forks_in_order(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    with Daemon(asterisk) as daemon:
        action_ids = []
        for number in range(10):
            action_ids.append(start_fork(ami, target.channel, recorder.url(f"/{number}")))
            await recorder.wait_messages(f"/{number}", 5)
        took_s = await asyncio.to_thread(daemon.stop)
        assert daemon.exit_code == 0
    print(f"stopped after {took_s:.1f} s, 3 are allowed")
    for number in range(10):
        recording = await recorder.wait_closed(f"/{number}")
        assert (recording.close_code, recording.close_reason) == (1001, "shutdown")
    for action_id in action_ids:
        stopped = await ami.wait_user_event("AudioForkStopped", ActionID=action_id)
        assert stopped["Reason"] == "shutdown"
    await only_channels(ami, target.channel)
    await target.call.hangup()


async def test_sigterm_does_not_wait_for_a_server_that_answers_nothing(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    """The server takes the TCP connection and says no word, so the handshake is under way."""
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    target = await place_call(ami, caller)
    target.call.talk()
    with Daemon(asterisk) as daemon:
        start_fork(ami, target.channel, f"ws://127.0.0.1:{port}/")
        await asyncio.sleep(0.5)
        took_s = await asyncio.to_thread(daemon.stop)
        assert daemon.exit_code == 0  # else it was killed, after 10 s
    print(f"stopped after {took_s:.1f} s, 3 are allowed")
    silent.close()
    await target.call.hangup()


async def test_start_sweeps_the_legs_that_a_killed_daemon_left(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """A target without media keeps the leg of a daemon that was killed, until media flows."""
    target = await place_call(ami, caller, "wait")
    with Daemon(asterisk) as daemon:
        port = daemon.audiosocket_port
        start_fork(ami, target.channel, recorder.url("/"), "D(in)")
        await ami.wait_event(lambda headers: headers.get("Event") == "ChanSpyStart")
        daemon.kill()
    assert any(name.startswith("AudioSocket/") for name in await channels(ami))
    settings = {"audiosocket": f"listen = 127.0.0.1:{port}\n"}
    with Daemon(asterisk, settings) as daemon:
        await daemon.says("hung up 1 legs that an earlier run left behind")
        target.call.talk()
        await only_channels(ami, target.channel)
        await target.call.hangup()


async def test_more_forks_than_max_forks_are_refused(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    with Daemon(asterisk, {"security": "max_forks = 1\n"}):
        target = await place_call(ami, caller)
        target.call.talk()
        start_fork(ami, target.channel, recorder.url("/"))
        await recorder.wait_messages("/", 5)
        action_id = start_fork(ami, target.channel, recorder.url("/refused"))
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
        assert failed["Reason"] == "1 forks run already (max_forks)"
        await target.call.hangup()


@needs_whole_in()
@counts_blocks
async def test_wss_with_an_authority_of_ones_own_carries_the_audio(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_tls)
    target = await place_call(ami, caller)
    async with Recorder(server_tls) as recorder:
        with Daemon(asterisk, {"websocket": f"ca_list_file = {tmp_path}/ca.pem\n"}):
            await start_fork_heard(ami, target, recorder.url("/"), "D(in)")
            blocks = make_blocks(100, seed=12)
            await target.call.play(blocks + make_blocks(25, seed=11))
            await target.call.hangup()
            recording = await recorder.wait_closed("/")
    assert (recording.close_code, recording.close_reason) == (1000, "hangup")
    assert report(find_blocks(recording.audio, [decode(block) for block in blocks]), 100).intact


@pytest.mark.parametrize("workers", [1, 2])
async def test_files_of_option_t_are_those_of_tls_dir(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, tmp_path: Path, workers: int
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "2026.pem")
    (tmp_path / "ca.pem").symlink_to("2026.pem")
    os.mkfifo(tmp_path / "pipe")
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_tls)
    target = await place_call(ami, caller)
    target.call.talk()
    settings = {"security": f"tls_dir = {tmp_path}\n", "relay": f"workers = {workers}\n"}
    async with Recorder(server_tls) as recorder:
        with Daemon(asterisk, settings):
            start_fork(ami, target.channel, recorder.url("/"), "D(in)T(ca=ca.pem)")
            await recorder.wait_messages("/", 20)
            for name, why in (
                ("pipe", "not a regular file"),
                ("none", "No such file or directory"),
            ):
                bad = start_fork(ami, target.channel, recorder.url("/bad"), f"D(in)T(ca={name})")
                failed = await ami.wait_user_event("AudioForkFailed", ActionID=bad)
                assert failed["Reason"] == "sink-refused"
                text = f"Options: T: the authorities of {tmp_path}/{name} cannot be used: {why}"
                assert failed["Detail"] == text
            await target.call.hangup()
            recording = await recorder.wait_closed("/")
    assert recording.close_reason == "hangup"
    assert recorder.at("/bad") == []


async def test_wss_with_an_unknown_authority_is_refused_and_names_the_check(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser
) -> None:
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(server_tls)
    target = await place_call(ami, caller)
    async with Recorder(server_tls) as recorder:
        with Daemon(asterisk):
            action_id = start_fork(ami, target.channel, recorder.url("/"))
            failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
    assert failed["Reason"] == "sink-refused"
    assert ": certificate not accepted: " in failed["Detail"]
    await target.call.hangup()


async def test_sighup_takes_the_new_settings_and_a_bad_file_changes_nothing(
    asterisk: Asterisk, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    with Daemon(asterisk) as daemon:
        good = daemon.config.read_text()
        daemon.config.write_text(good + "[security]\nallow_urls = wss://example.org\n")
        await daemon.reload("reloaded")
        action_id = start_fork(ami, target.channel, recorder.url("/"))
        failed = await ami.wait_user_event("AudioForkFailed", ActionID=action_id)
        assert "allow_urls" in failed["Reason"]
        daemon.config.write_text(good + "[security]\nallow_ruls = *\n")
        await daemon.reload("not reloaded, the old configuration stays")
        daemon.config.write_text(good)
        await daemon.reload("INFO    reloaded", times=2)
        start_fork(ami, target.channel, recorder.url("/"))
        await recorder.wait_messages("/", 5)
        await target.call.hangup()


async def test_what_a_configuration_leaves_open_is_said_at_the_start_and_at_a_reload(
    asterisk: Asterisk,
) -> None:
    said = "allow_urls names no host"
    with Daemon(asterisk) as daemon:
        assert said not in daemon.log()
        good = daemon.config.read_text()
        daemon.config.write_text(good + "[security]\nallow_urls = wss://*\n")
        await daemon.reload(said)
        await asyncio.to_thread(daemon.stop)
        await asyncio.to_thread(daemon.start)
        assert daemon.log().count(said) == 2


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("path", ["/dev/ptmx", "/dev/zero", "pipe", "big"])
async def test_sighup_with_a_file_that_is_none_changes_nothing_and_audio_flows_on(
    asterisk: Asterisk,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    tmp_path: Path,
    workers: int,
    path: str,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"#" * (2 << 20))
    target = await place_call(ami, caller)
    target.call.talk()
    with Daemon(asterisk, {"relay": f"workers = {workers}\n"}) as daemon:
        start_fork(ami, target.channel, recorder.url("/"), "D(in)S")
        count = len((await recorder.wait_messages("/", 5)).messages)
        good = daemon.config.read_text()
        refused = "not reloaded, the old configuration stays"
        for number, option in enumerate(("ca_list_file", "cert_file"), 1):
            daemon.config.write_text(f"{good}[websocket]\n{option} = {tmp_path / path}\n")
            await daemon.reload(refused, times=number)
        daemon.config.write_text(good.replace("secret = ", f"secret_file = {tmp_path / path}\n;"))
        await daemon.reload(refused, times=3)
        await recorder.wait_messages("/", count + 20)
        start_fork(ami, target.channel, recorder.url("/after"), "D(in)S")
        await recorder.wait_messages("/after", 5)
        await target.call.hangup()
    assert daemon.exit_code == 0


async def test_refused_login_is_said_with_what_to_do(asterisk: Asterisk) -> None:
    settings = {"asterisk": f"port = {asterisk.ami_port}\nsecret = wrong\n"}
    daemon = Daemon(asterisk, settings, waits_for="next try in 60 s")
    with daemon:
        assert "Asterisk refused the login of audiofork: Authentication failed" in daemon.log()
        assert "check [asterisk] username and secret" in daemon.log()
        assert "wrong" not in daemon.log()


async def test_daemon_without_an_asterisk_says_so_and_waits(asterisk: Asterisk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = {"asterisk": f"port = {port}\nsecret = any\n"}
    with Daemon(asterisk, settings, waits_for="no connection to Asterisk at 127.0.0.1") as daemon:
        assert daemon.exit_code is None
        assert daemon.stop() < 1
        assert daemon.exit_code == 0


async def test_systemd_hears_of_the_start_the_link_and_the_stop(
    asterisk: Asterisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        with Daemon(asterisk):
            heard = {systemd.recv(200).decode() for _ in range(3)}
        assert {"READY=1", "WATCHDOG=1"} < heard
        (status,) = [line for line in heard if line.startswith("STATUS=connected to Asterisk ")]
        assert asterisk.installation.version in status
        assert systemd.recv(200) == b"STOPPING=1"
