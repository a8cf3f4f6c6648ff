"""The migration guide and the example of separate streams, run on the real Asterisk."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from audiofork.commands.dialplan import Kind
from audiofork.commands.migrate_text import migrate_text
from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk, cache_folder
from testbed.blocks import decode, find_blocks, make_blocks, report
from testbed.daemon import Daemon
from testbed.recorder import Recorder
from testbed.sip import SipUser
from tests.commands.test_migrate import guide_blocks
from tests.system.conftest import (
    Target,
    counts_blocks,
    needs_pairs,
    needs_whole_in,
    no_forks,
    place_call,
)

pytestmark = pytest.mark.asterisk

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/separate-streams"
BLOCKS = guide_blocks()
DIALPLANS = [
    pytest.param(*block, marks=needs_pairs() if "D(out)" in BLOCKS[block] else ())
    for block in BLOCKS
    if block[1] == "after" and block[0] in ("conf", "ael", "lua")
]
CHANNEL = "PJSIP/100-0000002a"  # the guide's
SETTLE_S = 5.0


# --- Fixtures ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def settings(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return {
        "websocket": f"ca_list_file = {path}\n",
        "security": "allow_post_process = yes\n",
        "front": "listen = 127.0.0.1:0\n",
    }


@pytest.fixture
async def secure_recorder(authority: trustme.CA) -> AsyncIterator[Recorder]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    async with Recorder(tls) as one:
        yield one


class Dialplan:
    """Puts a block of the guide into the running Asterisk."""

    def __init__(self, asterisk: Asterisk) -> None:
        self._asterisk = asterisk
        self._etc = asterisk.folder / "etc"
        self._conf = (self._etc / "extensions.conf").read_text()

    def load(self, language: str, text: str) -> str:
        """Load a dialplan; return what Asterisk then shows of all of it."""
        if language == "conf":
            (self._etc / "extensions.conf").write_text(self._conf + text)
            self._asterisk.cli("dialplan reload")
            return self._asterisk.cli("dialplan show")
        if not (self._asterisk.installation.modules / f"pbx_{language}.so").exists():
            pytest.skip(f"this build of Asterisk has no pbx_{language}.so")
        (self._etc / f"extensions.{language}").write_text(text)
        self._asterisk.cli("module load res_ael_share.so")
        self._asterisk.cli(f"module load pbx_{language}.so")
        return self._asterisk.cli("dialplan show")

    def unload(self) -> None:
        (self._etc / "extensions.conf").write_text(self._conf)
        for name in ("pbx_ael", "pbx_lua", "res_ael_share"):
            self._asterisk.cli(f"module unload {name}.so")
        self._asterisk.cli("dialplan reload")


@pytest.fixture
def dialplan(asterisk: Asterisk) -> Iterator[Dialplan]:
    one = Dialplan(asterisk)
    yield one
    one.unload()


def at_recorders(text: str, recorder: Recorder, secure: Recorder) -> str:
    """Return a text of the guide with the URLs of the recorders in it."""
    text = text.replace("ws://localhost:8080", recorder.url(""))
    return text.replace("wss://example.org", secure.url(""))


def with_callee(text: str) -> str:
    """Return a dialplan that calls the testbed's callee, by whatever SIP it has."""
    return re.sub(r"PJSIP/(callee|\$\{EXTEN\})", "${CALLEE}", text)


def urls(text: str) -> list[str]:
    return re.findall(r"wss?://[^\s\"',)]+(?:,2)?", text)


def path_of(url: str) -> str:
    return "/" + url.split("/", 3)[3]


async def send_to_context(ami: AmiClient, target: Target, context: str) -> None:
    answer = await ami.action(
        "Redirect", Channel=target.channel, Context=context, Exten="100", Priority="1"
    )
    assert answer["Response"] == "Success"


@contextlib.asynccontextmanager
async def talking_callee(asterisk: Asterisk) -> AsyncIterator[None]:
    """A callee that answers and speaks."""
    address = ("127.0.0.1", asterisk.sip_port)
    async with SipUser("callee", address, answer=lambda call: call.talk()) as callee:
        await callee.register()
        yield


# --- The dialplans ---


@pytest.mark.parametrize(("language", "role", "name"), DIALPLANS)
async def test_migrated_dialplan_streams_to_each_of_its_servers(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    secure_recorder: Recorder,
    dialplan: Dialplan,
    tmp_path: Path,
    language: str,
    role: str,
    name: str,
) -> None:
    text = at_recorders(BLOCKS[language, role, name], recorder, secure_recorder)
    text = with_callee(text.replace("/tmp/fork.txt", str(tmp_path / "fork.txt")))
    shown = dialplan.load(language, text)
    assert f"Context '{name}'" in shown
    for gosub in re.findall(r"Gosub\(.*\)", text):
        assert gosub.rstrip(";").removesuffix(":NoOp())") in shown
    async with talking_callee(asterisk):
        target = await place_call(ami, caller, "wait")
        target.call.talk()
        await send_to_context(ami, target, name)
        for url in urls(text):
            server = secure_recorder if url.startswith("wss") else recorder
            recording = await server.wait_messages(path_of(url), 5)
            assert {len(message) for message in recording.messages} == {320}
        await check_block(name, ami, target, recorder, tmp_path)
        if not target.call.ended.is_set():
            await target.call.hangup()
        for url in urls(text):
            server = secure_recorder if url.startswith("wss") else recorder
            recording = await server.wait_closed(path_of(url))
            assert recording.close_code == 1000


async def check_block(
    name: str, ami: AmiClient, target: Target, recorder: Recorder, folder: Path
) -> None:
    """Check what a block does besides streaming."""
    if name == "ids":
        first = await recorder.wait_closed("/first")
        second = await recorder.wait_closed("/second")
        assert first.close_reason == second.close_reason == "stopped"
        assert second.closed - first.closed > 0.7  # in the dialplan a second lies between them
        assert await ami.variable(target.channel, "FIRST_URL") == recorder.url("/first")
    elif name in ("ael", "lua"):
        assert (await recorder.wait_closed(f"/{name}")).close_reason == "stopped"
        assert not target.call.ended.is_set()
    elif name == "command":
        await target.call.wait_ended()
        printed = await wait_written(folder / "fork.txt")
        assert printed == f"ended: {target.channel}, 100\n"


@needs_pairs()
@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("echo a,  b > {file}", "a, b\n"),
        (r"echo a\,  b > {file}", "a, b\n"),
        ('echo "a,  b" > {file}', "a, b\n"),
        (r"echo \"a,  b\" > {file}", "a,  b\n"),
        (r"echo \"^{{SAID}}\" | tr a b > {file}", "b  $(id)\n"),
        ("echo 'a  b' > {file}", "a  b\n"),
    ],
)
async def test_migrated_command_does_what_it_did(
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    dialplan: Dialplan,
    tmp_path: Path,
    command: str,
    printed: str,
) -> None:
    """AudioFork() took away quotes and one level of backslashes before the shell got a command."""
    file = tmp_path / "printed"
    call = f"AudioFork({recorder.url('/')},D(out),{command.format(file=file)})"
    text = f"[command]\nexten => _X.,1,Set(SAID=a  $(id))\n same => n,{call}\n"
    dialplan.load("conf", migrate_text(text, Kind.CONF).text)
    target = await place_call(ami, caller, "wait")
    target.call.talk()
    await send_to_context(ami, target, "command")
    await target.call.wait_ended()
    await ami.wait_user_event("AudioForkStopped", Channel=target.channel)
    assert await wait_written(file) == printed


DOCUMENTED = """
[main-out]
exten => _.,1,Verbose(call was placed..)
same => n,Answer()
same => n,AudioFork(ws://localhost:8080/out,D(out))
same => n,Dial(SIP/1001,60,gM(in))
same => n,Hangup()

[macro-in]
exten => _.,1,Verbose(macro-in called)
same => n,AudioFork(ws://localhost:8080/in,D(out))
"""  # of the module's documentation


@needs_pairs()
async def test_example_of_the_module_streams_once_its_notes_are_followed(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    dialplan: Dialplan,
) -> None:
    migration = migrate_text(DOCUMENTED, Kind.CONF, 22)
    macro, sip = [note.text for note in migration.notes if note.left]
    instead = re.findall(r"write (U\(\S+\)), and let each way through \[macro-in\] end with", macro)
    assert "write PJSIP/1001" in sip
    text = migration.text.replace("M(in)", *instead).replace("SIP/1001", "${CALLEE}")
    text += "same => n,Return()\n"
    dialplan.load("conf", text.replace("ws://localhost:8080", recorder.url("")))
    async with talking_callee(asterisk):
        target = await place_call(ami, caller, "wait")
        target.call.talk()
        await send_to_context(ami, target, "main-out")
        for path in ("/out", "/in"):
            recording = await recorder.wait_messages(path, 20)
            assert any(any(message) for message in recording.messages)
        await target.call.hangup()
        for path in ("/out", "/in"):
            await recorder.wait_closed(path)


async def wait_written(file: Path) -> str:
    """Return the text of a file as soon as it has one."""
    async with asyncio.timeout(SETTLE_S):
        while not (file.exists() and file.stat().st_size):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
    return file.read_text()  # noqa: ASYNC240


@needs_pairs()
async def test_migrated_agi_script_starts_and_stops(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    dialplan: Dialplan,
) -> None:
    commands = BLOCKS["agi", "after", "agi"].replace("ws://localhost:8080", recorder.url(""))
    answers: list[str] = []
    finished = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\n\n")
        for command in commands.splitlines():
            writer.write(f"{command}\n".encode())
            while (line := (await reader.readline()).decode())[:4] in ("100 ", "100-"):
                pass  # 100 Trying
            answers.append(line.strip())
        writer.close()
        finished.set()

    # res_agi needs res_speech, and app_stack tells it of GOSUB when it is loaded.
    for command in ("load res_speech", "load res_agi", "unload app_stack", "load app_stack"):
        asterisk.cli(f"module {command}.so")
    async with await asyncio.start_server(script, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        agi = f"[agi]\nexten => _X.,1,AGI(agi://127.0.0.1:{port})\n same => n,Wait(5)\n"
        dialplan.load("conf", agi)
        target = await place_call(ami, caller, "wait")
        target.call.talk()
        await send_to_context(ami, target, "agi")
        recording = await recorder.wait_closed("/agi")
        assert recording.messages
        assert recording.close_reason == "stopped"
        async with asyncio.timeout(SETTLE_S):
            await finished.wait()
        await target.call.hangup()
    assert [answer[:4] for answer in answers] == ["200 ", "200 "]


# --- AMI ---


def front_port(daemon: Daemon) -> int:
    found = re.search(r"AMI front on 127\.0\.0\.1:(\d+)", daemon.log())
    assert found is not None
    return int(found[1])


class FrontClient(AmiClient):
    """An AMI client that talks to the front in Asterisk's place."""

    def __init__(self, asterisk: Asterisk, port: int) -> None:
        class Through:
            ami_port = port
            ami_username = asterisk.ami_username
            ami_secret = asterisk.ami_secret

        super().__init__(Through())  # type: ignore[arg-type]


async def send_block(client: AmiClient, role: str, name: str, target: Target, url: str) -> Headers:
    """Send an AMI block of the guide for this target and server."""
    text = BLOCKS["ami", role, name].replace(CHANNEL, target.channel)
    text = text.replace("ws://localhost:8080", url)
    headers = dict(line.split(": ", 1) for line in text.splitlines())
    action, action_id = headers.pop("Action"), headers.pop("ActionID")
    return await client.action(action, action_id=action_id, **headers)


@pytest.mark.parametrize("role", ["front", "event"])
async def test_ami_blocks_start_mute_and_stop(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    role: str,
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    async with contextlib.AsyncExitStack() as stack:
        client = ami
        if role == "front":
            client = await stack.enter_async_context(FrontClient(asterisk, front_port(daemon)))
        answer = await send_block(client, role, "start", target, recorder.url(""))
        assert answer["Response"] == "Success"
        recording = await recorder.wait_messages("/ami", 10)
        assert any(any(message) for message in recording.messages)
        answer = await send_block(client, role, "mute", target, "")
        assert answer["Response"] == "Success"
        heard = len(recording.messages)
        await recorder.wait_messages("/ami", heard + 30)
        assert not any(any(message) for message in recording.messages[heard + 10 :])
        answer = await send_block(client, role, "stop", target, "")
        assert answer["Response"] == "Success"
        assert (await recorder.wait_closed("/ami")).close_reason == "stopped"
    await target.call.hangup()


@pytest.mark.parametrize("way", ["front", "dialplan"])
async def test_server_that_insists_on_the_subprotocol_of_the_module_is_reached(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    dialplan: Dialplan,
    way: str,
) -> None:
    async with Recorder(subprotocols=["echo"]) as server:
        text = (
            f"[insists]\nexten => _X.,1,AudioFork({server.url('/ami')},D(in))\n same => n,Wait(9)\n"
        )
        dialplan.load("conf", migrate_text(text, Kind.CONF).text)
        target = await place_call(ami, caller, "wait")
        target.call.talk()
        if way == "front":
            async with FrontClient(asterisk, front_port(daemon)) as client:
                await send_block(client, "front", "start", target, server.url(""))
        else:
            await send_to_context(ami, target, "insists")
        recording = await server.wait_messages("/ami", 5)
        assert recording.connection is not None
        assert recording.connection.subprotocol == "echo"
        await target.call.hangup()
        await server.wait_closed("/ami")


def npm(*packages: str) -> Path:
    """Return a node_modules folder that holds packages, fetched once into the testbed's cache."""
    program = shutil.which("npm")
    assert program, "npm is needed: apt install npm"
    assert shutil.which("node"), "node is needed: apt install npm"
    folder = cache_folder() / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        modules = folder / "node_modules"
        if not all((modules / package).exists() for package in packages):
            # All at once: npm removes what it is not told of.
            wanted = sorted({*packages, "ws@8", "asterisk-manager"})
            command = [program, "install", "--no-save", "--no-audit", "--no-fund", *wanted]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"npm install failed:\n{done.stderr}"
    return modules


async def test_node_client_changes_nothing_but_its_port(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    recorder: Recorder,
    tmp_path: Path,
) -> None:
    before, after = BLOCKS["js", "before", "client"], BLOCKS["js", "after", "client"]
    assert before.replace("5038", "5040") == after
    target = await place_call(ami, caller)
    target.call.talk()
    script = (
        after.replace("5040", str(front_port(daemon)))
        .replace("'username'", f"'{asterisk.ami_username}'")
        .replace("'password'", f"'{asterisk.ami_secret}'")
        .replace(CHANNEL, target.channel)
        .replace("ws://localhost:8080", recorder.url(""))
        .replace("console.log(error ?? answer)", "{ console.log(error ?? answer); process.exit() }")
    )
    output = await run_node(script, tmp_path)
    assert "response: 'success'" in output.lower()
    assert "audioforkid" in output
    await recorder.wait_messages("/client", 5)
    await target.call.hangup()
    await recorder.wait_closed("/client")


async def run_node(script: str, folder: Path) -> str:
    """Run a script that ends by itself; return what it printed."""
    environment = {**os.environ, "NODE_PATH": str(npm("ws", "asterisk-manager"))}
    (folder / "script.js").write_text(script)
    process = await asyncio.create_subprocess_exec(
        *("node", str(folder / "script.js")),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        output, _ = await process.communicate()
        raise AssertionError(f"the script did not end:\n{output.decode()}") from None
    assert process.returncode == 0, output.decode()
    return output.decode()


# --- The command line ---


async def test_command_line_starts_lists_and_stops(
    daemon: Daemon, ami: AmiClient, caller: SipUser, recorder: Recorder
) -> None:
    target = await place_call(ami, caller)
    target.call.talk()
    text = BLOCKS["sh", "after", "cli"].replace(CHANNEL, target.channel)
    start, show, stop = text.replace("ws://localhost:8080", recorder.url("")).splitlines()
    fork_id = (await audiofork(start, daemon)).splitlines()[0]
    recording = await recorder.wait_messages("/cli", 5)
    listed = await audiofork(show, daemon)
    assert fork_id[:8] in listed
    assert target.channel in listed
    assert fork_id in await audiofork(stop, daemon)
    await recorder.wait_closed("/cli")
    assert recording.close_reason == "stopped"
    await target.call.hangup()


async def audiofork(command: str, daemon: Daemon) -> str:
    """Run one of our commands against this daemon; return what it printed."""
    program, *arguments = shlex.split(command)
    assert program == "audiofork"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "audiofork", *arguments, "-c", str(daemon.config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


# --- Servers in Node ---


class NodeServer:
    """A server script in a folder of its own; an asynchronous context manager."""

    def __init__(self, script: Path, folder: Path, **environment: str) -> None:
        self._command = ("node", str(script))
        self.folder = folder
        self._environment = {**os.environ, "NODE_PATH": str(npm("ws")), **environment}
        self.output = ""

    async def __aenter__(self) -> NodeServer:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=self.folder,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def wait_said(self, text: str, *, times: int = 1) -> None:
        """Wait until it has printed a text so many times."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SETTLE_S):
            while self.output.count(text) < times:
                line = await self._process.stdout.readline()
                assert line, f"expected {text!r}, got:\n{self.output}"
                self.output += line.decode()

    async def stop(self) -> int:
        """End it by SIGTERM; return its exit code."""
        self._process.terminate()
        async with asyncio.timeout(SETTLE_S):
            rest, _ = await self._process.communicate()
        self.output += rest.decode()
        assert self._process.returncode is not None
        return self._process.returncode

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@needs_pairs()
@pytest.mark.parametrize("ends_first", ["call", "server"])
@counts_blocks
async def test_separate_streams_hold_the_right_party_whole(
    asterisk: Asterisk,
    daemon: Daemon,
    ami: AmiClient,
    caller: SipUser,
    dialplan: Dialplan,
    tmp_path: Path,
    ends_first: str,
) -> None:
    """Both parties of a real call speak numbered blocks at the same time."""
    warm_up, said, heard = (make_blocks(n, seed=s) for n, s in ((40, 21), (300, 22), (300, 23)))
    address = ("127.0.0.1", asterisk.sip_port)
    async with (
        NodeServer(EXAMPLE / "server.js", tmp_path, PORT="0") as server,
        SipUser("callee", address, answer=True) as callee,
    ):
        await server.wait_said("listening on")
        port = re.findall(r":(\d+)/", server.output)[0]
        text = (EXAMPLE / "extensions.conf").read_text().replace(":8080", f":{port}")
        dialplan.load("conf", with_callee(text))
        await callee.register()
        target = await place_call(ami, caller, "wait")
        talking = target.call.play(warm_up, loop=True)
        await send_to_context(ami, target, "separate-streams")
        at_callee = await callee.incoming()
        await server.wait_said("begins", times=2)
        await at_callee.play(warm_up)
        talking.cancel()
        await asyncio.gather(target.call.play(said + warm_up), at_callee.play(heard + warm_up))
        if ends_first == "server":
            assert await server.stop() == 0
            await target.call.hangup()
            # It comes back for the last frames: its forks would look for it for half a minute.
            later = tmp_path / "later"
            later.mkdir()
            async with NodeServer(EXAMPLE / "server.js", later, PORT=port):
                await no_forks(daemon)
        else:
            await target.call.hangup()
            await server.wait_said("1000 hangup", times=2)
            assert await server.stop() == 0
    said, heard = [decode(block) for block in said], [decode(block) for block in heard]
    in_raw, out_raw = (tmp_path / name for name in ("in.raw", "out.raw"))
    assert report(find_blocks(in_raw.read_bytes(), said), 300).intact
    assert report(find_blocks(out_raw.read_bytes(), heard), 300).intact
    assert find_blocks(in_raw.read_bytes(), heard) == find_blocks(out_raw.read_bytes(), said) == []


async def test_example_server_refuses_another_path(
    daemon: Daemon, ami: AmiClient, caller: SipUser, tmp_path: Path
) -> None:
    async with NodeServer(EXAMPLE / "server.js", tmp_path, PORT="0") as server:
        await server.wait_said("listening on")
        port = re.findall(r":(\d+)/", server.output)[0]
        target = await place_call(ami, caller)
        ami.send(
            "UserEvent",
            UserEvent="AudioFork",
            Channel=target.channel,
            WsServer=f"ws://127.0.0.1:{port}/other",
        )
        failed = await ami.wait_user_event("AudioForkFailed", Channel=target.channel)
        assert failed["Reason"] == "sink-refused"
        await target.call.hangup()
        assert await server.stop() == 0
    assert os.listdir(tmp_path) == []


@needs_whole_in()
@counts_blocks
async def test_server_of_the_guide_writes_the_audio(
    daemon: Daemon, ami: AmiClient, caller: SipUser, tmp_path: Path, unused_tcp_port: int
) -> None:
    script = tmp_path / "server.js"
    text = BLOCKS["js", "after", "server"].replace("8080", str(unused_tcp_port))
    script.write_text(text + "server.on('listening', () => console.log('listening on'));\n")
    blocks, warm_up = make_blocks(100, seed=24), make_blocks(25, seed=25)
    async with NodeServer(script, tmp_path) as server:
        await server.wait_said("listening on")
        target = await place_call(ami, caller)
        ami.send(
            "UserEvent",
            UserEvent="AudioFork",
            Channel=target.channel,
            WsServer=f"ws://127.0.0.1:{unused_tcp_port}/",
            Options="D(in)",
        )
        await target.call.play(warm_up)
        await target.call.play(blocks + warm_up)
        await target.call.hangup()
        await ami.wait_user_event("AudioForkStopped", Channel=target.channel)
        await asyncio.sleep(0.2)
    found = find_blocks((tmp_path / "audio.raw").read_bytes(), [decode(b) for b in blocks])
    assert report(found, 100).intact
