"""The command start waits until audio flows, or says why it does not, beside a real Asterisk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import trustme

from testbed.asterisk import Asterisk
from testbed.daemon import Daemon, dialplan, manager_conf
from testbed.faulty_server import FaultyServer, Manner
from tests.system.conftest import DIALPLAN, Target
from tests.system.scene import Scene, staged

pytestmark = pytest.mark.asterisk

# Try soon, and give up soon, or never.
SOON = "D(both)R(1)r(2)"
FOR_EVER = "D(both)R(1)r(0)"


@pytest.fixture(scope="module")
def asterisk() -> Iterator[Asterisk]:
    """An Asterisk of this module's own, which may be killed."""
    with Asterisk(dialplan=DIALPLAN + dialplan(), config={"manager.conf": manager_conf()}) as one:
        yield one


@pytest.fixture
async def server() -> AsyncIterator[FaultyServer]:
    async with FaultyServer() as one:
        yield one


@pytest.fixture
async def scene(asterisk: Asterisk, server: FaultyServer) -> AsyncIterator[Scene[FaultyServer]]:
    async with staged(asterisk, server, {}) as one:
        yield one


class Command:
    """`audiofork` with some arguments beside a daemon, in pipes."""

    def __init__(self, daemon: Daemon, *arguments: str) -> None:
        self._arguments = (*arguments, "-c", str(daemon.config))

    async def __aenter__(self) -> Command:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "audiofork", *self._arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._out, self._err = self.process.stdout, self.process.stderr
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def says(self, pattern: str) -> str:
        """Wait for a line of its errors, whatever comes before it; its end is a failure."""
        seen = ""
        async with asyncio.timeout(20):
            while True:
                line = (await self._err.readline()).decode()
                assert line, f"it has ended: {seen}"
                seen += line
                if re.search(pattern, line):
                    return line

    async def fork_id(self) -> str:
        async with asyncio.timeout(20):
            line = (await self._out.readline()).decode()
        assert re.fullmatch(r"[0-9a-f-]{36}\n", line), line
        return line.strip()

    async def ends(self) -> tuple[int, str]:
        """Return the exit code and the last line of its errors; it prints nothing else."""
        async with asyncio.timeout(30):
            assert await self._out.read() == b""
            errors = (await self._err.read()).decode().splitlines()
            return await self.process.wait(), errors[-1] if errors else ""


def start(daemon: Daemon, target: Target, url: str, options: str, *more: str) -> Command:
    return Command(daemon, "start", target.channel, url, "--options", options, *more)


async def listed(daemon: Daemon, *arguments: str) -> str:
    async with Command(daemon, "list", *arguments) as command:
        output, _ = await command.process.communicate()
        return output.decode()


async def test_start_ends_when_audio_flows(scene: Scene[FaultyServer]) -> None:
    target = await scene.call()
    target.call.talk()
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/"), SOON) as command:
            fork_id = await command.fork_id()
            code, last = await command.ends()
            assert code == 0
            assert re.fullmatch(rf"fork {fork_id[:8]} streams, \d+ ms after the request", last)
            assert scene.server.recordings[0].messages
        (fork,) = json.loads(await listed(daemon, "--json"))
        assert (fork["state"], fork["waits_for"], fork["last_error"]) == ("streaming", "", "")
        log = daemon.log()
    assert re.search(r"requested by control socket connection \d+ of uid \d+, both by", log)
    assert re.search(r"streaming \d+ ms after the request \(the server after \d+ ms, the legs", log)


@pytest.mark.parametrize("workers", [1, 2])
async def test_server_that_comes_late_is_waited_for_with_its_error_and_the_next_attempt(
    scene: Scene[FaultyServer], workers: int
) -> None:
    scene.settings["relay"] = f"workers = {workers}\n"
    target = await scene.call()
    target.call.talk()
    scene.server.refuse()
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/"), FOR_EVER) as command:
            await command.fork_id()
            await command.says(
                r"has waited \d+ s for the server: .*Connection refused.*; attempt [2-9]"
            )
            await command.says(
                r"has waited \d+ s for the server: .*Connection refused.*; attempt [4-9]"
            )
            (fork,) = json.loads(await listed(daemon, "--json"))
            assert (fork["state"], fork["waits_for"]) == ("attaching", "the server")
            assert fork["last_error"].endswith("Connection refused (no program listens there)")
            assert 0 <= fork["next_attempt_s"] <= 1
            assert fork["attempt"] >= 4
            table = await listed(daemon)
            assert re.search(r"  (now|in 1 s)  +the server, for \d+ s: .*refused.*\n", table)
            await scene.server.start()
            code, last = await command.ends()
            assert (code, " streams, " in last) == (0, True)
        (fork,) = json.loads(await listed(daemon, "--json"))
        assert fork["last_error"].endswith("Connection refused (no program listens there)")
        assert (fork["waits_for"], fork["next_attempt_s"]) == ("", None)


async def test_server_that_does_not_come_ends_the_command_with_1_and_what_to_do(
    scene: Scene[FaultyServer],
) -> None:
    target = await scene.call()
    target.call.talk()
    scene.server.refuse()
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/"), SOON) as command:
            fork_id = await command.fork_id()
            code, last = await command.ends()
        assert "streaming" not in daemon.log()
    assert code == 1
    assert last.startswith(
        f"audiofork: fork {fork_id} of {target.channel} has ended before it streamed: sink-gone ("
    )
    assert "is the server running, and does the URL name its host and port?" in last


@pytest.mark.parametrize("status", [400, 401])
async def test_server_that_refuses_ends_the_command_with_1_and_its_answer(
    scene: Scene[FaultyServer], status: int
) -> None:
    target = await scene.call()
    target.call.talk()
    scene.server.manner = Manner(status=status)
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/?token=secret"), SOON) as command:
            await command.fork_id()
            code, last = await command.ends()
        assert "secret" not in last + daemon.log()
    assert code == 1
    assert re.search(rf"sink-refused \(.*the server answered HTTP {status}", last)
    assert "that is final: correct the URL, its token or the certificate" in last


async def test_certificate_that_is_refused_ends_the_command_with_1_and_what_is_wrong(
    scene: Scene[FaultyServer],
) -> None:
    target = await scene.call()
    target.call.talk()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with FaultyServer(context) as server:
        with scene.daemon() as daemon:
            async with start(daemon, target, server.url("/"), SOON) as command:
                await command.fork_id()
                code, last = await command.ends()
    assert code == 1
    assert "sink-refused (" in last
    assert "certificate" in last


async def test_call_that_ends_before_audio_ends_the_command_with_1(
    scene: Scene[FaultyServer],
) -> None:
    target = await scene.call("wait")
    scene.server.refuse()
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/"), "D(in)R(1)r(0)") as command:
            await command.fork_id()
            await command.says("Connection refused")
            await target.call.hangup()
            code, last = await command.ends()
    assert code == 1
    assert "hangup; the call was hung up before any audio went to the server" in last


async def test_party_that_sends_nothing_is_waited_for_until_the_timeout(
    scene: Scene[FaultyServer],
) -> None:
    target = await scene.call("wait")
    with scene.daemon() as daemon:
        url, timeout = scene.server.url("/"), ("--timeout", "1.5")
        async with start(daemon, target, url, "D(in)", *timeout) as command:
            fork_id = await command.fork_id()
            code, last = await command.ends()
        assert code == 1
        assert f"fork {fork_id} does not stream after 1.5 s: it waits for audio of the call" in last
        assert f"It keeps trying; to end it: audiofork stop {fork_id}" in last
        (fork,) = json.loads(await listed(daemon, "--json"))
        assert (fork["id"], fork["state"]) == (fork_id, "attaching")


async def test_start_that_does_not_wait_ends_at_once(scene: Scene[FaultyServer]) -> None:
    target = await scene.call()
    scene.server.refuse()
    with scene.daemon() as daemon:
        url = scene.server.url("/")
        async with start(daemon, target, url, FOR_EVER, "--no-wait") as command:
            fork_id = await command.fork_id()
            assert await command.ends() == (0, "")
        assert fork_id in await listed(daemon)


async def test_ctrl_c_leaves_the_fork_and_says_how_to_end_it(scene: Scene[FaultyServer]) -> None:
    target = await scene.call()
    target.call.talk()
    scene.server.refuse()
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/"), FOR_EVER) as command:
            fork_id = await command.fork_id()
            await command.says("Connection refused")
            command.process.send_signal(signal.SIGINT)
            code, last = await command.ends()
        assert code == 130
        assert last == (
            f"audiofork: fork {fork_id} is left as it is; to end it: audiofork stop {fork_id}"
        )
        await scene.server.start()
        await scene.server.wait_messages("/", 10)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_daemon_that_ends_meanwhile_ends_the_command_with_4(
    scene: Scene[FaultyServer], how: str
) -> None:
    target = await scene.call()
    target.call.talk()
    scene.server.refuse()
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/"), FOR_EVER) as command:
            fork_id = await command.fork_id()
            await command.says("Connection refused")
            await asyncio.to_thread(getattr(daemon, how))
            code, last = await command.ends()
        assert code == 4
        assert f"before fork {fork_id} streamed" in last
        assert "on_stop = keep" in last
        assert "Traceback" not in daemon.log()


async def test_asterisk_that_dies_meanwhile_ends_the_command_with_1_and_the_reason(
    asterisk: Asterisk, server: FaultyServer
) -> None:
    async with staged(asterisk, server, {}) as scene:
        target = await scene.call()
        target.call.talk()
        server.refuse()
        with scene.daemon() as daemon:
            async with start(daemon, target, server.url("/"), FOR_EVER) as command:
                await command.fork_id()
                await command.says("Connection refused")
                await asyncio.to_thread(asterisk.kill)
                try:
                    code, last = await command.ends()
                finally:
                    await asyncio.to_thread(asterisk.restart)
    assert code == 1
    assert "leg-failed (" in last
    assert "Asterisk" in last


async def test_watch_goes_on_over_a_restart_of_the_daemon(scene: Scene[FaultyServer]) -> None:
    target = await scene.call()
    target.call.talk()
    with scene.daemon() as daemon:
        async with start(daemon, target, scene.server.url("/"), FOR_EVER) as command:
            await command.fork_id()
            assert (await command.ends())[0] == 0
        async with Command(daemon, "list", "--watch") as watch:
            out = watch.process.stdout
            assert out is not None
            async with asyncio.timeout(30):
                await out.readuntil(b" streaming ")
                await asyncio.to_thread(daemon.kill)
                await watch.says("trying again each second")
                await asyncio.to_thread(daemon.start)
                await watch.says("the daemon is back")
                await out.readuntil(b" streaming ")
            watch.process.send_signal(signal.SIGINT)
            assert await watch.process.wait() == 0
