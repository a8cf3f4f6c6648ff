"""Measures a whole cluster in small: `make bench-cluster`.

    python -m bench.cluster [--forks N] [--asterisks N] [--relays N] [--servers N] [--at-once N]
        [--dead-after S] [--seconds S] [--json]

Controllers (one that leads and one that stands by for each Asterisk), relay hosts and NATS servers
are programs of their own, as users run them. What is not real: the Asterisks, which answer AMI and
connect legs that carry no audio, and what a relay host does from the codec on. All of it shares
this machine, so figures are relative; how they grow with the number of forks says more.

A tenth of the forks is started and measured, then all: how fast the last tenth starts, what passes
through the broker meanwhile and at rest, CPU and memory; then the fullest relay host is killed, and
a controller that leads. Exits with 1 if a fork failed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import measure
from bench.broker_counts import Counts, counts
from bench.cluster_asterisk import StubAsterisk
from bench.cluster_programs import Programs
from bench.cluster_table import FailOver, Level, Rest, Starts, table
from bench.program import ProgramFailed
from bench.progress import telling

FORKS, ASTERISKS, RELAYS, SERVERS, AT_ONCE = 10_000, 10, 20, 3, 2
# Some 45 programs share the cores here, and one that waits for its turn is not dead.
DEAD_AFTER_S = 2.0
SECONDS = 10.0
SETTLE_S = 3.0
# What a start may take at most, and what a hundred starts may.
WAIT_S, WAIT_A_START_S = 60.0, 0.1
LOOK_S = 0.005
SHOWN = 5  # of forks that have failed


@dataclass(frozen=True)
class Used:
    """What was used, until a moment or between two.

    Attributes:
        s: The moment, or the time between.
        passed: What passed through the broker.
        cpu_s: CPU time by kind of program, of all of its kind.
    """

    s: float
    passed: Counts
    cpu_s: dict[str, float]

    def __sub__(self, other: Used) -> Used:
        cpu_s = {kind: used - other.cpu_s[kind] for kind, used in self.cpu_s.items()}
        return Used(self.s - other.s, self.passed - other.passed, cpu_s)


class Stage:
    """The cluster, and the Asterisks.

    Args:
        asterisks: These.
        programs: The programs.
    """

    def __init__(self, asterisks: list[StubAsterisk], programs: Programs) -> None:
        self._asterisks = asterisks
        self._programs = programs
        self._idle_kib: dict[str, int] = {}
        self._killed = 0

    async def start(self) -> None:
        """Start all; return when each Asterisk has a controller that leads and one that waits."""
        programs = self._programs
        await asyncio.to_thread(programs.start_relays)
        for asterisk in self._asterisks:
            await asterisk.start()
            programs.start_leader(asterisk)
        await _until_all(
            lambda: (bool(one.logged_in) for one in self._asterisks),
            "Asterisks have no controller",
            WAIT_S,
        )
        for asterisk in self._asterisks:  # one by one: to start a program takes much CPU
            await asyncio.to_thread(programs.start_standby, asterisk)
        await asyncio.sleep(SETTLE_S)
        self._idle_kib = programs.memory_kib()

    @property
    def forks(self) -> int:
        """How many have started."""
        return sum(len(one.streaming) for one in self._asterisks)

    @property
    def failed(self) -> list[str]:
        """What was told of forks that have failed."""
        return [text for one in self._asterisks for text in one.failed]

    async def _used(self) -> Used:
        """Return what was used so far."""
        programs = self._programs
        kinds = {
            "leader": [node.pid for node in programs.leaders.values()],
            "standby": [node.pid for node in programs.standbys.values()],
            "relay": [node.pid for node in programs.relays.values()],
            "server": [server.pid for server in programs.servers],
        }
        passed = await asyncio.to_thread(counts, programs.servers)
        cpu_s = {
            kind: sum(measure.cpu(pid).total_s for pid in pids) for kind, pids in kinds.items()
        }
        return Used(time.monotonic(), passed, cpu_s)

    async def fill(self, forks: int) -> list[float]:
        """Start forks until there are so many; return what each took, in seconds."""
        missing = forks - self.forks
        each, more = divmod(missing, len(self._asterisks))
        began: list[tuple[StubAsterisk, str]] = []
        for number, asterisk in enumerate(self._asterisks):
            began += [(asterisk, one) for one in asterisk.begin(each + (number < more))]
        await _until_all(
            lambda: (one in asterisk.streaming for asterisk, one in began),
            "forks have not started",
            WAIT_S + WAIT_A_START_S * missing,
        )
        return [asterisk.streaming[one] - asterisk.asked[one] for asterisk, one in began]

    async def level(self, forks: int, batch: int, seconds: float) -> Level:
        """Start forks until there are so many, and measure the last of them, and all the rest."""
        alarms = -self._programs.false_alarms()
        with telling(f"up to {forks - batch} forks"):
            await self.fill(forks - batch)
        with telling(f"starting {batch} forks more"):
            before = await self._used()
            took_s = await self.fill(forks)
            by_starts = await self._used() - before
        with telling(f"at rest with {forks} forks"):
            rest, by_rest = await self._rest(seconds)
        alarms += self._programs.false_alarms()
        hosts = sum((one.legs_at() for one in self._asterisks), Counter[int]())
        emptiest = min(hosts[port] for port in self._programs.relays)
        with telling("a relay host was killed"):
            relay = await self._kill_relay(hosts)
        with telling("a controller was killed"):
            controller = await self._kill_controller()
        return Level(
            forks,
            _starts(took_s, by_starts, by_rest),
            rest,
            emptiest,
            max(hosts.values()),
            alarms,
            relay,
            controller,
        )

    async def _rest(self, seconds: float) -> tuple[Rest, Used]:
        """Measure while nothing is asked for; also return what was used."""
        await asyncio.sleep(SETTLE_S)
        fork_kib = self._fork_kib()
        before = await self._used()
        await asyncio.sleep(seconds)
        after = await self._used()
        used = after - before
        programs = self._programs
        server_kib = [measure.memory_kib(server.pid) for server in programs.servers]
        share = 100 / used.s
        return Rest(
            writes=used.passed.writes / used.s,
            messages=used.passed.messages / used.s,
            kib=used.passed.client_bytes / 1024 / used.s,
            between_kib=used.passed.between_bytes / 1024 / used.s,
            stored_mib=after.passed.stored_bytes / 2**20,
            leader_percent=share * used.cpu_s["leader"] / len(programs.leaders),
            standby_percent=share * used.cpu_s["standby"] / len(programs.standbys),
            relay_percent=share * used.cpu_s["relay"] / len(programs.relays),
            server_percent=share * used.cpu_s["server"] / len(programs.servers),
            fork_kib=fork_kib,
            server_mib=statistics.mean(server_kib) / 1024,
        ), used

    def _fork_kib(self) -> float:
        """Return the memory of a controller for a fork: of those that have led from the start.

        0: there is none such.
        """
        memory = self._programs.memory_kib()
        same = memory.keys() & self._idle_kib.keys()
        if not same:
            return 0.0
        grown_kib = sum(memory[name] - self._idle_kib[name] for name in same)
        return grown_kib * len(self._asterisks) / len(same) / self.forks

    async def _kill_relay(self, hosts: Counter[int]) -> FailOver:
        """Kill the fullest relay host, and start it again when its forks are elsewhere."""
        port = max(hosts, key=lambda one: hosts[one])
        began: dict[StubAsterisk, list[str]] = {}
        for asterisk in self._asterisks:
            began[asterisk] = asterisk.calls_at(port)
            asterisk.resumed.clear()
        killed_at = time.monotonic()
        self._programs.relays[port].kill()
        await _until_all(
            lambda: (one in asterisk.resumed for asterisk in began for one in began[asterisk]),
            "forks of the relay host that was killed do not go on",
            WAIT_S,
        )
        times = [asterisk.resumed[one] for asterisk in began for one in began[asterisk]]
        await asyncio.to_thread(self._programs.replace_relay, port)
        await asyncio.sleep(SETTLE_S)
        return _fail_over(killed_at, times)

    async def _kill_controller(self) -> FailOver:
        """Kill a controller that leads, and start another one that stands by."""
        asterisk = self._asterisks[self._killed % len(self._asterisks)]
        self._killed += 1
        asterisk.taken_up.clear()
        killed_at = time.monotonic()
        self._programs.kill_leader(asterisk.name)
        await _until_all(
            lambda: (one in asterisk.taken_up for one in asterisk.streaming),
            "forks of the controller that was killed were not found",
            WAIT_S,
        )
        times = list(asterisk.taken_up.values())
        await asyncio.to_thread(self._programs.start_standby, asterisk)
        return _fail_over(killed_at, times)


def _starts(took_s: list[float], used: Used, rest: Used) -> Starts:
    """Return how forks started.

    Args:
        took_s: What each took.
        used: What all of that has used.
        rest: What is used all the same, for a while.
    """
    count = len(took_s)
    part = used.s / rest.s
    passed, at_rest = used.passed, rest.passed

    def cpu_ms(kind: str) -> float:
        return 1000 * (used.cpu_s[kind] - part * rest.cpu_s[kind]) / count

    return Starts(
        a_second=count / used.s,
        median_ms=1000 * statistics.median(took_s),
        p99_ms=1000 * sorted(took_s)[int(0.99 * (count - 1))],
        controller_ms=cpu_ms("leader"),
        relay_ms=cpu_ms("relay"),
        server_ms=cpu_ms("server"),
        writes=(passed.writes - part * at_rest.writes) / count,
        messages=(passed.messages - part * at_rest.messages) / count,
        kib=(passed.client_bytes - part * at_rest.client_bytes) / 1024 / count,
        between_kib=(passed.between_bytes - part * at_rest.between_bytes) / 1024 / count,
    )


def _fail_over(killed_at: float, times: list[float]) -> FailOver:
    took_s = sorted(at - killed_at for at in times)
    return FailOver(len(took_s), took_s[0], statistics.median(took_s), took_s[-1])


async def _until_all(are: Callable[[], Iterable[bool]], what: str, timeout_s: float) -> None:
    """Wait until something holds for all.

    Raises:
        ProgramFailed: It does not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not all(are()):
        if time.monotonic() > deadline:
            raise ProgramFailed(f"after {timeout_s:.0f} s {list(are()).count(False)} {what}")
        await asyncio.sleep(LOOK_S)


async def run(options: argparse.Namespace) -> list[Level]:
    """Measure."""
    forks = options.forks
    calls = -(-forks // options.asterisks)
    asterisks = [
        StubAsterisk(number, calls, options.at_once) for number in range(options.asterisks)
    ]
    batch = max(1, forks // 10)
    with tempfile.TemporaryDirectory(prefix="audiofork-bench-") as folder:
        programs = Programs(
            Path(folder), forks, options.relays, options.servers, options.dead_after
        )
        stage = Stage(asterisks, programs)
        try:
            with telling("starting the cluster"):
                await stage.start()
            return [await stage.level(one, batch, options.seconds) for one in (batch, forks)]
        finally:
            for text in stage.failed[:SHOWN]:
                print(text, file=sys.stderr)
            for asterisk in asterisks:
                asterisk.close()
            programs.close()


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="What a cluster bears, and what it costs.")
    parser.add_argument("--forks", type=int, default=FORKS)
    parser.add_argument("--asterisks", type=int, default=ASTERISKS)
    parser.add_argument("--relays", type=int, default=RELAYS)
    parser.add_argument("--servers", type=int, default=SERVERS, help="NATS servers")
    parser.add_argument(
        "--at-once", type=int, default=AT_ONCE, help="starts under way at each Asterisk"
    )
    parser.add_argument(
        "--dead-after", type=float, default=DEAD_AFTER_S, help="[cluster] dead_after, in seconds"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="at rest")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    measure.go_first()
    try:
        levels = uvloop.run(run(options))
    except ProgramFailed as exc:
        sys.exit(f"bench: {exc}")
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in levels], indent=2))
        return
    print(table(levels))
    if any(one.alarms for one in levels):
        print("False alarms: programs waited for their turn so long that the figures say little.")


if __name__ == "__main__":
    main()
