"""Attacks with names: of hosts whose DNS server does not answer, of files that are not regular."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from audiofork.doors.ami_events import ANSWERS_TO_ORIGIN
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
    """Start 50 forks to names whose DNS does not answer; 20 to other names start, and reconnect."""
    findings = []
    for workers, dead in ((1, 0), (1, DEAD_FORKS), (2, DEAD_FORKS)):
        findings += await _dns(scene, workers, dead)
    return findings


async def _dns(scene: Scene, workers: int, dead: int) -> list[Finding]:
    settings = {
        "websocket": "reconnect_interval = 0.5\nreconnect_attempts = 0\n",
        "relay": f"workers = {workers}\n",
        "security": "allow_urls = ws://*.example\n",
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
    """Start forks to names that no server answers for, and wait until all are looked up."""
    callers: list[Caller] = []
    for number in range(count):
        if number % FORKS_A_CALL == 0:
            callers.append(await place_call(scene.ami, scene.caller))
            callers[-1].call.talk()
        url = f"ws://h{number}.dead.example:{port}/"
        start_fork(scene.ami, callers[-1].channel, url, "D(in)r(0)")
    await asyncio.sleep(2)


# --- Files that are none -------------------------------------------------------------------------

ELSEWHERE = (
    *("/dev/ptmx", "/dev/zero", "/etc/passwd", "/etc/is-not-there", "/proc/kmsg"),
    *("../tls/../../etc/passwd", "leads-to-ptmx", "leads-to-passwd", "leads-to-nothing"),
)
BAD = ("pipe", "big.pem", "garbage.pem", "folder", "missing.pem")
ROUNDS = 10
PACE_S = 1.2 / ANSWERS_TO_ORIGIN  # more than these in a second get no answer
ANSWER_LIMIT_S = 1.0
GONE_PORT = 1  # nobody listens there, and nobody gets that far


@ATTACKS
async def files(scene: Scene) -> list[Finding]:
    """Start forks whose option T names devices, pipes, huge or foreign files; and 20 good forks."""
    with tempfile.TemporaryDirectory(prefix="audiofork-tls-") as folder:
        _fill(Path(folder))
        settings = {"security": f"tls_dir = {folder}\n"}
        async with ServerProcess() as process:
            with Daemon(scene.asterisk, settings) as daemon:
                asked = await _ask_for_files(scene, daemon, process)
            with Daemon(scene.asterisk, settings) as daemon:
                return [*asked, await _take_up_files(scene, daemon, process)]


async def _ask_for_files(scene: Scene, daemon: Daemon, process: ServerProcess) -> list[Finding]:
    crowd = Crowd(scene)
    await crowd.gather(GOOD_FORKS, process.url, "D(in)")
    bad = await place_call(scene.ami, scene.caller)
    bad.call.talk()
    before_kib = daemon.memory_kib()
    await crowd.speak()
    elsewhere = [await _refusal(scene, bad, path) for path in ELSEWHERE * ROUNDS]
    inside = [await _refusal(scene, bad, path) for path in BAD * ROUNDS]
    await asyncio.sleep(1)
    until = time.monotonic()
    grown_kib = daemon.memory_kib() - before_kib
    stopped = await crowd.hang_up()
    await bad.call.hangup(5)
    all_of_it = became(crowd, process.connections(), until)
    name = f"{len(elsewhere) + len(inside)} forks with devices, pipes, others' files in option T"
    return [
        whole(name, all_of_it, stopped),
        *_judged(name, elsewhere, inside, grown_kib),
    ]


def _fill(folder: Path) -> None:
    """Put files into the folder of option T that no administrator would put there."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "garbage.pem").write_text("no certificate")
    (folder / "big.pem").write_bytes(b"#" * (64 << 20))
    for target in ("/dev/ptmx", "/etc/passwd", "/etc/nothing"):
        (folder / f"leads-to-{Path(target).name}").symlink_to(target)


async def _refusal(scene: Scene, caller: Caller, path: str) -> tuple[float, str]:
    """Request a fork with a file; return how long the refusal took, and its text."""
    began = time.monotonic()
    url = f"wss://127.0.0.1:{GONE_PORT}/"
    action_id = start_fork(scene.ami, caller.channel, url, f"D(in)T(cert={path})")
    failed = await scene.ami.wait_user_event("AudioForkFailed", ActionID=action_id)
    took_s = time.monotonic() - began
    text = failed.get("Detail") or failed["Reason"]
    await asyncio.sleep(PACE_S)
    return took_s, text.replace(path, "...")


def _judged(
    name: str,
    elsewhere: Sequence[tuple[float, str]],
    inside: Sequence[tuple[float, str]],
    grown_kib: int,
) -> list[Finding]:
    slowest = max(took_s for took_s, _ in [*elsewhere, *inside])
    reasons = {text.rpartition(": ")[2] for _, text in elsewhere}
    return [
        Finding(
            name,
            f"each is refused within {ANSWER_LIMIT_S:g} s; memory grows by 4 MiB at most",
            f"within {slowest:.2f} s; {grown_kib} KiB",
            slowest <= ANSWER_LIMIT_S and grown_kib <= 4096,
        ),
        Finding(
            name,
            "the same words for what is elsewhere, whether it is there or not",
            f"{len(reasons)} reason: {', '.join(sorted(reasons))}".replace(
                tempfile.gettempdir(), "..."
            ),
            len(reasons) == 1,
        ),
    ]


async def _take_up_files(scene: Scene, daemon: Daemon, process: ServerProcess) -> Finding:
    """Kill the daemon, add forks with such files to its journal, start it again."""
    crowd = Crowd(scene)
    await crowd.gather(GOOD_FORKS, process.url, "D(in)")
    bad = await place_call(scene.ami, scene.caller)
    bad.call.talk()
    uniqueid = await scene.ami.variable(bad.channel, "CHANNEL(uniqueid)")
    daemon.kill()
    for path in ("/dev/ptmx", "pipe"):
        _add_to_journal(daemon.journal, bad.channel, uniqueid, f"D(in)T(ca={path})")
    position = len(scene.ami.events)
    await asyncio.to_thread(daemon.start)
    await asyncio.sleep(3)
    events = [headers for _, headers in scene.ami.events[position:]]
    ended = {h["AudioForkID"] for h in events if h.get("Uniqueid") == uniqueid and "Detail" in h}
    live = sum(h.get("UserEvent") == "AudioForkStarted" for h in events)
    await crowd.hang_up()
    await bad.call.hangup(5)
    return Finding(
        "2 such forks in the journal of a daemon that was killed",
        f"they end, the {GOOD_FORKS} good ones live",
        f"{len(ended)} ended, {live} live",
        (len(ended), live) == (2, GOOD_FORKS),
    )


def _add_to_journal(path: Path, channel: str, uniqueid: str, options: str) -> None:
    """Add a fork that differs from the first one in the journal."""
    with contextlib.closing(sqlite3.connect(path)) as journal, journal:
        (text,) = journal.execute("SELECT entry FROM forks LIMIT 1").fetchone()
        entry = json.loads(text) | {
            "fork_id": str(uuid.uuid4()),
            "channel": channel,
            "uniqueid": uniqueid,
            "url": f"wss://127.0.0.1:{GONE_PORT}/",
            "options": options,
        }
        row = (entry["fork_id"], json.dumps(entry))
        journal.execute("INSERT INTO forks (id, entry) VALUES (?, ?)", row)
