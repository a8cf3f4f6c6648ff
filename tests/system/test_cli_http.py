"""The commands over HTTPS, beside a daemon on a real Asterisk."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path

import pytest
import trustme

from testbed.ami import AmiClient
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import place_call

pytestmark = pytest.mark.asterisk

SILENCE = bytes(320)
TOKEN = "0123456789abcdefghij"
NOWHERE = "ws://127.0.0.1:1/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens, a certificate, and the authority that has signed it."""
    path = tmp_path_factory.mktemp("http")
    (path / "tokens").touch(0o600)
    (path / "tokens").write_text(f"operator control {TOKEN}\n")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path / "cert")
    return path


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = f"127.0.0.1:{server.getsockname()[1]}"
    (folder / "url").write_text(f"https://{listen}")
    http = f"listen = {listen}\ntokens_file = {folder}/tokens\ncert_file = {folder}/cert\n"
    return {"http": http}


@pytest.fixture(autouse=True)
def variables(folder: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator on another host has in his environment."""
    monkeypatch.setenv("AUDIOFORK_URL", (folder / "url").read_text())
    monkeypatch.setenv("AUDIOFORK_TOKEN_FILE", str(folder / "tokens"))
    monkeypatch.setenv("AUDIOFORK_CA_FILE", str(folder / "ca.pem"))


async def told(*arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit code, what it prints, and its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "audiofork", *arguments),
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


async def test_start_list_mute_stop_and_history_of_one_fork(
    ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    url = recorder.url("/one?token=x")
    code, output, errors = await told("start", target.channel, url, "--options", "D(in)")
    fork_id = output.strip()
    assert code == 0, errors
    assert f"fork {fork_id[:8]} streams, " in errors
    recording = await recorder.wait_messages("/one?token=x", 10)

    code, output, _ = await told("list", "--json")
    (fork,) = json.loads(output)
    named = {"id": fork_id, "channel": target.channel, "uniqueid": target.uniqueid}
    assert {name: fork[name] for name in named} == named
    assert (fork["state"], fork["direction"], fork["muted"]) == ("streaming", "in", "")
    assert "token" not in fork["url"]

    assert await told("mute", target.channel, "on") == (0, f"{fork_id}\n", "")
    position = len(recording.messages)
    await recorder.wait_messages("/one?token=x", position + 20)
    assert set(recording.messages[position + 3 : position + 20]) == {SILENCE}

    assert await told("stop", target.uniqueid) == (0, f"{fork_id}\n", "")
    await recorder.wait_closed("/one?token=x")
    assert (recording.close_code, recording.close_reason) == (1000, "stopped")
    async with asyncio.timeout(20):  # a list may be half a second old
        while await told("list") != (0, "no forks\n", ""):
            pass
    code, output, _ = await told("history", fork_id, "--json")
    entry = json.loads(output)
    assert (code, entry["reason"], entry["channel"]) == (0, "stopped", target.channel)
    assert [one["kind"] for one in entry["timeline"]][:2] == ["requested", "started"]
    await target.call.hangup()


async def test_start_of_a_fork_that_ends_says_why(ami: AmiClient, caller: SipUser) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    once = "D(in)R(2)r(1)"
    code, output, errors = await told("start", target.channel, NOWHERE, "--options", once)
    assert code == 1
    fork = f"fork {output.strip()} of {target.channel}"
    assert f"audiofork: {fork} has ended before it streamed: sink-gone (" in errors
    await target.call.hangup()


async def test_channel_that_does_not_exist_is_refused_in_the_words_of_the_socket() -> None:
    code, output, errors = await told("start", "SIP/nobody-1", NOWHERE)
    assert (code, output) == (1, "")
    assert errors.startswith("audiofork: No such channel: SIP/nobody-1; asterisk -rx")
