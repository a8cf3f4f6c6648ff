"""Each refusal comes through each door, with the same words."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import pytest

from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import Daemon
from testbed.sip import SipUser
from tests.system.conftest import Target, only_channels, place_call

pytestmark = pytest.mark.asterisk

GOOD_URL = "ws://127.0.0.1:1/"
ELSEWHERE = "not a file below /etc/audiofork/tls ([security] tls_dir)"


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "front": "listen = 127.0.0.1:0\n",
        "security": "allow_urls = ws://127.0.0.1 wss://127.0.0.1\n",
    }


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
        ("ws://127.0.0.1/" + "x" * 990, "", "WsServer: longer than 1000 bytes"),
        ("ws://127.0.0.1/\x01", "", "WsServer: control characters are not allowed"),
        (
            GOOD_URL,
            "Q",
            "Options: unknown option 'Q'; there are D T R r F L b B p P k v V W H A s M x c i S a",
        ),
        (GOOD_URL, "D(up)", "Options: D takes in, out, both or stereo, not 'up'"),
        (GOOD_URL, "D(in", "Options: missing closing parenthesis of option 'D'"),
        (GOOD_URL, "v(5)", "Options: v takes a whole number from -4 to 4, not '5'"),
        (GOOD_URL, "r(x)", "Options: r takes a whole number from 0 to 1000000, not 'x'"),
        (GOOD_URL, "T(insecure)", "Options: T(insecure) is not allowed (allow_insecure_tls)"),
        (GOOD_URL, "T(ca=/dev/ptmx)", f"Options: T(ca=/dev/ptmx): {ELSEWHERE}"),
        (GOOD_URL, "T(cert=../missing)", f"Options: T(cert=../missing): {ELSEWHERE}"),
        (GOOD_URL, "i(A=B)", "Options: i takes the name of a channel variable, not 'A=B'"),
    ],
)
async def test_refusal_has_the_same_words_at_every_door(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    url: str,
    options: str,
    words: str,
) -> None:
    target = await place_call(ami, caller)
    assert await by_user_event(ami, target, url, options) == words
    assert words in await by_front(asterisk, daemon, target, url, options)
    assert words in await by_command_line(daemon, target.channel, url, options)
    await target.call.hangup()


@pytest.mark.parametrize(
    "url",
    [
        *("ws:user:hunter2@127.0.0.1", "ws://user:hunter2/x@127.0.0.1", "user:hunter2@127.0.0.1"),
        "ws://user:hunter2@127.0.0.1/",
        "wss:user:hunter2" + "x" * 300 + "@127.0.0.1",
    ],
)
@pytest.mark.parametrize("options", ["", "T(on)"])
async def test_password_in_a_url_is_told_nowhere(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser, url: str, options: str
) -> None:
    target = await place_call(ami, caller)
    told = len(ami.events)
    answers = [
        await by_user_event(ami, target, url, options),
        await by_front(asterisk, daemon, target, url, options),
        await by_command_line(daemon, target.channel, url, options),
    ]
    answers.append(await ami.variable(target.channel, "AUDIOFORK_REASON"))
    assert all("credentials are not allowed in a URL" in answer for answer in answers)
    events = [headers for _, headers in ami.events[told:] if "AudioForkID" in headers]
    assert len(events) == 1
    assert "hunter2" not in f"{answers} {events} {daemon.log()}"
    await target.call.hangup()


async def test_unknown_channel_has_the_same_words_at_every_door(
    asterisk: Asterisk, daemon: Daemon, ami: AmiClient, caller: SipUser
) -> None:
    target = await place_call(ami, caller)
    await target.call.hangup()
    await only_channels(ami)
    assert await by_user_event(ami, target, GOOD_URL, "") == "No such channel"
    assert await by_front(asterisk, daemon, target, GOOD_URL, "") == "No such channel"
    assert "No such channel" in await by_command_line(daemon, target.channel, GOOD_URL, "")


@pytest.mark.parametrize("size", [5_000, 64_000])
async def test_endless_option_string_is_refused_by_the_command_line(
    daemon: Daemon, ami: AmiClient, caller: SipUser, size: int
) -> None:
    """AMI itself discards lines this long."""
    target = await place_call(ami, caller)
    said = await by_command_line(daemon, target.channel, GOOD_URL, "a" * size)
    assert "longer than" in said
    await target.call.hangup()


async def by_user_event(ami: AmiClient, target: Target, url: str, options: str) -> str:
    position = len(ami.events)
    ami.send(
        "UserEvent",
        UserEvent="AudioFork",
        Channel=target.channel,
        WsServer=url,
        Options=options,
    )
    return (await ami.wait_user_event("AudioForkFailed", after=position))["Reason"]


async def by_front(
    asterisk: Asterisk, daemon: Daemon, target: Target, url: str, options: str
) -> str:
    found = re.search(r"AMI front on 127\.0\.0\.1:(\d+)", daemon.log())
    assert found is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
    actions = [
        {"Action": "Login", "Username": asterisk.ami_username, "Secret": asterisk.ami_secret},
        {
            "Action": "AudioFork",
            "ActionID": "front",
            "Channel": target.channel,
            "WsServer": url,
            "Options": options,
        },
    ]
    for action in actions:
        writer.write("".join(f"{k}: {v}\r\n" for k, v in action.items()).encode() + b"\r\n")
    answer = b""
    async with asyncio.timeout(20):
        while b"ActionID: front" not in answer:
            answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert answer.startswith(b"Response: Error")
    message = re.search(rb"Message: (.*)\r\n", answer)
    assert message is not None
    return message[1].decode()


async def by_command_line(daemon: Daemon, channel: str, url: str, options: str) -> str:
    command = [sys.executable, "-m", "audiofork", "start", "--socket", str(daemon.socket)]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--options", options, channel, url],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    return done.stderr
