"""Attacks on the HTTP door: clients that may not, and clients that want to stop the calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.attacks import ATTACKS
from testbed.attacks.http_requests import LISTEN, TOKENS, VIEW, cases, request
from testbed.attacks.servers import Watched
from testbed.crowd import Crowd, became, whole
from testbed.daemon import Daemon
from testbed.faulty_server import ServerProcess
from testbed.http_attacker import HOST, MODES
from testbed.measuring import Finding, Scene

FLOOD_S = 20
# Few of one call: a block that a caller loses is missing in each of them.
CALLS, FORKS_A_CALL = 10, 2
# The connections of one address, with what the door and the kernel's copies of it hold for each.
MAX_GROWTH_KIB = 32 * 1024
# Of the log in FLOOD_S.
MAX_LOG_BYTES = 20_000
GOOD_SOURCE = "127.0.0.2"  # the attacker's is another: the door counts clients by address
LATE_S = 1.0
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Door:
    """A daemon's HTTP door, at a free port of HOST, with a token for each role."""

    folder: Path
    port: int

    @property
    def settings(self) -> str:
        """The lines of [http]."""
        return f"listen = {HOST}:{self.port}\ntokens_file = {self.folder}/tokens\n"


@contextlib.contextmanager
def door() -> Iterator[Door]:
    """Make the tokens, and find a port."""
    with tempfile.TemporaryDirectory(prefix="audiofork-http-") as name:
        tokens = Path(name, "tokens")
        tokens.touch(0o600)
        tokens.write_text("".join(f"{role} {role} {token}\n" for role, token in TOKENS.items()))
        with socket.create_server((HOST, 0)) as server:
            port = int(server.getsockname()[1])
        yield Door(Path(name), port)


# --- What must be refused ------------------------------------------------------------------------


@dataclass
class Refusals:
    """What the door has answered to requests that it must refuse.

    Attributes:
        wrong: The requests that were answered otherwise, with the status.
        leaks: Those whose answer shows what nobody may see.
        same: Whether the forks are as they were.
        told: How many tokens the log has.
    """

    wrong: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    same: bool = False
    told: int = 0

    def __str__(self) -> str:
        parts = [
            f"{len(self.wrong)} answered otherwise{': ' if self.wrong else ''}",
            f"{', '.join(self.wrong)}; {'no effect' if self.same else 'the fork has changed'}; ",
            f"{len(self.leaks)} leaks{': ' if self.leaks else ''}{', '.join(self.leaks)}; ",
            f"{self.told} tokens in the log",
        ]
        return "".join(parts)


@ATTACKS
async def http_refusals(scene: Scene) -> list[Finding]:
    """Send requests that must be refused, each by the bytes, and look for their effect."""
    with door() as one:
        async with ServerProcess() as server:
            with Daemon(scene.asterisk, {"http": one.settings}) as daemon:
                crowd = Crowd(scene)
                await crowd.gather(1, server.url, "D(in)")
                refusals = await _refused(one.port)
                refusals.told = sum(token in daemon.log() for token in TOKENS.values())
                await crowd.hang_up()
    name = f"HTTP: {len(cases('', ''))} requests that must be refused"
    asked = "each is refused, none has an effect, no answer shows a file, no token is in the log"
    ok = refusals.same and not (refusals.wrong or refusals.leaks or refusals.told)
    return [Finding(name, asked, str(refusals), ok)]


async def _refused(port: int) -> Refusals:
    """Send all of them, each from another address, so that none is refused for the others."""
    refusals = Refusals()
    before = await _forks(port)
    for number, case in enumerate(cases(before[0]["id"], await _session(port))):
        answer = await _ask(port, case.request, f"127.0.1.{number + 1}")
        if (status := _status(answer)) not in case.statuses:
            refusals.wrong.append(f"{case.name}: {status}")
        if _leaks(answer):
            refusals.leaks.append(case.name)
    after = await _forks(port)
    states = [[(fork["id"], fork["muted"]) for fork in forks] for forks in (before, after)]
    refusals.same = states[0] == states[1]
    return refusals


async def _session(port: int) -> str:
    """Begin a session that may control, as the page does; return its id."""
    body = json.dumps({"token": TOKENS["control"]}).encode()
    answer = await _ask(port, request("/api/v1/session", method="POST", body=body))
    return answer.partition(b"audiofork_session=")[2].partition(b";")[0].decode()


def _status(answer: bytes) -> int:
    """Return the status of an answer; 0: there is none."""
    words = answer.split(b" ", 2)
    return int(words[1]) if answer.startswith(b"HTTP/") and words[1].isdigit() else 0


def _leaks(answer: bytes) -> bool:
    """Return whether an answer shows a file of the machine, a token, or a traceback."""
    telling = (b"root:", b"Traceback", b"aiohttp", *(one.encode() for one in TOKENS.values()))
    return any(one in answer for one in telling)


async def _ask(port: int, data: bytes, source: str = GOOD_SOURCE) -> bytes:
    """Send bytes; return what comes until the door closes, or the beginning of a long answer."""
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(HOST, port, local_addr=(source, 0))
        try:
            with contextlib.suppress(OSError):  # it need not read all of it
                writer.write(data)
                await writer.drain()
            answer = b""
            with contextlib.suppress(OSError):
                while len(answer) < 1 << 20 and (chunk := await reader.read(65_536)):
                    answer += chunk
            return answer
        finally:
            writer.transport.abort()


async def _forks(port: int) -> list[dict[str, Any]]:
    """Return the forks, as somebody sees them who may."""
    answer = await _ask(port, request("/api/v1/forks?limit=1000", token=VIEW))
    found: list[dict[str, Any]] = json.loads(answer.partition(b"\r\n\r\n")[2])["forks"]
    return found


# --- Floods --------------------------------------------------------------------------------------


@ATTACKS
async def http_floods(scene: Scene) -> list[Finding]:
    """Run hostile clients of each kind for 20 s beside 20 forks and a good viewer."""
    return [one for mode in MODES for one in await _beside(scene, mode)]


@dataclass
class Viewer:
    """Somebody of another address, who looks at the forks five times a second.

    Attributes:
        took_s: How long each answer took, in seconds; infinite: none came.
    """

    port: int
    took_s: list[float] = field(default_factory=list)

    async def look(self) -> None:
        """Look, for ever."""
        while True:
            began = time.monotonic()
            try:
                await _forks(self.port)
            except (OSError, TimeoutError, ValueError, LookupError):
                self.took_s.append(float("inf"))
            else:
                self.took_s.append(time.monotonic() - began)
            await asyncio.sleep(0.2)


@asynccontextmanager
async def looking(port: int) -> AsyncIterator[Viewer]:
    viewer = Viewer(port)
    task = asyncio.create_task(viewer.look())
    try:
        yield viewer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _beside(scene: Scene, mode: str) -> list[Finding]:
    with door() as one, Watched() as watched:
        async with ServerProcess() as server:
            with Daemon(scene.asterisk, {"http": one.settings}, watched.command) as daemon:
                crowd = Crowd(scene)
                await crowd.gather(CALLS, server.url, "D(in)", each=FORKS_A_CALL)
                await crowd.speak()
                await asyncio.sleep(2)
                log = len(daemon.log())
                watched.begin(daemon)
                async with looking(one.port) as viewer:
                    attack = await _begin(mode, one.port)
                    await watched.watch(FLOOD_S)
                    report = await _end(attack)
                until = time.monotonic()
                written = len(daemon.log()) - log
                after = await _forks(one.port)
                stopped = await crowd.hang_up()
                connections = server.connections()
    name = f"HTTP: {mode} for {FLOOD_S} s, {len(crowd.forks)} forks"
    lost = whole(name, became(crowd, connections, until), stopped)
    return [
        lost._replace(seen=f"{report}; {lost.seen}"),
        Finding(name, *watched.suffered(connections, until, MAX_GROWTH_KIB)),
        _served(name, viewer, len(after), len(crowd.forks)),
        Finding(
            name,
            f"the log grows by {MAX_LOG_BYTES} bytes at most",
            f"{written} bytes",
            written <= MAX_LOG_BYTES,
        ),
    ]


async def _begin(mode: str, port: int) -> asyncio.subprocess.Process:
    """Begin the attack; what it costs the attacker is not to be taken from callers and calls."""
    arguments = ["-m", "testbed.http_attacker", mode, str(port), str(FLOOD_S - 2), LISTEN]
    return await asyncio.create_subprocess_exec(
        *("nice", "-n", "15", sys.executable, *arguments), stdout=asyncio.subprocess.PIPE
    )


async def _end(attack: asyncio.subprocess.Process) -> str:
    """Return what the attacker has done, as text."""
    try:
        async with asyncio.timeout(30):
            output, _ = await attack.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            attack.kill()
    told = json.loads(output)
    answers = ", ".join(f"{count} of {status}" for status, count in told["statuses"].items())
    return (
        f"{told['connections']} connections, {told['most_open']} at once, "
        f"{told['sent_bytes'] // 1_000_000} MB sent, answers: {answers or 'not looked at'}"
    )


def _served(name: str, viewer: Viewer, left: int, forks: int) -> Finding:
    worst = max(viewer.took_s, default=float("inf"))
    return Finding(
        name,
        f"a viewer at another address is answered within {LATE_S:g} s, and sees all forks",
        f"{len(viewer.took_s)} times, within {worst:.2f} s; {left} of {forks} forks",
        worst <= LATE_S and left == forks,
    )
