"""Sets up what `bench.beside_asterisk` measures: a private Asterisk with calls, and their forks.

The forks are the daemon's, or those of a rival that needs none: a channel of chan_websocket that
runs ChanSpy, with the options of the daemon's own legs; or app_audiofork, the module in C. A rival
is measured where Asterisk has its module, in the folder of the others. All send to the same sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from audiofork.asterisk.taps.chanspy import originate, spy_data
from audiofork.link.messages import LegPart
from bench import build, measure
from bench.program import Answer, Program, ProgramFailed
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, Installation, find_installation
from testbed.daemon import Daemon, ari_conf, ari_settings, asterisk_settings, dialplan, manager_conf
from testbed.sip import SipUser

SETTLE_S = 1.5
STARTS_A_SECOND = 50
STARTS_FOR_S = 10
# Each fork of the steady rate is stopped then, so that the rate is measured and not the load.
FORK_LIFE_S = 1.5
STARTS_AT_ONCE = 200
WAIT_S = 30.0
DIALPLAN = """
[testbed]
exten => echo,1,Answer()
 same => n,Echo()
"""
CHAN_WEBSOCKET = "chan_websocket.so"
APP_AUDIOFORK = "app_audiofork.so"
# 50 messages a second, each of 20 ms of slin at 8 kHz. d(in): the server says nothing, which spares
# the channel its timer.
RIVAL_CHANNEL = "WebSocket/sink/c(slin)d(in)"
RIVAL_CONNECTION = """
[sink]
type = websocket_client
connection_type = per_call_config
uri = {url}
connection_timeout = 5000
"""


@dataclass(frozen=True)
class Forks:
    """A kind of forks, one of each call.

    Attributes:
        message_bytes: Audio in each message that the server gets: 20 ms.
        part: What is heard.
        rival: The module of Asterisk that makes them; empty: the daemon does.
    """

    message_bytes: int
    part: str
    rival: str = ""


KINDS = {
    "in": Forks(320, "in"),
    "both": Forks(320, "both"),
    "stereo": Forks(640, "stereo"),
    "websocket-in": Forks(320, "in", CHAN_WEBSOCKET),
    "websocket-both": Forks(320, "both", CHAN_WEBSOCKET),
    "module-in": Forks(320, "in", APP_AUDIOFORK),
    "module-both": Forks(320, "both", APP_AUDIOFORK),
}
# What ChanSpy hears for a part.
SPIED = {"in": LegPart.IN, "both": LegPart.MIX}


@dataclass(frozen=True)
class Load:
    """CPU while something was going on, in percent of a core.

    Attributes:
        messages: Messages of audio that the server got in a second.
        message_bytes: Audio in each; 0: there was none.
        daemon_kib: Memory of the daemon.
    """

    asterisk_percent: float
    daemon_percent: float
    messages: float = 0.0
    message_bytes: float = 0.0
    daemon_kib: int = 0


@dataclass(frozen=True)
class Starts:
    """The starts of forks; times in ms from the request to the first message."""

    what: str
    asked: int
    started: int
    refused: int
    median_ms: float
    p99_ms: float
    max_ms: float


class Channel(NamedTuple):
    """Asterisk's end of a call."""

    name: str
    uniqueid: str


class Server:
    """The sink, counting only.

    Attributes:
        firsts: When the first message of each path came, CLOCK_MONOTONIC in seconds.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._port = program.hear()["port"]
        self.firsts: dict[str, float] = {}

    def url(self, path: str) -> str:
        """Return its URL with a path."""
        return f"ws://127.0.0.1:{self._port}{path}"

    def count(self) -> Answer:
        """Return what it has counted so far."""
        self._program.say()
        while True:
            answer = self._program.hear()
            if "first" not in answer:
                return answer
            self.firsts[answer["first"]] = answer["at_ns"] / 1e9

    async def wait(self, holds: Callable[[Answer], bool]) -> bool:
        """Wait until its counts are as wanted; return whether they came to be."""
        deadline = time.monotonic() + WAIT_S
        while not holds(self.count()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True


class Stage:
    """The parts, and the channels of the calls."""

    def __init__(self, asterisk: Asterisk, daemon: Daemon, ami: AmiClient, server: Server) -> None:
        self.asterisk = asterisk
        self.daemon = daemon
        self.ami = ami
        self.server = server
        self.channels: list[Channel] = []
        self._rival_ends: list[tuple[str, str]] = []  # the action that ends each, and its channel
        self._numbers = itertools.count()

    @property
    def hot_path(self) -> str:
        """What the daemon says that its hot path is: compiled, or Python."""
        found = re.search(r"hot path: (\w+)", self.daemon.log())
        assert found is not None
        return found[1]

    async def place_calls(self, caller: SipUser, count: int) -> None:
        """Place calls that speak and hear their echo."""
        for _ in range(count):
            position = len(self.ami.events)
            call = await caller.call("echo")
            event = await self.ami.wait_event(
                lambda headers: headers.get("Event") == "Newchannel", after=position
            )
            self.channels.append(Channel(event["Channel"], event["Uniqueid"]))
            call.talk()

    def start(self, channel: Channel, options: str = "D(in)") -> str:
        """Ask for a fork; return the path that it will ask the server for."""
        path = f"/{next(self._numbers)}"
        self.ami.send(
            "UserEvent",
            UserEvent="AudioFork",
            Command="StartAudioFork",
            Channel=channel.name,
            WsServer=self.server.url(path),
            Options=options,
        )
        return path

    def start_rival(self, channel: Channel, forks: Forks) -> None:
        """Let Asterisk itself send the audio of a channel to the server."""
        number = next(self._numbers)
        if forks.rival == APP_AUDIOFORK:
            url, options = self.server.url(f"/{number}"), f"D({forks.part})"
            self.ami.send("AudioFork", Channel=channel.name, WsServer=url, Options=options)
            self._rival_ends.append(("StopAudioFork", channel.name))
            return
        rival = f"rival-{number}"
        originate_rival(self.ami, rival, channel.uniqueid, SPIED[forks.part])
        self._rival_ends.append(("Hangup", rival))

    def stop(self, channel: Channel) -> None:
        """Ask for the end of all forks of a channel that are the daemon's."""
        self.ami.send(
            "UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=channel.name
        )

    async def stop_all(self) -> None:
        """End all forks, and wait until the server sees none."""
        for channel in self.channels:
            self.stop(channel)
        for action, name in self._rival_ends:
            self.ami.send(action, Channel=name)
        self._rival_ends.clear()
        if not await self.server.wait(lambda count: count["open"] == 0):
            raise ProgramFailed("forks did not stop")

    def refused(self) -> int:
        """Return how many forks have failed so far."""
        return sum(h.get("UserEvent") == "AudioForkFailed" for _, h in self.ami.events)

    async def load(self, seconds: float) -> Load:
        """Measure for some seconds."""
        await asyncio.sleep(SETTLE_S)
        pids = (self.asterisk.pid, self.daemon.pid)
        before, count, began = [measure.cpu(pid) for pid in pids], self.server.count(), now()
        await asyncio.sleep(seconds)
        used = [(measure.cpu(pid) - cpu).total_s for pid, cpu in zip(pids, before, strict=True)]
        after, span_s = self.server.count(), now() - began
        messages = after["messages"] - count["messages"]
        return Load(
            asterisk_percent=100 * used[0] / span_s,
            daemon_percent=100 * used[1] / span_s,
            messages=messages / span_s,
            message_bytes=(after["bytes"] - count["bytes"]) / messages if messages else 0.0,
            daemon_kib=measure.memory_kib(self.daemon.pid),
        )

    async def load_of(self, forks: Forks, seconds: float) -> Load:
        """Measure with a fork of each call.

        Raises:
            ProgramFailed: They did not start, or the server did not get 20 ms in each message.
        """
        wanted = self.server.count()["connections"] + len(self.channels)
        for channel in self.channels:
            if forks.rival:
                self.start_rival(channel, forks)
            else:
                self.start(channel, f"D({forks.part})")
        if not await self.server.wait(lambda count: count["connections"] == wanted):
            said = self.asterisk if forks.rival else self.daemon
            raise ProgramFailed(f"forks did not start: {said.log()[-1000:]}")
        load = await self.load(seconds)
        if load.message_bytes != forks.message_bytes:
            raise ProgramFailed(f"{load.message_bytes} bytes a message, not {forks.message_bytes}")
        await self.stop_all()
        return load

    async def start_steadily(self) -> Starts:
        """Start forks at a steady rate, each to live for a moment."""
        asked: dict[str, float] = {}
        loop = asyncio.get_running_loop()
        refused, began = self.refused(), now()
        for number in range(STARTS_A_SECOND * STARTS_FOR_S):
            await asyncio.sleep(max(0.0, began + number / STARTS_A_SECOND - now()))
            channel = self.channels[number % len(self.channels)]
            asked[self.start(channel)] = now()
            loop.call_later(FORK_LIFE_S, self.stop, channel)
        starts = await self._starts(f"{STARTS_A_SECOND} a second", asked, refused)
        await self.server.wait(lambda count: count["open"] == 0)
        return starts

    async def start_at_once(self) -> Starts:
        """Start many forks at once, several of each call."""
        refused = self.refused()
        channels = itertools.islice(itertools.cycle(self.channels), STARTS_AT_ONCE)
        asked = {self.start(channel): now() for channel in channels}
        starts = await self._starts(f"{STARTS_AT_ONCE} at once", asked, refused)
        await self.stop_all()
        return starts

    async def _starts(self, what: str, asked: dict[str, float], refused: int) -> Starts:
        await self.server.wait(lambda _: all(path in self.server.firsts for path in asked))
        firsts = self.server.firsts
        waits_ms = sorted(
            1000 * (firsts[path] - at) for path, at in asked.items() if path in firsts
        )
        if not waits_ms:
            raise ProgramFailed(f"no fork started: {self.daemon.log()[-1000:]}")
        return Starts(
            what=what,
            asked=len(asked),
            started=len(waits_ms),
            refused=self.refused() - refused,
            median_ms=waits_ms[len(waits_ms) // 2],
            p99_ms=waits_ms[int(0.99 * (len(waits_ms) - 1))],
            max_ms=waits_ms[-1],
        )


def now() -> float:
    """Return CLOCK_MONOTONIC in seconds, as the sink's stamps are."""
    return time.monotonic()


def originate_rival(ami: AmiClient, rival: str, uniqueid: str, part: LegPart) -> None:
    """Make a channel of chan_websocket that hears another one; `rival` is its uniqueid.

    Asterisk must have RIVAL_CONNECTION in its websocket_client.conf.
    """
    data = spy_data(uniqueid, part)
    ami.send("Originate", **dict(originate(RIVAL_CHANNEL, rival, "ChanSpy", data)))


def rivals(installation: Installation) -> set[str]:
    """Return the modules of this Asterisk that can do without a daemon."""
    modules = (CHAN_WEBSOCKET, APP_AUDIOFORK)
    return {name for name in modules if (installation.modules / name).exists()}


def settings_of(tap: str, asterisk: Asterisk) -> dict[str, str]:
    """Return the sections of a daemon that hears the calls by a tap."""
    if tap == "snoop":
        return {"ari": ari_settings(asterisk)}
    # ChanSpy has no stereo without it; the calls are of 8 kHz.
    return {"asterisk": asterisk_settings(asterisk) + "chanspy_pairs = narrowband\n"}


@contextlib.asynccontextmanager
async def staged(calls: int, tap: str, tree: Path | None = None) -> AsyncIterator[Stage]:
    """Set everything up: Asterisk, the daemon, the sink, and calls that speak.

    Args:
        calls: How many.
        tap: What the daemon hears them by.
        tree: As for `Daemon`.
    """
    tools = build.tools()
    with contextlib.ExitStack() as stack:
        server = Server(stack.enter_context(Program([tools.sink, "--unchecked"])))
        installation = find_installation()
        loaded = rivals(installation) & {APP_AUDIOFORK}  # the others are loaded anyway
        config = {
            "modules.conf": "".join(f"load = {name}\n" for name in loaded),
            "manager.conf": manager_conf(),
            "ari.conf": ari_conf(),
            "websocket_client.conf": RIVAL_CONNECTION.format(url=server.url("/rival")),
        }
        asterisk = stack.enter_context(
            Asterisk(installation, dialplan=DIALPLAN + dialplan(), config=config)
        )
        daemon = stack.enter_context(Daemon(asterisk, settings_of(tap, asterisk), tree=tree))
        async with (
            AmiClient(asterisk) as ami,
            SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
        ):
            stage = Stage(asterisk, daemon, ami, server)
            await stage.place_calls(caller, calls)
            yield stage
