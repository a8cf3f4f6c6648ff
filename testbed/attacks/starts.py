"""Attacks by thousands of requests to start forks, all of which are refused."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from audiofork.doors.control_client import Client
from audiofork.errors import AudioForkError
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.attacks import ATTACKS
from testbed.crowd import Crowd, became, place_call, whole
from testbed.daemon import Daemon
from testbed.faulty_server import Logged, ServerProcess
from testbed.measuring import Finding, Scene

REQUESTER = """
[requester]
secret = requester
read = user
write = user
"""
ATTACKS.add(
    dialplan="""
[attacks-starts]
exten => fork,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${URL},Options: D(in))
 same => n,Wait(60)

""",
    manager=REQUESTER,
)

FORKS = 10
FLOOD_A_SECOND = 3000
FLOOD_S = 12
STARTS = 6  # good ones by each door meanwhile
# Over AMI, as long as the waiting requests take: Asterisk does not tell users apart.
LATE_S = {"control-socket": 0.5, "dialplan": 0.5, "AMI": 1.5}
LONGEST_GAP_S = 0.2
MAX_LOG_BYTES = 20_000
MAX_GROWTH_KIB = 20 * 1024  # what may wait takes most of it, and it grows no further

Fields = Iterator[dict[str, str]]


@ATTACKS
async def no_flood(scene: Scene) -> list[Finding]:
    """The same without a flood: delays here are the machine's own."""
    return await _flooded(scene, "no flood", lambda _: iter(()))


@ATTACKS
async def start_floods(scene: Scene) -> list[Finding]:
    """Let an AMI user request impossible forks, as fast as possible."""
    findings = []
    for name, fields in FLOODS.items():
        findings += await _flooded(scene, name, fields)
    return findings


@ATTACKS
async def starts_and_stops(scene: Scene) -> list[Finding]:
    """Let an AMI user start and stop forks of a call of its own, as fast as possible.

    max_starts of them are granted per second, and each has its lines in the log.
    """
    name = "starts and stops on a call"
    return await _flooded(scene, name, _starts_and_stops, MAX_LOG_BYTES * 10)


def _invented(_channel: str) -> Fields:
    return ({"Channel": f"PJSIP/nobody-{n:08x}", "WsServer": "ws://a/"} for n in itertools.count())


def _one_name(_channel: str) -> Fields:
    return itertools.repeat({"Channel": "PJSIP/nobody-00000001", "WsServer": "ws://a/"})


def _bad_url(channel: str) -> Fields:
    return itertools.repeat({"Channel": channel, "WsServer": "http://a/"})


def _stops(_channel: str) -> Fields:
    names = (f"PJSIP/nobody-{n:08x}" for n in itertools.count())
    return ({"Channel": name, "Command": "StopAudioFork"} for name in names)


def _starts_and_stops(channel: str) -> Fields:
    start = {"Channel": channel, "WsServer": "ws://127.0.0.1:1/", "Options": "D(in)"}
    stop = {"Channel": channel, "Command": "StopAudioFork"}
    return itertools.cycle([start] * 10 + [stop])


FLOODS: dict[str, Callable[[str], Fields]] = {
    "starts on channels that do not exist": _invented,
    "starts on one channel that does not exist": _one_name,
    "starts to a URL that is none": _bad_url,
    "stops on channels that do not exist": _stops,
}


async def _flooded(
    scene: Scene,
    name: str,
    fields: Callable[[str], Fields],
    max_log_bytes: int = MAX_LOG_BYTES,
) -> list[Finding]:
    async with ServerProcess() as server:
        with Daemon(scene.asterisk) as daemon:
            crowd = Crowd(scene)
            await crowd.gather(FORKS, server.url, "D(in)")
            calls = [await place_call(scene.ami, scene.caller) for _ in range(2)]
            for one in calls:
                one.call.talk()  # else the legs of forks that end stay
            await scene.ami.action("Events", EventMask="off")
            await crowd.speak()
            await asyncio.sleep(1)
            stood = await _stand(scene, daemon, server, calls[0].channel, fields(calls[1].channel))
            await scene.ami.action("Events", EventMask="on")
            stopped = await crowd.hang_up()
            for one in calls:
                await one.call.hangup()
            connections = server.connections()
    name = f"{name}, {stood.rate:.0f} a second, {stood.cpu * 100:.0f} % of a core"
    all_of_it = became(crowd, connections, stood.until)
    gap_s = max(_gap(one.times, stood.began, stood.until) for one in all_of_it.values())
    return [
        whole(name, all_of_it, stopped),
        _gapless(name, gap_s),
        *_late(name, stood.asked, connections),
        _frugal(name, stood, max_log_bytes),
    ]


@dataclass
class Stood:
    """How the daemon coped with a flood.

    Attributes:
        began: When the flood began, by the monotonic clock; `until`: when it ended.
        rate: Requests per second.
        cpu: Share of a core that the daemon used.
        asked: When good starts were requested, by their paths.
    """

    began: float
    until: float
    rate: float
    cpu: float
    log_bytes: int
    memory_kib: int
    asked: dict[str, float]


async def _stand(
    scene: Scene, daemon: Daemon, server: ServerProcess, channel: str, fields: Fields
) -> Stood:
    """Flood, and request good forks of a channel meanwhile."""
    log, memory_kib, cpu_s = len(daemon.log()), daemon.memory_kib(), daemon.cpu_s()
    async with flood(scene.asterisk, fields) as sent:
        began = time.monotonic()
        asked = await _ask(scene, daemon, channel, server)
        await asyncio.sleep(began + FLOOD_S - time.monotonic())
    until = time.monotonic()
    return Stood(
        began,
        until,
        sent.count / (until - began),
        (daemon.cpu_s() - cpu_s) / (until - began),
        len(daemon.log()) - log,
        daemon.memory_kib() - memory_kib,
        asked,
    )


def _gapless(name: str, gap_s: float) -> Finding:
    asked = f"no gap of a good fork above {LONGEST_GAP_S * 1000:.0f} ms"
    return Finding(name, asked, f"{gap_s * 1000:.0f} ms", gap_s <= LONGEST_GAP_S)


def _frugal(name: str, stood: Stood, max_log_bytes: int) -> Finding:
    asked = f"the log grows by {max_log_bytes} bytes, memory by {MAX_GROWTH_KIB} KiB at most"
    seen = f"{stood.log_bytes} bytes, {stood.memory_kib} KiB"
    ok = stood.log_bytes <= max_log_bytes and stood.memory_kib <= MAX_GROWTH_KIB
    return Finding(name, asked, seen, ok)


def _gap(times: list[float], since: float, until: float) -> float:
    inside = [since, *(at for at in times if since <= at <= until), until]
    return max(after - before for before, after in itertools.pairwise(inside))


# --- The flood -----------------------------------------------------------------------------------


@dataclass
class Sent:
    """How many requests were sent."""

    count: int = 0


@asynccontextmanager
async def flood(
    asterisk: Asterisk, fields: Fields, a_second: int = FLOOD_A_SECOND
) -> AsyncIterator[Sent]:
    """Send requests as a separate AMI user; manager.conf must contain REQUESTER."""
    sent = Sent()
    reader, writer = await asyncio.open_connection("127.0.0.1", asterisk.ami_port)
    writer.write(
        b"Action: Login\r\nUsername: requester\r\nSecret: requester\r\nEvents: off\r\n\r\n"
    )
    tasks = [
        asyncio.create_task(_drain(reader)),
        asyncio.create_task(_write(writer, fields, sent, a_second)),
    ]
    try:
        yield sent
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.transport.abort()


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def _write(writer: asyncio.StreamWriter, fields: Fields, sent: Sent, a_second: int) -> None:
    """Write at the rate of the flood, or as fast as Asterisk reads."""
    began = time.monotonic()
    while True:
        due = int((time.monotonic() - began) * a_second)
        for headers in itertools.islice(fields, max(0, min(due - sent.count, 300))):
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"Action: UserEvent\r\nUserEvent: AudioFork\r\n{lines}\r\n".encode())
            sent.count += 1
        await writer.drain()
        await asyncio.sleep(0.01)


# --- Good starts meanwhile -----------------------------------------------------------------------


async def _ask(
    scene: Scene, daemon: Daemon, channel: str, server: ServerProcess
) -> dict[str, float]:
    """Request forks through each door, one after the other; return the times, by path."""
    asked: dict[str, float] = {}
    async with _requester(scene.asterisk) as requester:
        for number in range(STARTS):
            for door in ("control socket", "dialplan", "AMI"):
                path = f"/{door.replace(' ', '-')}-{number}"
                asked[path] = time.monotonic()
                if door == "control socket":
                    await asyncio.to_thread(_start, daemon, channel, server.url(path))
                elif door == "dialplan":
                    _start_in_dialplan(scene.ami, server.url(path))
                else:
                    requester.send(
                        "UserEvent",
                        UserEvent="AudioFork",
                        Channel=channel,
                        WsServer=server.url(path),
                        Options="D(in)",
                    )
                await asyncio.sleep(0.5)
                if len(asked) == 12:  # room for more on the channel
                    await asyncio.to_thread(_stop, daemon, channel)
    return asked


@asynccontextmanager
async def _requester(asterisk: Asterisk) -> AsyncIterator[AmiClient]:
    async with AmiClient(asterisk) as client:
        await client.action("Events", EventMask="off")
        yield client


def _start(daemon: Daemon, channel: str, url: str) -> None:
    with Client(daemon.socket) as client, contextlib.suppress(AudioForkError):
        client.start(channel, url, Options="D(in)")


def _stop(daemon: Daemon, channel: str) -> None:
    with Client(daemon.socket) as client, contextlib.suppress(AudioForkError):
        client.stop(channel)


def _start_in_dialplan(ami: AmiClient, url: str) -> None:
    ami.send(
        "Originate",
        Channel="Local/listen@testbed",
        Context="attacks-starts",
        Exten="fork",
        Priority="1",
        Async="true",
        Variable=f"URL={url}",
    )


def _late(name: str, asked: dict[str, float], connections: list[Logged]) -> list[Finding]:
    """Judge how long each start took until the server had the connection."""
    opened = {one.path: one.opened for one in connections}
    findings = []
    for door, late_s in LATE_S.items():
        took = [
            opened.get(path, float("inf")) - at for path, at in asked.items() if f"/{door}-" in path
        ]
        asked_for = f"starts by the {door.replace('-', ' ')} meanwhile take {late_s} s at most"
        seen = f"{min(took):.2f} to {max(took):.2f} s"
        findings.append(Finding(name, asked_for, seen, max(took) <= late_s))
    return findings
