"""Measures what forks cost a real Asterisk and the daemon beside it, and how fast they start.

    python -m bench.beside_asterisk [--calls 100] [--seconds 8] [--tap NAME] [--json]

A private Asterisk, the daemon as users run it, SIP calls that speak and hear their echo, and the
sink of the benchmark, which takes next to nothing. First the CPU of both without forks, then with
one fork of each call: in, both and stereo. Then forks are started at a steady rate, and many at
once; a start is measured from the request to the first message at the server. All that by each tap,
unless one is named. Exits with 1 if a fork was refused, or did not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from bench import build, measure
from bench.program import Answer, Program, ProgramFailed
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk, AsteriskFailed, AsteriskUnavailable
from testbed.daemon import Daemon, ari_conf, ari_settings, dialplan, manager_conf
from testbed.progress import Telling
from testbed.sip import SipUser

TELL_S = 5.0
DIRECTIONS = ("in", "both", "stereo")
TAPS = ("chanspy", "snoop")
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


@dataclass(frozen=True)
class Load:
    """CPU while something was going on, in percent of a core, and what it cost a fork.

    Attributes:
        messages: Messages that the server got in a second.
        frame_us: CPU time of the daemon for a message.
        daemon_kib: Memory of the daemon.
    """

    what: str
    asterisk_percent: float
    daemon_percent: float
    messages: float
    frame_us: float
    daemon_kib: int


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
        self.channels: list[str] = []
        self._numbers = itertools.count()

    async def place_calls(self, caller: SipUser, count: int) -> None:
        """Place calls that speak and hear their echo."""
        for _ in range(count):
            position = len(self.ami.events)
            call = await caller.call("echo")
            event = await self.ami.wait_event(
                lambda headers: headers.get("Event") == "Newchannel", after=position
            )
            self.channels.append(event["Channel"])
            call.talk()

    def start(self, channel: str, options: str = "D(in)") -> str:
        """Ask for a fork; return the path that it will ask the server for."""
        path = f"/{next(self._numbers)}"
        self.ami.send(
            "UserEvent",
            UserEvent="AudioFork",
            Command="StartAudioFork",
            Channel=channel,
            WsServer=self.server.url(path),
            Options=options,
        )
        return path

    def stop(self, channel: str) -> None:
        """Ask for the end of all forks of a channel."""
        self.ami.send("UserEvent", UserEvent="AudioFork", Command="StopAudioFork", Channel=channel)

    async def stop_all(self) -> None:
        """End all forks, and wait until the server sees none."""
        for channel in self.channels:
            self.stop(channel)
        if not await self.server.wait(lambda count: count["open"] == 0):
            raise ProgramFailed("forks did not stop")

    def refused(self) -> int:
        """Return how many forks have failed so far."""
        return sum(h.get("UserEvent") == "AudioForkFailed" for _, h in self.ami.events)

    async def load(self, what: str, seconds: float) -> Load:
        """Measure for some seconds."""
        await asyncio.sleep(SETTLE_S)
        pids = (self.asterisk.pid, self.daemon.pid)
        before, count, began = [measure.cpu(pid) for pid in pids], self.server.count(), now()
        await asyncio.sleep(seconds)
        used = [(measure.cpu(pid) - cpu).total_s for pid, cpu in zip(pids, before, strict=True)]
        messages, span_s = self.server.count()["messages"] - count["messages"], now() - began
        return Load(
            what=what,
            asterisk_percent=100 * used[0] / span_s,
            daemon_percent=100 * used[1] / span_s,
            messages=messages / span_s,
            frame_us=1e6 * used[1] / messages if messages else 0.0,
            daemon_kib=measure.memory_kib(self.daemon.pid),
        )

    async def load_of(self, direction: str, seconds: float) -> Load:
        """Measure with a fork of each call."""
        before = self.server.count()["connections"]
        for channel in self.channels:
            self.start(channel, f"D({direction})")
        wanted = before + len(self.channels)
        if not await self.server.wait(lambda count: count["connections"] == wanted):
            raise ProgramFailed(f"forks did not start: {self.daemon.log()[-1000:]}")
        load = await self.load(direction, seconds)
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
        return await self._starts(f"{STARTS_A_SECOND} a second", asked, refused)

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


@contextlib.asynccontextmanager
async def staged(calls: int, tap: str) -> AsyncIterator[Stage]:
    """Set everything up: Asterisk, the daemon, the sink, and calls that speak."""
    tools = build.tools()
    with contextlib.ExitStack() as stack:
        config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
        asterisk = stack.enter_context(Asterisk(dialplan=DIALPLAN + dialplan(), config=config))
        settings = {"ari": ari_settings(asterisk)} if tap == "snoop" else {}
        daemon = stack.enter_context(Daemon(asterisk, settings))
        sink = stack.enter_context(Program([tools.sink, "--unchecked"]))
        async with (
            AmiClient(asterisk) as ami,
            SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as caller,
        ):
            stage = Stage(asterisk, daemon, ami, Server(sink))
            await stage.place_calls(caller, calls)
            yield stage


def show_loads(loads: list[Load], calls: int, tap: str) -> None:
    """Print what forks cost."""
    print(f"\n{calls} calls, each with a fork by {tap}; CPU in percent of a core")
    print("            Asterisk   daemon   of which a fork        messages   daemon's CPU")
    print("                                Asterisk    daemon     a second   us a message")
    alone = loads[0]
    for load in loads:
        more = (load.asterisk_percent - alone.asterisk_percent) / calls
        cost = (load.daemon_percent - alone.daemon_percent) / calls
        print(
            f"{load.what:<10} {load.asterisk_percent:9.1f} {load.daemon_percent:8.1f} "
            f"{more:10.3f} {cost:9.3f} {load.messages:12.0f} {load.frame_us:14.1f}"
        )
    print(f"Memory of the daemon: {alone.daemon_kib} KiB without forks, ", end="")
    print(", ".join(f"{load.daemon_kib} with {load.what}" for load in loads[1:]))


def show_starts(starts: list[Starts]) -> None:
    """Print how forks started."""
    print("\nstarts         asked  started  refused  median ms   p99 ms   max ms")
    for one in starts:
        print(
            f"{one.what:<14} {one.asked:5} {one.started:8} {one.refused:8} "
            f"{one.median_ms:10.0f} {one.p99_ms:8.0f} {one.max_ms:8.0f}"
        )


def telling(what: str) -> Telling:
    """Say what is measured, on standard error: the output may be JSON."""
    return Telling(partial(str, what), TELL_S, partial(print, file=sys.stderr, flush=True))


async def measured(options: argparse.Namespace, tap: str) -> tuple[list[Load], list[Starts]]:
    """Measure what forks cost by one tap, and how they start."""
    async with staged(options.calls, tap) as stage:
        with telling(f"{options.calls} calls without a fork"):
            loads = [await stage.load("no fork", options.seconds)]
        for direction in DIRECTIONS:
            with telling(f"{options.calls} calls, each with a fork by {tap}, {direction}"):
                loads.append(await stage.load_of(direction, options.seconds))
        with telling(f"starts by {tap}"):
            starts = [await stage.start_steadily()]
            await stage.server.wait(lambda count: count["open"] == 0)
            starts.append(await stage.start_at_once())
    return loads, starts


async def run(options: argparse.Namespace) -> int:
    """Measure, print, return the exit code."""
    plain: list[dict[str, object]] = []
    all_started = True
    for tap in [options.tap] if options.tap else TAPS:
        loads, starts = await measured(options, tap)
        all_started &= all(one.started == one.asked and not one.refused for one in starts)
        if options.json:
            rows = {
                "loads": [dataclasses.asdict(load) for load in loads],
                "starts": [dataclasses.asdict(one) for one in starts],
            }
            plain.append({"tap": tap, "calls": options.calls, **rows})
        else:
            show_loads(loads, options.calls, tap)
            show_starts(starts)
    if options.json:
        print(json.dumps(plain, indent=2))
    return 0 if all_started else 1


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="What forks cost beside a real Asterisk.")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8.0, help="measure each row for so long")
    parser.add_argument("--tap", choices=TAPS, help="only by this one")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    try:
        sys.exit(asyncio.run(run(parser.parse_args())))
    except (build.CannotBuild, ProgramFailed, AsteriskUnavailable, AsteriskFailed) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
