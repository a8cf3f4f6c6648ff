"""Measures what faults cost, through a real Asterisk: `make faults`.

    python -m testbed.faults [NAME ...] [--storm FORKS] [--churn FORKS]

Callers speak numbered blocks of 20 ms, forks carry them to servers that go away, stall or close,
and what arrived is compared block by block. Prints a line for each finding, and a table in
Markdown at the end. Exit code 0 only if all requirements are met.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from testbed.ami import LOST, AmiClient, Headers
from testbed.crowd import (
    BLOCK_S,
    LISTEN,
    Became,
    Crowd,
    became,
    logged,
    place_call,
    start_fork,
    whole,
)
from testbed.daemon import Daemon
from testbed.faulty_server import (
    BROKEN_OFF,
    FaultyServer,
    Manner,
    ServerProcess,
    read_log,
)
from testbed.measuring import Finding, Measurements, Scene
from testbed.sip import SipUser

SHORT = """
[testbed]
exten => _short.,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER}${EXTEN},Options: D(in))
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER}${EXTEN},Options: D(in))
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER}${EXTEN},Options: D(in))
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER}${EXTEN},Options: D(in))
 same => n,Wait(3600)

"""
COUNTED = (sys.executable, "-m", "testbed.counted_daemon")


measure = Measurements("fault", LISTEN + SHORT)


@measure
async def control(scene: Scene) -> list[Finding]:
    """Run 50 forks for 10 s without a fault: what callers, Asterisk and daemon lose anyway."""
    async with ServerProcess() as process:
        with Daemon(scene.asterisk):
            crowd = Crowd(scene)
            await crowd.gather(50, process.url, "D(in)")
            await crowd.speak()
            await asyncio.sleep(10)
            until = time.monotonic()
            stopped = await crowd.hang_up()
            connections = process.connections()
    return [whole("nothing, 50 forks", became(crowd, connections, until), stopped)]


@measure
async def outage_5s(scene: Scene) -> list[Finding]:
    """A server that is away for 5 s, 20 calls: nothing is lost, and all are back in 1 s."""
    async with away(scene, 5) as (crowd, process):
        await crowd.events("AudioForkResumed")
        until = time.monotonic()
        stopped = await crowd.hang_up()
        listening, connections = read_log(process.log)
    all_of_it = became(crowd, connections, until)
    back = [one.connections[-1].times[0] - listening[-1] for one in all_of_it.values()]
    live = [one.live_at(listening[-1]) - listening[-1] for one in all_of_it.values()]
    name = "server away for 5 s, 20 calls"
    seen = f"first frame after {max(back):.2f} s at most, live audio after {max(live):.2f} s"
    asked = "live again within 1 s of its return (reconnect_interval = 0.5)"
    again = Finding(name, asked, seen, max(live) <= 1)
    return [whole(name, all_of_it, stopped), again]


@measure
async def outage_15s(scene: Scene) -> list[Finding]:
    """A server that is away for 15 s, a backlog of 10: the oldest are dropped, and counted."""
    async with away(scene, 15) as (crowd, process):
        resumed = await crowd.events("AudioForkResumed")
        until = time.monotonic()
        await crowd.hang_up()
        connections = process.connections()
    all_of_it = became(crowd, connections, until)
    exact = contiguous = 0
    gaps = []
    for path, one in all_of_it.items():
        told = int(resumed[path]["FramesDropped"])
        gap = one.gap
        gaps.append(len(gap))
        exact += told == len(gap) and not one.report.duplicated and not one.report.out_of_order
        contiguous += bool(gap) and gap[-1] - gap[0] + 1 == len(gap)
    total = len(crowd.forks)
    seen = (
        f"{min(gaps)} to {max(gaps)} blocks missing; in one piece: {contiguous} of {total}; "
        f"as many as FramesDropped says: {exact} of {total}"
    )
    asked = "the oldest dropped alone; FramesDropped is the gap that the server sees"
    name = "server away for 15 s, 20 calls, backlog of 10 s"
    return [Finding(name, asked, seen, exact == contiguous == total)]


@contextlib.asynccontextmanager
async def away(scene: Scene, seconds: float) -> AsyncIterator[tuple[Crowd, ServerProcess]]:
    """Run 20 calls whose server closes normally after 3 s, and comes back on its port."""
    settings = {"websocket": "reconnect_interval = 0.5\nreconnect_attempts = 0\n"}
    async with ServerProcess() as process:
        with Daemon(scene.asterisk, settings):
            crowd = Crowd(scene)
            await crowd.gather(20, process.url, "D(in)")
            await crowd.speak()
            await asyncio.sleep(3)
            await process.stop()
            await asyncio.sleep(seconds)
            await process.start()
            yield crowd, process


@measure
async def stall_3s(scene: Scene) -> list[Finding]:
    """A server that is stopped (SIGSTOP) for 3 s, 50 forks; its kernel takes next to nothing."""
    return await _stall(scene, 3)


@measure
async def stall_8s(scene: Scene) -> list[Finding]:
    """As `stall_3s`, but longer than we wait for room at the server: connections are given up."""
    return await _stall(scene, 8)


async def _stall(scene: Scene, seconds: int) -> list[Finding]:
    forks = 50
    async with ServerProcess(receive_buffer=4096) as process:
        with Daemon(scene.asterisk) as daemon:
            crowd = Crowd(scene)
            await crowd.gather(forks, process.url, "D(in)R(1)r(0)")
            await crowd.speak()
            await asyncio.sleep(3)
            before_kib = daemon.memory_kib()
            process.freeze()
            await asyncio.sleep(seconds)
            grown_kib = daemon.memory_kib() - before_kib
            process.thaw()
            await asyncio.sleep(4)
            until = time.monotonic()
            stopped = await crowd.hang_up()
            connections = process.connections()
    limit_kib = forks * 16_000 * seconds * 1.2 / 1024
    name = f"server stalls for {seconds} s, {forks} forks"
    asked = f"memory grows by {limit_kib:.0f} KiB at most (the audio that waits and 20 %)"
    memory = Finding(name, asked, f"{grown_kib} KiB", grown_kib <= limit_kib)
    return [whole(name, became(crowd, connections, until), stopped), memory]


@measure
async def vanished(scene: Scene) -> list[Finding]:
    """A server that acknowledges no packet any more, 20 calls; a new one takes its place."""
    async with FaultyServer() as server:
        with Daemon(scene.asterisk):
            crowd = Crowd(scene)
            await crowd.gather(20, server.url, "D(in)R(1)r(0)")
            await crowd.speak()
            await asyncio.sleep(3)
            gone, gone_at = list(server.links), time.monotonic()
            for link in gone:
                link.vanish()
            await crowd.events("AudioForkResumed")
            await asyncio.sleep(0.5)
            until = time.monotonic()
            stopped = await crowd.hang_up()
            for link in gone:
                link.reset()
    all_of_it = became(crowd, [logged(one) for one in server.recordings], until)
    back = [one.connections[-1].opened - gone_at for one in all_of_it.values()]
    name = "server vanishes without a packet, 20 calls"
    seen = f"after {min(back):.1f} to {max(back):.1f} s"
    again = Finding(name, "a new connection within 8 s", seen, max(back) <= 8)
    return [whole(name, all_of_it, stopped), again]


@measure
async def accept_then_close(scene: Scene) -> list[Finding]:
    """A server that takes each connection and closes it at once: how often it is tried."""
    findings = []
    for how, code in (("closes with 1012", 1012), ("resets", BROKEN_OFF)):
        async with FaultyServer() as server:
            server.manner = Manner(close_code=code)
            with Daemon(scene.asterisk):
                counts = await _connects_in_10_s(scene, server)
        name = f"server accepts and {how} at once, {len(counts)} forks"
        seen = f"{min(counts)} to {max(counts)}"
        asked = "10 connects in 10 s a fork at most"
        findings.append(Finding(name, asked, seen, max(counts) <= 10))
    return findings


async def _connects_in_10_s(scene: Scene, server: FaultyServer) -> list[int]:
    callers = [await place_call(scene.ami, scene.caller) for _ in range(10)]
    paths = []
    for number, caller in enumerate(callers):
        caller.call.talk()
        paths.append(f"/{number}")
        start_fork(scene.ami, caller.channel, server.url(paths[-1]), "D(in)")
    await asyncio.sleep(12)
    for caller in callers:
        await caller.call.hangup()
    times = [[one.opened for one in server.at(path)] for path in paths]
    return [sum(at <= opened[0] + 10 for at in opened) for opened in times]


@measure
async def killed(scene: Scene) -> list[Finding]:
    """The daemon is killed (SIGKILL) with 50 live forks, and started again at once."""
    all_of_it, _, times = await _kill_with_50_forks(scene, {})
    return _taken_up(all_of_it, *times)


@measure
async def killed_detached(scene: Scene) -> list[Finding]:
    """The same, where the audio goes through a relay process that outlives the daemon."""
    with tempfile.TemporaryDirectory(prefix="audiofork-relay-") as folder:
        settings = {"relay": f"detached = yes\nfolder = {folder}\n"}
        all_of_it, stopped, _ = await _kill_with_50_forks(scene, settings)
    name = "daemon killed with 50 live forks, started again; [relay] detached = yes"
    return [whole(name, all_of_it, stopped)]


async def _kill_with_50_forks(
    scene: Scene, settings: dict[str, str]
) -> tuple[dict[str, Became], dict[str, Headers], tuple[float, float, float]]:
    """Return what became of the forks, their last events, and the times of `_kill_and_start`."""
    async with ServerProcess() as process:
        with Daemon(scene.asterisk, settings) as daemon:
            crowd = Crowd(scene)
            await crowd.gather(50, process.url, "D(in)")
            await crowd.speak()
            await asyncio.sleep(3)
            times = await asyncio.to_thread(_kill_and_start, daemon)
            await asyncio.sleep(6)
            until = time.monotonic()
            stopped = await crowd.hang_up()
            connections = process.connections()
    return became(crowd, connections, until), stopped, times


def _kill_and_start(daemon: Daemon) -> tuple[float, float, float]:
    """Kill and start the daemon; return when it was killed, started, and connected to Asterisk."""
    killed_at = time.monotonic()
    daemon.kill()
    started_at = time.monotonic()
    daemon.start()
    return killed_at, started_at, time.monotonic()


def _taken_up(
    all_of_it: dict[str, Became], killed_at: float, started_at: float, ready_at: float
) -> list[Finding]:
    name = f"daemon killed with {len(all_of_it)} live forks, started again"
    again = [one for one in all_of_it.values() if one.times and one.times[-1] > ready_at]
    first = [min(at for at in one.times if at > started_at) for one in again]
    last_s = max(first, default=float("inf")) - started_at
    gap_s = max((one.longest_gap for one in again), default=0) * BLOCK_S
    away_s = ready_at - killed_at
    twice = sum(one.report.duplicated + one.report.out_of_order for one in again)
    return [
        Finding(
            name,
            "all resumed within 2 s of the start",
            f"{len(again)}, the last after {last_s:.2f} s, of which {ready_at - started_at:.2f} s "
            "to the connection to Asterisk",
            len(again) == len(all_of_it) and last_s <= 2,
        ),
        Finding(
            name,
            "gap of a fork: the time away and 300 ms at most; no block twice",
            f"{gap_s:.2f} s at most, away for {away_s:.2f} s; {twice} twice",
            len(again) == len(all_of_it) and gap_s <= away_s + 0.3 and not twice,
        ),
    ]


@measure
async def storm(scene: Scene) -> list[Finding]:
    """200 forks (50 calls, 4 each) whose server restarts: all come back, and not at once."""
    forks: int = scene.options.storm
    async with ServerProcess() as process:
        with Daemon(scene.asterisk):
            crowd = Crowd(scene)
            await crowd.gather(forks // 4, process.url, "D(in)", each=4)
            await crowd.speak()
            await asyncio.sleep(5.5)
            await process.stop()
            gone_at = time.monotonic()
            await asyncio.sleep(0.6)
            await process.start()
            await crowd.events("AudioForkResumed")
            await asyncio.sleep(1)
            until = time.monotonic()
            stopped = await crowd.hang_up()
            listening, connections = read_log(process.log)
    all_of_it = became(crowd, connections, until)
    return _back(all_of_it, stopped, listening[-1], gone_at)


def _back(
    all_of_it: dict[str, Became], stopped: dict[str, Headers], back_at: float, gone_at: float
) -> list[Finding]:
    opened = sorted(one.connections[-1].opened - back_at for one in all_of_it.values())
    live = [one.live_at(back_at) - back_at for one in all_of_it.values()]
    busiest = max(sum(at <= other < at + 0.1 for other in opened) for at in opened)
    name = f"server restarts, {len(opened)} forks"
    seen = (
        f"away for {back_at - gone_at:.1f} s; back after {opened[0]:.2f} to {opened[-1]:.2f} s, "
        f"median {opened[len(opened) // 2]:.2f} s, at most {busiest} in 100 ms; "
        f"live audio after {max(live):.2f} s at most"
    )
    again = Finding(name, "all live again within 5 s, spread", seen, max(live) <= 5)
    return [whole(name, all_of_it, stopped), again]


# --- Churn ---

CHURN_PARTS = 5
CHURN_CALLS = 25
FORKS_A_CALL = 4
TALK_S = 1.0
MAX_GROWTH_KIB = 5 * 1024


class Counts(NamedTuple):
    """The resources of the daemon that would show a leak."""

    memory_kib: int
    descriptors: int
    tasks: int
    legs: int


@measure
async def churn(scene: Scene) -> list[Finding]:
    """20,000 forks, 100 at any time, in calls of a second: nothing is left behind."""
    wanted: int = scene.options.churn
    async with ServerProcess(log=Path(os.devnull)) as process:
        await scene.ami.action("Setvar", Variable="WSSERVER", Value=process.url())
        with Daemon(scene.asterisk, command=COUNTED) as daemon:
            tally = Tally()
            began = time.monotonic()
            counts = []
            for _ in range(CHURN_PARTS):
                await _churn(scene, tally, wanted // CHURN_PARTS)
                counts.append(await _counts(scene.ami, daemon))
            took_s = time.monotonic() - began
            daemon.kill()  # so that it cannot clear its journal, and lets go of it
            rows = _journal_rows(daemon.journal)
    name = f"{tally.asked} forks in {took_s:.0f} s, {CHURN_CALLS * FORKS_A_CALL} at a time"
    return [tally.finding(name), *_leaks(name, counts, rows)]


@dataclass
class Tally:
    """What the servers received of the forks.

    Attributes:
        live: How many forks of each call have streamed, by the end of their URL; the call takes
            its own out.
    """

    asked: int = 0
    started: int = 0
    stopped: int = 0
    dropped: int = 0
    live: collections.Counter[str] = field(default_factory=collections.Counter)

    def hear(self, headers: Headers) -> None:
        """Record one event."""
        name = headers.get("UserEvent", "")
        if name == "AudioForkStarted":
            self.started += 1
            self.live[headers["WsServer"].rpartition("/")[2]] += 1
        elif name == "AudioForkStopped":
            self.stopped += 1
            self.dropped += int(headers["FramesIn"]) - int(headers["FramesSent"])

    def finding(self, name: str) -> Finding:
        seen = f"{self.started} streamed, {self.stopped} stopped, {self.dropped} frames dropped"
        ok = self.asked == self.started == self.stopped and not self.dropped
        return Finding(name, "each streams and stops, no frame dropped", seen, ok)


async def _churn(scene: Scene, tally: Tally, wanted: int) -> None:
    """Run short calls side by side until this many more forks have ended."""
    calls = -(-wanted // FORKS_A_CALL)
    numbers = iter(range(calls))

    async def one_after_the_other() -> None:
        for number in numbers:
            await _short_call(scene.caller, f"short{number}", tally)

    tally.asked += calls * FORKS_A_CALL
    listening = asyncio.create_task(_hear(scene.ami, tally))
    await asyncio.gather(*(one_after_the_other() for _ in range(CHURN_CALLS)))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            await listening


async def _short_call(sip: SipUser, extension: str, tally: Tally) -> None:
    """Call, speak for a second from when all forks stream, hang up."""
    call = await sip.call(extension, timeout_s=15)
    call.talk()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while tally.live[extension] < FORKS_A_CALL:  # noqa: ASYNC110 (several wait)
                await asyncio.sleep(0.1)
    del tally.live[extension]
    await asyncio.sleep(TALK_S)
    await call.hangup(10)


async def _hear(ami: AmiClient, tally: Tally) -> None:
    """Count events, without keeping any, until all forks have stopped."""
    while tally.stopped < tally.asked:
        if ami.lost:
            raise ConnectionError(LOST)
        await asyncio.sleep(0.1)
        for _, headers in ami.events:
            tally.hear(headers)
        ami.events.clear()


async def _counts(ami: AmiClient, daemon: Daemon) -> Counts:
    """Count the resources once the numbers no longer change."""
    counts = await _count(ami, daemon)
    for _ in range(20):
        await asyncio.sleep(0.5)
        before, counts = counts, await _count(ami, daemon)
        if before[1:] == counts[1:]:
            break
    return counts


async def _count(ami: AmiClient, daemon: Daemon) -> Counts:
    told = daemon.log().count("tasks: ")
    daemon.signal(signal.SIGUSR2)
    await daemon.says("tasks: ", times=told + 1)
    tasks = re.findall(r"tasks: (\d+)", daemon.log())[-1]
    ami.events.clear()
    await ami.action("CoreShowChannels")
    done = await ami.wait_event(lambda h: h.get("Event") == "CoreShowChannelsComplete")
    legs = int(done["ListItems"])
    return Counts(daemon.memory_kib(), daemon.descriptors(), int(tasks), legs)


def _journal_rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as journal:
        (rows,) = journal.execute("SELECT count(*) FROM forks").fetchone()
    return int(rows)


def _leaks(name: str, counts: Sequence[Counts], rows: int) -> list[Finding]:
    """Compare the resources after each part; the first part fills the caches."""
    first, last = counts[0], counts[-1]
    memory = Finding(
        name,
        f"memory grows by {MAX_GROWTH_KIB} KiB at most after the first {100 // CHURN_PARTS} %",
        " -> ".join(str(one.memory_kib) for one in counts) + " KiB",
        last.memory_kib - first.memory_kib <= MAX_GROWTH_KIB,
    )
    seen = ", ".join(
        f"{what} {getattr(first, what)} -> {getattr(last, what)}" for what in Counts._fields[1:]
    )
    asked = "no descriptor, task, leg or journal row is left behind"
    flat = all(now <= then for now, then in zip(last[1:], first[1:], strict=True))
    seen += f", journal rows {rows}"
    return [memory, Finding(name, asked, seen, flat and not last.legs and not rows)]


# --- The command ---


def main() -> int:
    """Run what the command line names; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--storm", type=int, default=200, help="forks of the storm")
    parser.add_argument("--churn", type=int, default=20_000, help="forks of the churn")
    return measure.main(__doc__, parser)


if __name__ == "__main__":
    sys.exit(main())
