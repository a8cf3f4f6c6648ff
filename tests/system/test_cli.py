"""The commands start, stop, mute, list and check beside a daemon on a real Asterisk."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
import sys
from contextlib import suppress
from itertools import pairwise

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import place_call, start_fork

pytestmark = pytest.mark.asterisk

SILENCE = bytes(320)


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"security": "allow_urls = ws://127.0.0.1 wss://*.example.org\nmax_forks = 50\n"}


async def told(daemon: Daemon, *arguments: str) -> tuple[int, str, str]:
    """Run a command beside the daemon; return its exit code, what it prints, and its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "audiofork", *arguments, "-c", str(daemon.config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(45):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def command(daemon: Daemon, *arguments: str) -> tuple[int, str]:
    """Run a command beside the daemon; return its exit code, and its errors or what it prints."""
    code, output, errors = await told(daemon, *arguments)
    return code, output if code == 0 else errors


async def forks(daemon: Daemon) -> list[dict[str, object]]:
    code, output = await command(daemon, "list", "--json")
    assert code == 0, output
    listed = json.loads(output)
    assert isinstance(listed, list)
    return listed


async def test_start_list_mute_stop_of_one_fork(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    url = recorder.url("/one?token=x")
    code, output = await command(
        daemon, "start", target.channel, url, "--options", "D(in)i(CLI_ID)"
    )
    fork_id = output.strip()
    assert code == 0, output
    recording = await recorder.wait_messages("/one?token=x", 10)
    assert await ami.variable(target.channel, "CLI_ID") == fork_id

    (fork,) = await forks(daemon)
    named = {"id": fork_id, "channel": target.channel, "uniqueid": target.uniqueid, "url": url}
    assert {name: fork[name] for name in named} == named
    assert (fork["state"], fork["direction"], fork["muted"]) == ("streaming", "in", "")
    assert isinstance(fork["frames_sent"], int)
    assert fork["frames_sent"] >= 10
    code, table = await command(daemon, "list")
    assert code == 0
    assert fork_id in table
    assert target.channel in table
    assert recorder.url("/one?...") in table
    assert "token" not in table

    assert await command(daemon, "mute", fork_id, "on") == (0, f"{fork_id}\n")
    position = len(recording.messages)
    await recorder.wait_messages("/one?token=x", position + 20)
    assert set(recording.messages[position + 3 : position + 20]) == {SILENCE}
    assert (await forks(daemon))[0]["muted"] == "both"
    assert await command(daemon, "mute", target.channel, "off") == (0, f"{fork_id}\n")
    position = len(recording.messages)
    await recorder.wait_messages("/one?token=x", position + 20)
    assert SILENCE not in recording.messages[position + 3 : position + 20]

    assert await command(daemon, "stop", fork_id) == (0, f"{fork_id}\n")
    await recorder.wait_closed("/one?token=x")
    assert (recording.close_code, recording.close_reason) == (1000, "stopped")
    assert await command(daemon, "list") == (0, "no forks\n")
    await target.call.hangup()


async def test_stop_of_a_channel_stops_all_its_forks_and_no_other(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    first, second = await place_call(ami, caller), await place_call(ami, caller)
    for target in (first, second):
        target.call.talk()
    ids = set()
    for path in ("/1", "/2"):
        code, output = await command(daemon, "start", first.uniqueid, recorder.url(path))
        assert code == 0, output
        ids.add(output.strip())
    start_fork(ami, second.channel, recorder.url("/other"))
    for path in ("/1", "/2", "/other"):
        await recorder.wait_messages(path, 5)
    code, output = await command(daemon, "stop", first.channel)
    assert (code, set(output.split())) == (0, ids)
    for path in ("/1", "/2"):
        await recorder.wait_closed(path)
    (other,) = await forks(daemon)
    assert other["channel"] == second.channel
    for target in (first, second):
        await target.call.hangup()


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://127.0.0.1/", "", "WsServer: the scheme must be ws or wss"),
        ("ws:///path", "", "WsServer: no host"),
        ("ws://u:p@127.0.0.1/", "", "WsServer: credentials are not allowed in a URL"),
        ("ws://127.0.0.1/#f", "", "WsServer: a fragment is not allowed"),
        (
            "ws://192.0.2.1/",
            "",
            "WsServer: not among the URLs of [security] allow_urls: name its server there",
        ),
        ("ws://127.0.0.1/\r\nAction: x", "", "WsServer: control characters are not allowed"),
        ("ws://127.0.0.1/", "D(up)", "Options: D takes in, out, both or stereo, not 'up'"),
        (
            "ws://127.0.0.1/",
            "Q",
            "Options: unknown option 'Q'; there are D T R r F L b B p P k v V W H A s M x c i S a",
        ),
        ("ws://127.0.0.1/", "D(in", "Options: missing closing parenthesis of option 'D'"),
        ("ws://127.0.0.1/", "S" * 60_000, "Options: longer than 4096 bytes"),
        ("ws://127.0.0.1/", "S" * 65_536, "the request is longer than 65536 bytes"),
    ],
)
async def test_refused_start_is_told_in_the_words_of_every_door_and_exits_with_1(
    daemon: Daemon, ami: AmiClient, caller: SipUser, url: str, options: str, words: str
) -> None:
    target = await place_call(ami, caller, "wait")
    answer = await command(daemon, "start", target.channel, url, "--options", options)
    assert answer == (1, f"audiofork: {words}\n")
    await target.call.hangup()


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "PJSIP/nobody-00000000", "ws://127.0.0.1/"],
        ["start", "1.1", "ws://127.0.0.1/"],
        ["stop", "PJSIP/nobody-00000000"],
        ["mute", "PJSIP/nobody-00000000", "on"],
    ],
)
async def test_channel_that_is_not_there_exits_with_1(daemon: Daemon, arguments: list[str]) -> None:
    assert await command(daemon, *arguments) == (
        1,
        f'audiofork: No such channel: {arguments[1]}; asterisk -rx "core show channels concise" '
        "lists the full names\n",
    )


@pytest.mark.parametrize("arguments", [["stop"], ["mute", "on"]], ids=["stop", "mute"])
async def test_beginning_of_an_id_that_the_log_shows_gets_the_whole_one_and_does_nothing(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder, arguments: list[str]
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    _, output = await command(daemon, "start", target.channel, recorder.url("/"))
    fork_id = output.strip()
    verb, *rest = arguments
    assert await command(daemon, verb, fork_id[:8], *rest) == (
        1,
        f"audiofork: No such fork {fork_id[:8]}; did you mean {fork_id}, on channel "
        f"{target.channel}?\n",
    )
    (fork,) = await forks(daemon)
    assert (fork["id"], fork["muted"]) == (fork_id, "")
    await target.call.hangup()


async def test_fork_that_is_not_there_exits_with_1(daemon: Daemon) -> None:
    fork_id = "3f2a91c0-0000-4000-8000-000000000001"
    assert await command(daemon, "stop", fork_id) == (
        1,
        f"audiofork: No such fork: {fork_id}; audiofork list shows all forks\n",
    )


async def test_watch_shows_frames_that_go_on_until_ctrl_c(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    start_fork(ami, target.channel, recorder.url("/watched"))
    await recorder.wait_messages("/watched", 5)
    watch = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "audiofork", "list", "--watch", "--json"),
        *("-c", str(daemon.config)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert watch.stdout is not None
    sent: list[int] = []
    async with asyncio.timeout(15):
        while len(sent) < 3:
            line = (await watch.stdout.readline()).decode()
            assert line, "it has ended"
            if "frames_sent" in line:
                sent.append(int(line.split(":")[1].strip(" ,\n")))
        watch.send_signal(signal.SIGINT)
        assert await watch.wait() == 0
    assert all(30 <= after - before <= 80 for before, after in pairwise(sent))
    await target.call.hangup()


async def test_bad_clients_of_the_socket_leave_a_fork_without_a_gap(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    """A hundred connections of garbage and one that asks a lot and reads nothing."""
    target = await place_call(ami, caller)
    target.call.talk()
    start_fork(ami, target.channel, recorder.url("/undisturbed"))
    recording = await recorder.wait_messages("/undisturbed", 5)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.connect(str(daemon.socket))
        deaf.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(10_000):
                deaf.send(b'{"Command": "ListAudioForks"}\n')
        answers = await asyncio.gather(*(garbage(daemon) for _ in range(100)))
        assert all(json.loads(line)["ok"] is False for answer in answers for line in answer)
        assert (await forks(daemon))[0]["state"] == "streaming"
    await recorder.wait_messages("/undisturbed", len(recording.messages) + 10)
    gaps_s = [after - before for before, after in pairwise(recording.times)]
    assert max(gaps_s) < 0.5
    await target.call.hangup()


async def garbage(daemon: Daemon) -> list[bytes]:
    """Send lines that make no sense, and one without an end; return the answers."""
    reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    writer.write(b"\x00\xff\n" + b"[" * 50_000 + b"\n{}\n" + b"x" * 65_600)
    async with asyncio.timeout(20):
        answers = (await reader.read()).splitlines()
    writer.close()
    assert len(answers) == 4
    return answers


async def test_second_daemon_leaves_the_socket_to_the_first_and_says_so(
    asterisk: Asterisk, daemon: Daemon
) -> None:
    with Daemon(asterisk, {"control": f"socket = {daemon.socket}\n"}) as second:
        assert f"[control] socket {daemon.socket}: another daemon listens there" in second.log()
        assert await command(daemon, "list") == (0, "no forks\n")
    assert await command(daemon, "list") == (0, "no forks\n")


async def test_socket_goes_with_the_daemon(asterisk: Asterisk) -> None:
    with Daemon(asterisk) as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
        daemon.stop()
        assert daemon.exit_code == 0
        assert not daemon.socket.exists()
        code, output = await command(daemon, "list")
        assert code == 4
        assert "No such file or directory; is it running" in output


async def test_socket_of_a_killed_daemon_is_replaced(asterisk: Asterisk) -> None:
    with Daemon(asterisk) as killed:
        killed.kill()
        code, output = await command(killed, "list")
        assert code == 4
        assert f"no daemon at {killed.socket}: Connection refused (no program" in output
        with Daemon(asterisk, {"control": f"socket = {killed.socket}\n"}) as daemon:
            assert await command(daemon, "list") == (0, "no forks\n")
        assert not killed.socket.exists()


async def test_asterisk_out_of_the_daemons_reach_exits_with_4(asterisk: Asterisk) -> None:
    with Daemon(
        asterisk,
        {"asterisk": f"port = {asterisk.ami_port}\nsecret = wrong\n"},
        waits_for="next try in 60 s",
    ) as daemon:
        code, output = await command(daemon, "start", "PJSIP/1-1", "ws://127.0.0.1/")
        assert code == 4
        assert "Asterisk refused the login of audiofork: Authentication failed" in output


@pytest.mark.serial  # the check judges the pace of audio
async def test_check_beside_a_daemon_with_a_fork_finds_no_fault_and_leaves_it_alone(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    start_fork(ami, target.channel, recorder.url("/checked"))
    recording = await recorder.wait_messages("/checked", 5)
    logged = len(daemon.log())
    position = len(ami.events)
    code, output = await command(daemon, "check")
    assert code == 0, output
    assert "ok    daemon: runs, 1 forks\n" in output
    assert recording.closed == 0
    raised = [headers.get("UserEvent") for _, headers in ami.events[position:]]
    assert "AudioForkFailed" not in raised
    assert "WARNING" not in daemon.log()[logged:]
    gaps_s = [after - before for before, after in pairwise(recording.times)]
    assert max(gaps_s) < 0.5
    await target.call.hangup()
