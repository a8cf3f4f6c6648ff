"""Attacks by names: of hosts whose DNS does not answer, of files that are none."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from testbed.attacks import ATTACKS
from testbed.crowd import Caller, Crowd, became, place_call, start_fork, whole
from testbed.daemon import Daemon
from testbed.faulty_server import ServerProcess, read_log
from testbed.measuring import Finding, Scene
from testbed.name_server import NameServer, with_resolv_conf

GOOD_FORKS = 20
DEAD_FORKS = 50
FORKS_A_CALL = 10
RUN = (sys.executable, "-m", "audiofork", "run")


# --- Names without an answer ---------------------------------------------------------------------


@ATTACKS
async def dns(scene: Scene) -> list[Finding]:
    """50 forks to names whose DNS does not answer; 20 by name start, and reconnect."""
    findings = []
    for workers, dead in ((1, 0), (1, DEAD_FORKS), (2, DEAD_FORKS)):
        findings += await _dns(scene, workers, dead)
    return findings


async def _dns(scene: Scene, workers: int, dead: int) -> list[Finding]:
    settings = {
        "websocket": "reconnect_interval = 0.5\nreconnect_attempts = 0\n",
        "relay": f"workers = {workers}\n",
    }
    with tempfile.TemporaryDirectory(prefix="audiofork-names-") as folder:
        command = with_resolv_conf(Path(folder) / "resolv.conf", *RUN)
        async with NameServer("good.example") as names, ServerProcess() as process:
            with Daemon(scene.asterisk, settings, command) as daemon:
                before_kib = daemon.memory_kib()
                await _start_dead(scene, dead, process.port)
                crowd = Crowd(scene)
                began = time.monotonic()
                await crowd.gather(
                    GOOD_FORKS,
                    lambda path: f"ws://a{path[1:]}.good.example:{process.port}{path}",
                    "D(in)",
                )
                started_s = time.monotonic() - began
                await crowd.speak()
                await asyncio.sleep(3)
                await process.stop()
                await asyncio.sleep(3)
                await process.start()
                await crowd.events("AudioForkResumed")
                until = time.monotonic()
                grown_kib = daemon.memory_kib() - before_kib
                stopped = await crowd.hang_up()
                listening, connections = read_log(process.log)
    all_of_it = became(crowd, connections, until)
    back = [one.connections[-1].times[0] - listening[-1] for one in all_of_it.values()]
    name = f"{dead} forks to names whose DNS does not answer, [relay] workers = {workers}"
    return [
        whole(name, all_of_it, stopped),
        Finding(
            name,
            f"{GOOD_FORKS} other names as ever: all stream within 5 s, back within 1 s",
            f"all stream after {started_s:.1f} s, back after {max(back):.2f} s; "
            f"{sum(count > 0 for count in names.asked.values())} names asked for, "
            f"{grown_kib} KiB more in the daemon's process",
            started_s <= 5 and max(back) <= 1,
        ),
    ]


async def _start_dead(scene: Scene, count: int, port: int) -> None:
    """Start forks to names that nobody answers for, and let them settle."""
    callers: list[Caller] = []
    for number in range(count):
        if number % FORKS_A_CALL == 0:
            callers.append(await place_call(scene.ami, scene.caller))
            callers[-1].call.talk()
        url = f"ws://h{number}.dead.example:{port}/"
        start_fork(scene.ami, callers[-1].channel, url, "D(in)r(0)")
    await asyncio.sleep(2)
