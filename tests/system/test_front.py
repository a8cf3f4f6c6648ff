"""The AMI front before the real Asterisk, with real clients."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import trustme
from panoramisk import Manager

from audiofork.asterisk.versions import Since
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, cache_folder, free_port
from testbed.daemon import SECRET, Daemon, dialplan, manager_conf
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.system.conftest import DIALPLAN, Target, needs, place_call, start_fork

pytestmark = pytest.mark.asterisk

HOST = "127.0.0.1"
USERS = {
    "everything": ("all", "all"),
    "system": ("all", "system"),
    "call": ("all", "call"),
    "other": ("all", "user,reporting,originate"),
    "silent": ("", "all"),
}
START = {"Action": "AudioFork", "Channel": "none", "WsServer": "ws://127.0.0.1/"}
STOP = {"Action": "StopAudioFork", "Channel": "none"}
MUTE = {"Action": "AudioForkMute", "Channel": "none", "Direction": "both", "State": "1"}
NO_CHANNEL = "No such channel"
DENIED = "Permission denied"


# --- The stage -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Files with an authority, and with a certificate and its key, for localhost."""
    folder = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "cert.pem")
    return SimpleNamespace(ca=folder / "ca.pem", cert=folder / "cert.pem")


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_port(socket.SOCK_STREAM)


@pytest.fixture(scope="module")
def asterisk(certificate: SimpleNamespace, tls_port: int) -> Iterator[Asterisk]:
    """An Asterisk of this module's own: users with few classes, and TLS."""
    users = "".join(
        f"\n[{name}]\nsecret = secret-of-{name}\nread = {read}\nwrite = {write}\n"
        "writetimeout = 30000\n"
        for name, (read, write) in USERS.items()
    )
    tls = (
        f"\n[general](+)\ntlsenable = yes\ntlsbindaddr = {HOST}:{tls_port}\n"
        f"tlscertfile = {certificate.cert}\ntlsprivatekey = {certificate.cert}\n"
    )
    config = {"manager.conf": manager_conf() + users + tls}
    with Asterisk(dialplan=DIALPLAN + dialplan(), config=config) as one:
        yield one


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"front": f"listen = {HOST}:0\n", "security": "max_starts = 10000\n"}


def front_port(daemon: Daemon) -> int:
    found = re.search(rf"AMI front on {HOST}:(\d+)", daemon.log())
    assert found is not None
    return int(found[1])


@pytest.fixture
def port(daemon: Daemon) -> int:
    """Where the front listens."""
    return front_port(daemon)


class Client:
    """An AMI client, by bytes and by messages."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._tls = port, tls

    async def __aenter__(self) -> Self:
        host = "localhost" if self._tls else HOST
        self.reader, self.writer = await asyncio.open_connection(host, self._port, ssl=self._tls)
        self.greeting = await self.reader.readline()
        assert self.greeting.startswith(b"Asterisk Call Manager/")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def send(self, headers: dict[str, str]) -> None:
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        self.writer.write(("".join(lines) + "\r\n").encode())

    async def message(self, first: str = "Response") -> dict[str, str]:
        """Return the next message that begins with a header of this name."""
        while True:
            async with asyncio.timeout(20):
                block = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            if block.startswith(f"{first}: "):
                pairs = (line.partition(": ") for line in block.split("\r\n")[:-2])
                return {name: value for name, _, value in pairs}

    async def ask(self, headers: dict[str, str]) -> dict[str, str]:
        self.send(headers)
        return await self.message()

    async def login(self, name: str, events: str = "off") -> None:
        answer = await self.ask(
            {
                "Action": "Login",
                "Username": name,
                "Secret": f"secret-of-{name}",
                "Events": events,
            }
        )
        assert answer["Response"] == "Success", answer

    async def rest(self) -> bytes:
        """Return all that comes until the end, and until Asterisk says goodbye."""
        async with asyncio.timeout(20):
            return await self.reader.read()


@asynccontextmanager
async def undisturbed(
    ami: AmiClient, caller: SipUser, recorder: Recorder, port: int
) -> AsyncIterator[Target]:
    """A call with a fork, and a client, to which what is done meanwhile must make no difference."""
    target = await place_call(ami, caller)
    target.call.talk()
    async with Client(port) as client:
        await client.login("everything")
        start_fork(ami, target.channel, recorder.url("/undisturbed"))
        recording = await recorder.wait_messages("/undisturbed", 5)
        yield target
        await recorder.wait_messages("/undisturbed", len(recording.messages) + 10)
        gaps_s = [after - before for before, after in pairwise(recording.times)]
        assert max(gaps_s) < 0.5
        assert (await client.ask({"Action": "Ping"}))["Ping"] == "Pong"
    await target.call.hangup()


# --- Real clients --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the npm package asterisk-manager, fetched once."""
    folder = cache_folder() / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "node_modules/asterisk-manager").is_dir():
            _install(folder)
    return folder / "node_modules"


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail("this test needs Node.js with npm: apt install nodejs npm")
    done = subprocess.run(
        [npm, "install", "--no-save", "--prefix", str(folder), "asterisk-manager@0.2.0"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        pytest.fail(f"npm cannot fetch asterisk-manager: {done.stderr}")


class NodeClient:
    """front_client.js; each step is one action."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, str]] = []

    async def step(self) -> tuple[str, dict[str, str]]:
        """Do the next step; return answer or error, and what came."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        while (said := await self._said())[0] == "event":
            self.events.append(said[1])
        return said

    async def event(self, name: str) -> dict[str, str]:
        """Return the first UserEvent of this name."""
        while not (found := [event for event in self.events if event["userevent"] == name]):
            self.events.append((await self._said())[1])
        return found[0]

    async def _said(self) -> tuple[str, dict[str, str]]:
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            said = json.loads(await self._process.stdout.readline())
        return said["kind"], said["body"]


@asynccontextmanager
async def node_client(node_modules: Path, *arguments: str) -> AsyncIterator[NodeClient]:
    process = await asyncio.create_subprocess_exec(
        "node",
        str(Path(__file__).with_name("front_client.js")),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(node_modules)},
    )
    assert process.stdin is not None
    try:
        yield NodeClient(process)
    finally:
        process.stdin.close()
        await process.wait()


async def muted(recorder: Recorder, path: str, expected: bool) -> None:
    """Wait until the fork's messages are silence, or are not."""
    (recording,) = recorder.at(path)
    async with asyncio.timeout(20):
        while True:
            count = len(recording.messages)
            await recorder.wait_messages(path, count + 5)
            audio = b"".join(m for m in recording.messages[count:] if isinstance(m, bytes))
            if any(audio) != expected:
                return


async def test_npm_client_starts_mutes_and_stops_a_fork(
    node_modules: Path,
    asterisk: Asterisk,
    port: int,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    arguments = (str(port), HOST, "everything", "secret-of-everything")
    async with node_client(node_modules, *arguments, target.channel, recorder.url("/n")) as client:
        kind, started = await client.step()
        assert (kind, started["response"]) == ("answer", "Success")
        await recorder.wait_messages("/n", 5)
        event = await client.event("AudioForkStarted")
        assert event["audioforkid"] == started["audioforkid"]
        assert event["actionid"] == started["actionid"]
        assert event["channel"] == target.channel
        await muted(recorder, "/n", False)
        for expected in (True, False):
            kind, answer = await client.step()
            assert (kind, answer["response"]) == ("answer", "Success")
            await muted(recorder, "/n", expected)
        kind, stopped = await client.step()
        assert (kind, stopped["response"]) == ("answer", "Success")
        recording = await recorder.wait_closed("/n")
        assert (recording.close_code, recording.close_reason) == (1000, "stopped")
        kind, again = await client.step()
        assert kind == "error"
        assert again["message"].startswith("Could not stop monitoring channel")
        assert (await client.step())[1]["ping"] == "Pong"
    await target.call.hangup()


async def test_panoramisk_starts_mutes_and_stops_a_fork(
    port: int, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    manager = Manager(
        host=HOST,
        port=port,
        username="everything",
        secret="secret-of-everything",
        reconnect_timeout=3600,
    )
    events: asyncio.Queue[Any] = asyncio.Queue()
    manager.register_event("UserEvent", lambda _, event: events.put_nowait(event))
    await manager.connect()

    async def ask(action: str, **fields: str) -> Any:
        fields = {"Action": action, "Channel": target.channel, **fields}
        async with asyncio.timeout(20):
            return await manager.send_action(fields)

    started = await ask("AudioFork", WsServer=recorder.url("/p"), Options="D(both)")
    assert started.success
    await recorder.wait_messages("/p", 5)
    async with asyncio.timeout(20):
        while (event := await events.get()).userevent != "AudioForkStarted":
            pass
    assert event.audioforkid == started.audioforkid
    await muted(recorder, "/p", False)
    for state, expected in (("1", True), ("0", False)):
        assert (await ask("AudioForkMute", Direction="both", State=state)).success
        await muted(recorder, "/p", expected)
    assert (await ask("StopAudioFork", AudioForkID=started.audioforkid)).success
    await recorder.wait_closed("/p")
    assert (await ask("Ping")).ping == "Pong"
    manager.close()
    await target.call.hangup()


# --- Everything else as without the front --------------------------------------------------------

SCRIPT = (
    b"Action: Login\r\nUsername: silent\r\nSecret: secret-of-silent\r\nEvents: off\r\n\r\n",
    b"Action: ListCommands\r\nActionID: 1\r\n\r\n",
    b"action:command\nactionid:2\ncommand:core show applications\n\n",
    b"Action: Command\r\nCommand: no such command\r\n\r\n",
    b"Action: GetConfig\r\nFilename: extensions.conf\r\nActionID: \xff\xfe\r\n\r\n",
    b"Action: QueueStatus\r\n\r\n\r\n\r\n",
    b"garbage\r\nmore: garbage\0\r\n\r\n",
    b"Action: Challenge\r\nAuthType: MD4\r\n\0 an empty line to Asterisk\r\n",
    b"Action: NoSuchAction\r\nActionID: 3\r\n\r\n",
    b"Action: Getvar\r\nVariable: " + b"x" * 1100 + b"\r\nActionID: 4\r\n\r\n",
    b"X: " + b"y" * 1020 + b"\r\nAction: Getvar\r\nActionID: 5\r\n\r\n",
    b"Action: Getvar\r\nActionID: 6\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"X: y\r\n" * 10_000 + b"Action: Getvar\r\nActionID: 7\r\n\r\n",
    b"Action: AudioForks\r\nActionID: 8\r\n\r\n",
    b"Action: Logoff\r\nActionID: 9\r\n\r\nAction: Ping\r\n\r\n",
)
BAD_UTF8 = (
    SCRIPT[0],
    b"Action: Setvar\r\nVariable: A\r\nValue: \xc3\xbc\xff\r\nActionID: 1\r\n\r\n",
    b"Action: Getvar\r\nVariable: A\r\nActionID: 2\r\n\r\n",
    b"Action: Logoff\r\n\r\n",
)
# Issue 999 of Asterisk: the warning about it names the channel that there is none of.
STANDS_BAD_UTF8: Since = {20: 12, 21: 7, 22: 2}


async def answers(port: int, script: bytes, source: random.Random | None) -> bytes:
    """Send a script, whole or in pieces, and return all that comes back."""
    async with Client(port) as client:
        position = 0
        while position < len(script):
            size = source.choice([1, 3, 50, 4000]) if source else len(script)
            client.writer.write(script[position : position + size])
            await client.writer.drain()
            if source and size > 3:
                await asyncio.sleep(0.0005)
            position += size
        return client.greeting + await client.rest()


async def test_all_kinds_of_actions_are_answered_as_without_the_front(
    asterisk: Asterisk, port: int
) -> None:
    script = b"".join(SCRIPT)
    direct = await answers(asterisk.ami_port, script, None)
    assert direct.count(b"\r\n\r\n") > len(SCRIPT)
    assert len(direct) > 10_000
    assert b"Thanks for all the fish" in direct
    assert await answers(port, script, None) == direct
    for seed in range(5):
        assert await answers(port, script, random.Random(seed)) == direct


@needs(STANDS_BAD_UTF8, "way to set a global variable to bad UTF-8 without a crash")
async def test_global_variable_with_bad_utf8_is_set_as_without_the_front(
    asterisk: Asterisk, port: int
) -> None:
    script = b"".join(BAD_UTF8)
    direct = await answers(asterisk.ami_port, script, None)
    assert b"Value: \xc3\xbc\xff\r\n" in direct
    assert await answers(port, script, None) == direct
    assert await answers(port, script, random.Random(0)) == direct


FRAMES = (
    SCRIPT[0],
    b"Action: NAME\r\nActionID: 1\r\n\r\n",
    b"ActionID:2\naction:\tNAME\n\n",
    b"ActionID: 3\0 no more\r\nAction: NAME\r\n\0 an empty line to Asterisk\r\n",
    b"Action: \r\nAction: NAME\r\nAction: Ping\r\nActionID: 4\r\nActionID: 5\r\n\r\n",
    b"Action: NAME\r\nActionID: 6\r\nX: " + b"y" * 1019 + b"\r\n\r\n",
    b"Action: NAME\r\nActionID: 7\r\nX: " + b"y" * 1020 + b"\r\nActionID: 8\r\n\r\n",
    b"Action: NAME\r\nActionID: 9\r\nX: " + b"y" * 1021 + b"\r\nActionID: 10\r\n\r\n",
    b"Action: NAME\r\nActionID: 11\r\nX: " + b"y" * 1021 + b"\nActionID: 12\r\n\r\n",
    b"Action: NAME\r\n" + b"X: y\r\n" * 126 + b"ActionID: 13\r\n\r\n",
    b"Action: NAME\r\n" + b"X: y\r\n" * 127 + b"ActionID: 14\r\n\r\n",
    b"ActionID: 15\r\n" + b"X: y\r\n" * 126 + b"Action: NAME\r\n\r\n",
    b"ActionID: 16\r\n" + b"X: y\r\n" * 127 + b"Action: NAME\r\n\r\n",
    b"Action: NAME\r\nX: 17\r\r\n\r\r\nActionID: 17\r\n\r\n",
    b"Action: Logoff\r\n\r\n",
)


async def test_own_actions_are_cut_out_where_asterisk_would_cut(
    asterisk: Asterisk, port: int
) -> None:
    """What Asterisk says to an action that it does not know, the front says to ours."""
    script = b"".join(FRAMES)
    unknown = b"Invalid/unknown command: NAME. Use Action: ListCommands to show available commands."
    direct = await answers(asterisk.ami_port, script, None)
    assert direct.count(b"Message: " + unknown) >= 8
    assert direct.count(b"line too long") == 3
    assert direct.count(b"Too many lines") == 2
    script = script.replace(b"NAME", b"StopAudioFork")
    expected = direct.replace(unknown, b"No channel specified")
    assert await answers(port, script, None) == expected
    for seed in range(5):
        assert await answers(port, script, random.Random(seed)) == expected


async def test_own_actions_before_the_end_of_the_stream_are_done(port: int) -> None:
    """As with `printf ... | nc`: everything is sent at once, and then the end."""
    async with Client(port) as client:
        client.writer.write(SCRIPT[0])
        client.send({**START, "ActionID": "1"})
        client.send({"Action": "Ping", "ActionID": "2"})
        client.send({**STOP, "ActionID": "3"})
        client.writer.write_eof()
        rest = await client.rest()
    ids = re.findall(rb"ActionID: (\d)\r\n", rest)
    assert ids == [b"1", b"2", b"3"]
    assert rest.count(b"Message: No such channel\r\n\r\n") == 2


async def test_20000_actions_and_their_events_pass_whole_and_in_order(
    asterisk: Asterisk, port: int
) -> None:
    """What two clients see, one directly and one through the front, is the same to the byte."""
    count = 20_000
    source = random.Random(7)
    actions = b"".join(
        b"Action: UserEvent\r\nActionID: %d\r\nUserEvent: Load\r\nX: %s\r\n\r\n"
        % (number, b"y" * source.choice([1, 30, 200, 1000]))
        for number in range(count)
    )
    last = b"UserEvent: Last\r\n"

    async def send(client: Client) -> None:
        position = 0
        while position < len(actions):
            size = source.choice([1, 700, 1460, 9000])
            client.writer.write(actions[position : position + size])
            await client.writer.drain()
            position += size
        client.send({"Action": "UserEvent", "UserEvent": "Last"})

    async def read(client: Client) -> bytes:
        got = bytearray()
        while last not in got[-2000:]:
            chunk = await client.reader.read(65536)
            assert chunk, f"the connection has ended: {bytes(got[-2000:])!r}"
            got += chunk
        return bytes(got)

    async def read_answers(client: Client) -> list[str]:
        return [(await client.message()).get("ActionID", "") for _ in range(count + 1)]

    async with Client(asterisk.ami_port) as direct, Client(port) as fronted, Client(port) as busy:
        await direct.login("everything", "user")
        await fronted.login("everything", "user")
        await busy.login("silent")
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            one = tasks.create_task(read(direct))
            other = tasks.create_task(read(fronted))
            answered = tasks.create_task(read_answers(busy))
            tasks.create_task(send(busy))
    begin = b"Event: UserEvent\r\n"
    assert one.result().count(begin) == count + 1
    assert other.result() == one.result()
    assert answered.result() == [*map(str, range(count)), ""]


async def test_100_clients_at_once_each_get_their_answers(port: int) -> None:
    async def work(client: Client, number: int) -> None:
        for turn in range(10):
            own = {**START, "ActionID": f"{number}-{turn}"}
            answer = await client.ask(own)
            assert (answer["ActionID"], answer["Message"]) == (own["ActionID"], NO_CHANNEL)
            pong = await client.ask({"Action": "Ping", "ActionID": f"ping-{number}"})
            assert pong["ActionID"] == f"ping-{number}"

    clients = [Client(port) for _ in range(100)]
    for client in clients:  # one by one: Asterisk takes only 50 that are not logged in
        await client.__aenter__()
        await client.login("silent")
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number, client in enumerate(clients):
            tasks.create_task(work(client, number))
    for client in clients:
        await client.__aexit__()


# --- Who may -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "start", "stop"),
    [
        ("everything", NO_CHANNEL, NO_CHANNEL),
        ("system", NO_CHANNEL, NO_CHANNEL),
        ("call", DENIED, NO_CHANNEL),
        ("other", DENIED, DENIED),
    ],
)
async def test_classes_of_the_session_decide_as_in_the_module(
    port: int, user: str, start: str, stop: str
) -> None:
    expected = [
        (START, start),
        ({**START, "Action": "startaudiofork"}, start),
        ({**START, "Command": "StopAudioFork"}, start),
        ({**STOP, "Command": "StartAudioFork", "WsServer": "ws://h/"}, stop),
        (MUTE, stop),
    ]
    async with Client(port) as client:
        await client.login(user)
        for headers, text in expected:
            answer = await client.ask({**headers, "ActionID": "x"})
            assert answer == {"Response": "Error", "ActionID": "x", "Message": text}


@pytest.mark.parametrize("headers", [START, STOP, MUTE], ids=lambda headers: headers["Action"])
async def test_action_before_login_is_refused_as_asterisk_refuses_any(
    asterisk: Asterisk, port: int, headers: dict[str, str]
) -> None:
    async with Client(asterisk.ami_port) as direct, Client(port) as client:
        refused = await direct.ask({"Action": "Hangup", "Channel": "none", "ActionID": "x"})
        assert await client.ask({**headers, "ActionID": "x"}) == refused
        assert refused["Message"] == DENIED
        await client.login("everything")
        assert (await client.ask(headers))["Message"] == NO_CHANNEL


async def test_login_with_an_md5_challenge_passes(port: int) -> None:
    async with Client(port) as client:
        challenge = await client.ask({"Action": "Challenge", "AuthType": "MD5"})
        key = hashlib.md5((challenge["Challenge"] + "secret-of-everything").encode()).hexdigest()
        login = {"Action": "Login", "AuthType": "MD5", "Username": "everything", "Key": key}
        assert (await client.ask(login))["Message"] == "Authentication accepted"
        assert (await client.ask(START))["Message"] == NO_CHANNEL


async def test_login_with_a_wrong_secret_is_refused_and_the_client_closed(port: int) -> None:
    async with Client(port) as client:
        client.send({"Action": "Login", "Username": "everything", "Secret": "wrong"})
        client.send(START)
        assert await client.rest() == b"Response: Error\r\nMessage: Authentication failed\r\n\r\n"


# --- Words of the module -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"Options": "Q"}, "Could not start monitoring channel: Options: "),
        ({"WsServer": "http://h/"}, "Could not start monitoring channel: WsServer: "),
        ({"WsServer": ""}, "Could not start monitoring channel: WsServer: missing"),
        ({"Channel": ""}, "No channel specified"),
        ({"Channel": "SIP/none-1"}, NO_CHANNEL),
    ],
)
async def test_start_is_answered_in_the_words_of_the_module(
    port: int,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    change: dict[str, str],
    text: str,
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    async with Client(port) as client:
        await client.login("everything")
        fields = {"Channel": target.channel, "WsServer": recorder.url("/a"), **change}
        answer = await client.ask({"Action": "AudioFork", "ActionID": "a", **fields})
        if text:
            assert answer["Response"] == "Error"
            assert answer["Message"].startswith(text)
        else:
            assert set(answer) == {"Response", "ActionID", "AudioForkID"}
            await recorder.wait_messages("/a", 5)
    await target.call.hangup()


async def test_stop_and_mute_are_answered_in_the_words_of_the_module(
    port: int, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    stop, mute = ({**one, "Channel": target.channel} for one in (STOP, MUTE))
    async with Client(port) as client:
        await client.login("everything")
        answer = await client.ask(stop)
        assert answer["Message"].startswith("Could not stop monitoring channel")
        answer = await client.ask(mute)
        assert answer["Message"].startswith("Cannot set mute flag")
        for missing, text in (
            ("Direction", "No direction specified. Must be read, write or both"),
            ("State", "No state specified"),
            ("Channel", "No channel specified"),
        ):
            assert (await client.ask({**mute, missing: ""}))["Message"] == text
    await target.call.hangup()


# --- Bad clients ---------------------------------------------------------------------------------

MEMORY_LIMIT_KIB = 3_000  # what the daemon may grow by, most of it of Python's allocator


async def garbage(port: int) -> None:
    source = random.Random(9)
    async with Client(port) as client:
        for _ in range(200):
            client.writer.write(source.randbytes(5000))
            await client.writer.drain()


async def headers_10000(port: int) -> None:
    async with Client(port) as client:
        await client.login("everything")
        client.writer.write(b"Action: AudioFork\r\n" + b"X: y\r\n" * 10_000 + b"\r\n")
        answer = await client.message()
        assert answer["Message"] == "Too many lines in message or allocation failure"
        assert (await client.ask({"Action": "Ping"}))["Ping"] == "Pong"


async def endless_line(port: int) -> None:
    async with Client(port) as client:
        await client.login("everything")
        for _ in range(200):
            client.writer.write(b"x" * 50_000)
            await client.writer.drain()
        client.writer.write(b"\r\n\r\n")
        assert (await client.message())["Message"] == "Failed to parse message: line too long"
        client.send(START)
        assert (await client.message())["Message"] == NO_CHANNEL


async def endless_line_of_an_own_action(port: int) -> None:
    async with Client(port) as client:
        await client.login("everything")
        client.writer.write(b"Action: AudioFork\r\nChannel: ")
        for _ in range(200):
            client.writer.write(b"x" * 50_000)
            await client.writer.drain()
        client.writer.write(b"\r\n\r\n")
        assert (await client.message())["Message"] == "Failed to parse message: line too long"


async def before_login(port: int) -> None:
    async with Client(port) as client:
        for _ in range(300):
            client.send(START)
        for _ in range(300):
            assert (await client.message())["Message"] == DENIED


async def gone_at_once(port: int) -> None:
    for _ in range(100):
        sock = socket.create_connection((HOST, port))
        sock.send(b"Action: AudioFork\r\n\r\n")
        sock.close()
        await asyncio.sleep(0)


async def reads_nothing(port: int) -> None:
    """It asks for the same big answer again and again, and takes none; is cut by us or Asterisk."""
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    sock.send(SCRIPT[0])
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(30):
            while True:
                await loop.sock_sendall(sock, SCRIPT[1] * 100)
    except ConnectionError:  # cut
        pass
    finally:
        sock.close()


@pytest.mark.parametrize(
    "bad",
    [
        garbage,
        headers_10000,
        endless_line,
        endless_line_of_an_own_action,
        before_login,
        gone_at_once,
        reads_nothing,
    ],
    ids=lambda bad: bad.__name__,
)
async def test_bad_client_disturbs_nobody_and_takes_no_memory(
    daemon: Daemon,
    port: int,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    bad: Callable[[int], Any],
) -> None:
    async with undisturbed(ami, caller, recorder, port):
        before_kib = daemon.memory_kib()
        await bad(port)
        assert daemon.memory_kib() - before_kib < MEMORY_LIMIT_KIB
    if bad is not reads_nothing:  # and there Asterisk may have been faster
        assert "disconnected: it reads nothing" not in daemon.log()


# --- TLS and a restart of Asterisk ---------------------------------------------------------------


async def test_tls_to_clients_and_to_asterisk(
    asterisk: Asterisk,
    certificate: SimpleNamespace,
    tls_port: int,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
) -> None:
    settings = {
        "asterisk": f"host = localhost\nport = {tls_port}\nsecret = {SECRET}\n"
        f"tls = yes\nca_file = {certificate.ca}\n",
        "front": f"listen = {HOST}:0\ntls_cert_file = {certificate.cert}\n",
    }
    target = await place_call(ami, caller)
    target.call.talk()
    with Daemon(asterisk, settings) as daemon:
        tls = ssl.create_default_context(cafile=certificate.ca)
        async with Client(front_port(daemon), tls) as client:
            await client.login("everything", "user")
            fields = {"Channel": target.channel, "WsServer": recorder.url("/tls")}
            answer = await client.ask({"Action": "AudioFork", **fields})
            await recorder.wait_messages("/tls", 5)
            while (event := await client.message("Event"))["UserEvent"] != "AudioForkStarted":
                pass
            assert event["AudioForkID"] == answer["AudioForkID"]
            client.send({"Action": "ListCommands"})
            assert "AbsoluteTimeout" in await client.message()
        await asyncio.to_thread(daemon.stop)
    await target.call.hangup()


async def test_restart_of_asterisk_closes_clients_which_may_come_back(
    asterisk: Asterisk, settings: dict[str, str]
) -> None:
    with Daemon(asterisk, settings) as daemon:
        port = front_port(daemon)
        async with Client(port) as client:
            await client.login("everything")
            await asyncio.to_thread(asterisk.restart)
            await client.rest()
        async with Client(port) as client:
            await client.login("everything")
            assert (await client.ask({"Action": "Ping"}))["Ping"] == "Pong"
            async with asyncio.timeout(20):  # until the daemon's own link is up again
                while (answer := await client.ask(START))["Message"] != NO_CHANNEL:
                    assert answer["Message"].startswith("Could not start monitoring channel: ")
                    await asyncio.sleep(0.1)
