"""Attacks by a WebSocket server on the forks of other servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from testbed.attacks import ATTACKS
from testbed.crowd import Crowd, became, start_fork, whole
from testbed.daemon import Daemon
from testbed.faulty_server import Logged, ServerProcess
from testbed.hostile_server import FLOODS, TLS_FLOODS, HostileServer
from testbed.measuring import Finding, Scene

FLOOD_S = 30
CALLS, FORKS_A_CALL = 4, 5
LONGEST_GAP_S = 0.2
MAX_GROWTH_KIB = 4096
WATCHDOG_S = 4  # it is fed twice in that time
# The first does nothing: the others are compared with it.
MODES = ["never", *FLOODS, "drip", "closeflood", "ping-slow", "ping125-slow", "ping-noread"]
MODES += ["ping125-noread", "bigtext-noread", "text20", "close1001", "403body"]
MODES += TLS_FLOODS


@ATTACKS
async def floods(scene: Scene) -> list[Finding]:
    """Run a server of each kind of flood for 30 s at full speed beside 20 forks; one worker."""
    modes: list[str] = scene.options.modes
    return [one for mode in modes for one in await _beside(scene, mode, workers=1)]


@ATTACKS
async def floods_two_workers(scene: Scene) -> list[Finding]:
    """As `floods`, with two workers."""
    modes: list[str] = scene.options.modes
    return [one for mode in modes for one in await _beside(scene, mode, workers=2)]


async def _beside(scene: Scene, mode: str, *, workers: int) -> list[Finding]:
    with (
        tempfile.TemporaryDirectory() as folder,
        HostileServer(mode, _certificate(mode, Path(folder))) as hostile,
        Watched() as watched,
    ):
        async with ServerProcess() as server:
            settings = {"relay": f"workers = {workers}\n"}
            if mode in TLS_FLOODS:
                settings["websocket"] = f"ca_list_file = {folder}/ca.pem\n"
            with Daemon(scene.asterisk, settings, watched.command) as daemon:
                crowd = Crowd(scene)
                await crowd.gather(CALLS, server.url, "D(in)", each=FORKS_A_CALL)
                await crowd.speak()
                await asyncio.sleep(2)
                watched.begin(daemon)
                start_fork(scene.ami, crowd.callers[0].channel, hostile.url, "D(in)R(1)r(0)")
                await watched.watch(FLOOD_S)
                until = time.monotonic()
                try:
                    stopped = await crowd.hang_up()
                except TimeoutError:
                    return [Finding(mode, "forks that end", "none: the daemon is starved", False)]
                connections = server.connections()
        harm = sum(one.sent_bytes for one in hostile.over) // 1_000_000
        connects = len(hostile.over)
    all_of_it = became(crowd, connections, until)
    worker = f"{workers} worker" + "s" * (workers > 1)
    name = f"server: {mode} for {FLOOD_S} s, {len(crowd.forks)} forks of another, {worker}"
    lost = whole(name, all_of_it, stopped)
    suffered = watched.suffered(connections, until)
    return [
        lost._replace(seen=f"{connects} connections closed, {harm} MB taken; {lost.seen}"),
        Finding(name, *suffered),
    ]


def _certificate(mode: str, folder: Path) -> Path | None:
    """Create the files that a server with TLS needs, and `ca.pem` beside them."""
    if mode not in TLS_FLOODS:
        return None
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    path = folder / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@dataclass
class Watched:
    """Records whether the daemon feeds its watchdog, and its use of memory and CPU."""

    beats: list[float] = field(default_factory=list)
    grown_kib: int = 0
    busy: float = 0.0

    def __enter__(self) -> Watched:
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._socket = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._path = f"{folder}/notify"
        self._socket.bind(self._path)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._stack.close()

    def _hear(self) -> None:
        if b"WATCHDOG=1" in self._socket.recv(4096):
            self.beats.append(time.monotonic())

    @property
    def command(self) -> tuple[str, ...]:
        """The command that runs a daemon with a watchdog that this object observes."""
        told = (f"NOTIFY_SOCKET={self._path}", f"WATCHDOG_USEC={WATCHDOG_S * 1_000_000}")
        return ("env", *told, sys.executable, "-m", "audiofork", "run")

    def begin(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._before_kib = _memory_kib(daemon.pid)
        self._since = time.monotonic()
        self.beats[:] = [self._since]

    async def watch(self, seconds: float) -> None:
        cpu_s = self._daemon.cpu_s()
        for _ in range(int(seconds * 5)):
            await asyncio.sleep(0.2)
            grown_kib = _memory_kib(self._daemon.pid) - self._before_kib
            self.grown_kib = max(self.grown_kib, grown_kib)
        self.busy = (self._daemon.cpu_s() - cpu_s) / seconds

    def suffered(
        self, connections: list[Logged], until: float, max_growth_kib: int = MAX_GROWTH_KIB
    ) -> tuple[str, str, bool]:
        """Return the requirement, the result, and whether the result meets it."""
        gap_s = max(_gaps([(one.times, self._since, until) for one in connections]))
        unfed_s = max(_gaps([([at for at in self.beats if at < until], self._since, until)]))
        asked = (
            f"gap of {LONGEST_GAP_S * 1000:.0f} ms at most, memory grows by "
            f"{max_growth_kib} KiB at most, watchdog fed within {WATCHDOG_S} s"
        )
        seen = (
            f"gap of {gap_s * 1000:.0f} ms at most, {self.grown_kib} KiB, watchdog fed within "
            f"{unfed_s:.1f} s; CPU of the daemon's own process {self.busy:.0%}"
        )
        ok = gap_s <= LONGEST_GAP_S and self.grown_kib <= max_growth_kib and unfed_s <= WATCHDOG_S
        return asked, seen, ok


def _gaps(every: list[tuple[list[float], float, float]]) -> Iterator[float]:
    for times, since, until in every:
        inside = [since, *(at for at in times if since < at < until), until]
        yield max(after - before for before, after in itertools.pairwise(inside))


def _memory_kib(pid: int) -> int:
    """Return the resident memory of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(_resident_kib(one) for one in (str(pid), *children))


def _resident_kib(pid: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
