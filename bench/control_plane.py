"""Measures what the control plane costs: `make bench-control`.

    python -m bench.control_plane [--forks N] [--rate N] [--starts-for S] [--windows N]
        [--seconds S] [--workers N] [--real] [--json]

The daemon as users run it (journal, history, HTTP interface), and the sink of the benchmark. Its
relay has processes of its own, so that what the other one uses is the control plane's. Each call
brings little audio and is silent then, so that next to none disturbs what is measured.

Two cores have no room for a real Asterisk with 1,000 legs beside 50 starts a second: a silent leg
takes 0.1 % of a core there. So what answers AMI and connects legs is that of `bench.cluster`, where
each leg brings a frame. With --real it is a private Asterisk with Local channels whose party is
heard for a second; take 200 forks.

First at rest: without forks, with all of them, then while metrics are read each second, and while a
page is open. Then calls begin at a steady rate, each with a fork, and for each the oldest one is
hung up. Exits with 1 if a fork was refused, or did not start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import re
import secrets
import sys
import tempfile
import urllib.request
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from bench import build, measure
from bench.control_plane_calls import Calls, real_calls, stand_in
from bench.control_plane_table import (
    Rest,
    Starts,
    Used,
    rest_of,
    rest_table,
    starts_of,
    starts_table,
)
from bench.program import Program, ProgramFailed
from bench.progress import telling
from bench.stage import Server, now
from testbed.asterisk import AsteriskFailed, AsteriskUnavailable
from testbed.daemon import Daemon

FORKS, RATE, FOR_S = 1000, 50.0, 60.0
WINDOWS, SECONDS = 5, 3.0
# One would relay in the process of the control plane.
WORKERS = 2
SETTLE_S = 3.0
LOOKS = 6  # at the memory, while forks start
SCRAPE_S = 1.0


class Door:
    """The HTTP interface of the daemon.

    Args:
        folder: For the file of tokens; has to stay.
    """

    def __init__(self, folder: Path) -> None:
        self._token = secrets.token_urlsafe(24)
        tokens = folder / "tokens"
        tokens.touch(mode=0o600)
        tokens.write_text(f"bench view {self._token}\n")
        self.settings = f"listen = 127.0.0.1:0\ntokens_file = {tokens}\n"
        self.port = 0

    def find(self, log: str) -> None:
        """Learn its port from the log of the daemon."""
        found = re.search(r"HTTP interface on http://127\.0\.0\.1:(\d+)", log)
        if found is None:
            raise ProgramFailed(f"the daemon has no HTTP interface: {log[-1000:]}")
        self.port = int(found[1])

    def scrape(self) -> int:
        """Read the metrics, as Prometheus does; return how many bytes they are."""
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return len(answer.read())

    @contextlib.asynccontextmanager
    async def scraped(self) -> AsyncIterator[None]:
        """Read the metrics each second until the end of the context."""

        async def read() -> None:
            while True:
                await asyncio.to_thread(self.scrape)
                await asyncio.sleep(SCRAPE_S)

        reading = asyncio.create_task(read())
        yield
        if reading.done():
            reading.result()  # raises what has ended it
        reading.cancel()

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Have the page open until the end of the context."""
        who = [str(self.port), self._token, "-", "--viewers", "1"]
        with Program([sys.executable, "-m", "bench.viewer_crowd", *who]) as page:
            await asyncio.to_thread(page.hear, 30)
            yield


class Stage:
    """The parts, and the calls.

    Attributes:
        calls: The uniqueids of those that go on, oldest first.
    """

    def __init__(self, calls: Calls, daemon: Daemon, server: Server) -> None:
        self._source = calls
        self._daemon = daemon
        self._server = server
        self._journal_thread = 0
        self.calls: deque[str] = deque()

    async def begin_calls(self, count: int, rate: float, most: int) -> list[str]:
        """Let so many calls begin at a steady rate; return their uniqueids.

        Args:
            count: How many.
            rate: How many a second.
            most: Where there are more the oldest one is hung up.
        """
        began = now()
        new: list[str] = []
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / rate - now()))
            new.append(self._source.begin_call())
            self.calls.append(new[-1])
            if len(self.calls) > most:
                self._source.end(self.calls.popleft())
        await asyncio.sleep(max(0.0, began + count / rate - now()))
        return new

    async def fill(self, count: int, rate: float) -> None:
        """Begin calls until there are so many forks.

        Raises:
            ProgramFailed: They do not start.
        """
        before = self._written()
        await self.begin_calls(count - len(self.calls), rate, count)
        await self._settle()
        if (there := self._server.count()["open"]) != count:
            log = self._daemon.log()[-1000:]
            raise ProgramFailed(f"{there} of {count} forks have started: {log}")
        # The history writes what has ended: until now nothing.
        after = self._written()
        self._journal_thread = max(after, key=lambda thread: after[thread] - before.get(thread, 0))

    def _written(self) -> dict[int, int]:
        """Return what each thread of the daemon has written, but for that of the event loop."""
        threads = measure.threads(self._daemon.pid)
        return {one: threads[one].written_bytes for one in threads if one != self._daemon.pid}

    async def _settle(self) -> None:
        await self._server.wait(lambda count: count["open"] == len(self.calls))
        await asyncio.sleep(SETTLE_S)

    def used(self) -> Used:
        """Return what was used until now."""
        pid = self._daemon.pid
        threads = measure.threads(pid)
        loop = threads.pop(pid)
        journal = threads.pop(self._journal_thread, measure.Thread(0.0, 0))
        return Used(
            s=now(),
            control_s=measure.own_cpu_s(pid),
            loop_s=loop.cpu_s,
            journal_s=journal.cpu_s,
            relay_s=sum(measure.own_cpu_s(child) for child in measure.tree(pid)[1:]),
            asterisk_s=self._source.cpu_s(),
            journal_bytes=journal.written_bytes,
            history_bytes=sum(one.written_bytes for one in threads.values()),
        )

    async def rest(self, what: str, windows: int, seconds: float) -> Rest:
        """Measure some times while nothing is asked for."""
        await asyncio.sleep(SETTLE_S)
        found: list[Used] = []
        for _ in range(windows):
            before = self.used()
            await asyncio.sleep(seconds)
            found.append(self.used() - before)
        return rest_of(what, len(self.calls), found, self._daemon.memory_kib())

    async def starts(self, rate: float, seconds: float, rest: Rest) -> Starts:
        """Measure while calls begin and end."""
        count, kib = len(self.calls), [self._daemon.memory_kib()]
        began: list[str] = []
        before = self.used()
        for look in range(1, LOOKS + 1):
            due = round(rate * seconds) * look // LOOKS
            began += await self.begin_calls(due - len(began), rate, count)
            kib.append(self._daemon.memory_kib())
        meanwhile = self.used() - before
        await self._settle()
        used = self.used() - before
        kib.append(self._daemon.memory_kib())
        return starts_of(began, self._source.told, meanwhile, used, rest, kib)


@contextlib.asynccontextmanager
async def staged(options: argparse.Namespace) -> AsyncIterator[tuple[Stage, Door]]:
    """Set everything up: Asterisk, or what stands in for it, the daemon, the sink."""
    tools = build.tools()
    forks = options.forks
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="audiofork-bench-"))
        server = Server(stack.enter_context(Program([tools.sink, "--counted"])))
        most = forks + round(options.rate * options.starts_for)
        source: AbstractAsyncContextManager[Calls] = (
            real_calls(server.url("/")) if options.real else stand_in(most, server.url("/"))
        )
        calls = await stack.enter_async_context(source)
        door = Door(Path(folder))
        settings = {
            "asterisk": calls.settings,
            "http": door.settings,
            "relay": f"workers = {options.workers}\n",
            "security": f"max_forks = {2 * forks}\n",  # one begins before another has ended
        }
        # It waits for its Asterisk, which may be in this process.
        daemon = Daemon(calls.asterisk, settings)
        await asyncio.to_thread(daemon.__enter__)
        stack.push_async_callback(asyncio.to_thread, daemon.__exit__, None, None, None)
        door.find(daemon.log())
        yield Stage(calls, daemon, server), door


async def measured(options: argparse.Namespace) -> tuple[list[Rest], Starts]:
    """Measure all."""
    windows = options.windows, options.seconds
    async with staged(options) as (stage, door):
        with telling("at rest without forks"):
            rests = [await stage.rest("no fork", *windows)]
        with telling(f"starting {options.forks} forks"):
            await stage.fill(options.forks, options.rate)
        with telling(f"at rest with {options.forks} forks"):
            rests.append(await stage.rest("nobody looks", *windows))
        with telling("while metrics are read"):
            async with door.scraped():
                rests.append(await stage.rest("metrics read each second", *windows))
        with telling("while a page is open"):
            async with door.watched():
                rests.append(await stage.rest("a page is open", *windows))
        with telling(f"{options.rate:g} starts a second"):
            starts = await stage.starts(options.rate, options.starts_for, rests[1])
    return rests, starts


def run(options: argparse.Namespace) -> int:
    """Measure, print, return the exit code."""
    rests, starts = asyncio.run(measured(options))
    if options.json:
        plain = [dataclasses.asdict(one) | {"fork_us": one.fork_us(rests[0])} for one in rests]
        print(json.dumps({"rests": plain, "starts": dataclasses.asdict(starts)}, indent=2))
    else:
        print(rest_table(rests))
        print()
        print(starts_table(starts))
        if not options.real:
            print("What is Asterisk's is of the benchmark, which stands in for it.")
    return 0 if starts.is_fine else 1


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="What the control plane costs.")
    parser.add_argument("--forks", type=int, default=FORKS)
    parser.add_argument("--rate", type=float, default=RATE, help="starts a second")
    parser.add_argument("--starts-for", type=float, default=FOR_S, help="seconds of starts")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="at rest")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a window")
    parser.add_argument(
        "--workers", type=int, choices=range(2, 17), default=WORKERS, help="relay processes"
    )
    parser.add_argument("--real", action="store_true", help="beside a real Asterisk")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    try:
        sys.exit(run(parser.parse_args()))
    except (build.CannotBuild, ProgramFailed, AsteriskUnavailable, AsteriskFailed) as exc:
        sys.exit(f"bench: {exc}")


if __name__ == "__main__":
    main()
