"""Attacks on the AudioSocket port: forges legs of forks, and keeps real legs out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk
from testbed.attacks import ATTACKS
from testbed.audiosocket_client import uuid_message
from testbed.crowd import Crowd, became, place_call, start_fork, whole
from testbed.daemon import Daemon, ari_settings
from testbed.faulty_server import ServerProcess
from testbed.measuring import Finding, Scene
from testbed.recorder import Recorder

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
FORGED = b"\x41"  # each byte of the audio that is forged
_BURST_FRAMES = 5  # sent at once, before anybody can notice
_LAST_EVENTS = ("AudioForkStopped", "AudioForkFailed")
_numbers = itertools.count(1)
FORKS = 5
BYSTANDERS = 10
RACE_S = 3.0  # a contested leg is replaced after 0.3 s, and four of them end the fork
MOST_FORGED_FRAMES = 10 + _BURST_FRAMES  # 200 ms, and what came in one burst
FLOODERS = 4
FLOOD_S = 10.0
FLOOD_RATE = 500  # per second and client: more takes the core from the callers, which share it
MOST_GROWN_KIB = 4096
MOST_LINES = 2  # what was refused, and that it is an attack


@dataclass(frozen=True)
class Way:
    """A way to get legs.

    Attributes:
        name: For people.
        options: The options that make the daemon use it.
        by_ari: Whether ARI is set up.
        kind: The kind of the audio messages, whose frames have `frame_bytes`.
    """

    name: str
    options: str
    by_ari: bool
    kind: int = 0x10
    frame_bytes: int = 320

    def settings(self, asterisk: Asterisk) -> dict[str, str]:
        """Return the sections of the daemon's configuration that it needs."""
        return {"ari": ari_settings(asterisk)} if self.by_ari else {}


WAYS = (
    Way("ChanSpy", "D(in)", by_ari=False),
    Way("snoop by AudioSocket()", "D(in)", by_ari=True),
    Way("snoop by Dial()", "D(in)L(16000)", by_ari=True, kind=0x12, frame_bytes=640),
)


class Racer:
    """An AMI user who hears all events, and presents each UUID in them at the AudioSocket port.

    Args:
        takes_id: Whether he uses the public ids of forks; otherwise he uses the UUIDs of legs that
            Asterisk shows.

    Attributes:
        attempts_left: How many more legs he tries to forge.
        presented: The UUIDs that he has presented.
    """

    def __init__(
        self, asterisk: Asterisk, daemon: Daemon, way: Way, *, takes_id: bool = False
    ) -> None:
        self._asterisk = asterisk
        self._port = daemon.audiosocket_port
        self._way = way
        self._takes_id = takes_id
        self.attempts_left = 0
        self.presented: set[str] = set()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Race for every leg that is requested from Asterisk meanwhile."""
        async with AmiClient(self._asterisk) as ami, asyncio.TaskGroup() as races:
            watch = races.create_task(self._watch(ami, races))
            try:
                yield
            finally:
                watch.cancel()

    async def _watch(self, ami: AmiClient, races: asyncio.TaskGroup) -> None:
        position = 0
        while True:
            await ami.wait_event(lambda _: True, timeout_s=3600, after=position)
            for _, headers in ami.events[position:]:
                leg_uuid = self._uuid_in(headers)
                if leg_uuid and leg_uuid not in self.presented and self.attempts_left:
                    self.attempts_left -= 1
                    self.presented.add(leg_uuid)
                    races.create_task(self._present(leg_uuid))
            position += len(ami.events[position:])

    def _uuid_in(self, headers: Headers) -> str:
        """Return the UUID that an event reveals; empty: none."""
        if self._takes_id:
            return headers["Value"] if headers.get("Variable") == "AUDIOFORK_ID" else ""
        shown = (value for value in headers.values() if f":{self._port}" in value)
        return next((found[0] for value in shown if (found := _UUID.search(value))), "")

    async def _present(self, leg_uuid: str) -> None:
        """Send audio as the leg with a UUID until the daemon closes the connection."""
        frame = FORGED * self._way.frame_bytes
        message = bytes([self._way.kind]) + len(frame).to_bytes(2, "big") + frame
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(uuid_message(leg_uuid) + message * _BURST_FRAMES)
            while not reader.at_eof() and not writer.is_closing():
                writer.write(message)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(100), 0.02)
            writer.close()


@ATTACKS
async def fork_ids(scene: Scene) -> list[Finding]:
    """An attacker who hears every AUDIOFORK_ID presents it before Asterisk's leg comes."""
    findings = []
    for way in WAYS:
        raced = await _race(scene, way, takes_id=True)
        name = f"{FORKS} forks by {way.name}: AUDIOFORK_ID presented as the UUID of a leg"
        asked = "none of his frames at the server, no fork disturbed, each attempt counted"
        ok = not raced.forged and raced.undisturbed == FORKS and raced.counted == FORKS
        findings += [Finding(name, asked, str(raced), ok), raced.others(name)]
    return findings


@ATTACKS
async def leg_uuids(scene: Scene) -> list[Finding]:
    """An attacker who hears all events presents the UUID of each first leg immediately."""
    findings = []
    for way in WAYS:
        raced = await _race(scene, way)
        name = f"{FORKS} forks by {way.name}: the UUID of the first leg presented as well"
        asked = "each goes on with another leg; his frames are at the server for 200 ms at most"
        ok = raced.live == FORKS and raced.forged <= FORKS * MOST_FORGED_FRAMES
        findings += [Finding(name, asked, str(raced), ok), raced.others(name)]
    return findings


@ATTACKS
async def every_leg(scene: Scene) -> list[Finding]:
    """The same with every requested leg: the forks end, and say why."""
    findings = []
    for way in WAYS:
        raced = await _race(scene, way, attempts=100)
        name = f"{FORKS} forks by {way.name}: the UUID of every leg presented as well"
        asked = "each ends with leg-failed and the reason, or goes on with Asterisk's audio"
        most = FORKS * MOST_FORGED_FRAMES * 4
        ok = raced.live + raced.failed == FORKS and raced.forged <= most
        findings += [Finding(name, asked, str(raced), ok), raced.others(name)]
    return findings


@dataclass
class Raced:
    """The results for forks whose legs an attacker tried to forge.

    Attributes:
        frames: Frames that their server received; `forged`: those of the attacker.
        undisturbed: Forks without AudioForkReconnecting; `live`: forks that got Asterisk's audio
            to the end; `failed`: forks that ended with leg-failed because of the attack.
        counted: Attempts that the log reports.
        bystanders: What other forks of the same daemon lost.
    """

    frames: int
    forged: int
    undisturbed: int
    live: int
    failed: int
    counted: int
    bystanders: Finding

    def others(self, name: str) -> Finding:
        """Return what other forks lost meanwhile."""
        return self.bystanders._replace(name=f"{name}: {BYSTANDERS} other forks")

    def __str__(self) -> str:
        return (
            f"{self.forged} of {self.frames} frames are his; {self.undisturbed} forks undisturbed, "
            f"{self.live} with Asterisk's audio at the end, {self.failed} ended for his attempts; "
            f"{self.counted} attempts counted"
        )


async def _race(scene: Scene, way: Way, *, takes_id: bool = False, attempts: int = 1) -> Raced:
    async with ServerProcess() as process, Recorder() as recorder:
        with Daemon(scene.asterisk, way.settings(scene.asterisk)) as daemon:
            crowd = Crowd(scene)
            await crowd.gather(BYSTANDERS, process.url, "D(in)")
            await crowd.speak()
            racer = Racer(scene.asterisk, daemon, way, takes_id=takes_id)
            async with racer.watching():
                forks = [await _fork(scene, way, racer, recorder, attempts) for _ in range(FORKS)]
            until = time.monotonic()
            stopped = await crowd.hang_up()
            log = daemon.log()
        others = whole("", became(crowd, process.connections(), until), stopped)
    messages = [message for one in recorder.recordings for message in one.messages]
    return Raced(
        frames=len(messages),
        forged=sum(message == FORGED * way.frame_bytes for message in messages),
        undisturbed=sum(not fork.reconnecting for fork in forks),
        live=sum(fork.is_live for fork in forks),
        failed=sum("somebody else" in fork.ended.get("Detail", "") for fork in forks),
        counted=sum(int(count) for count in re.findall(r"attack, wrong-uuid: (\d+) more", log)),
        bystanders=others,
    )


@dataclass
class RacedFork:
    """The result for one fork."""

    reconnecting: int
    is_live: bool
    ended: Headers


async def _fork(
    scene: Scene, way: Way, racer: Racer, recorder: Recorder, attempts: int
) -> RacedFork:
    """Start a fork whose legs the racer tries to forge, and record what it sends in the end."""
    target = await place_call(scene.ami, scene.caller)
    target.call.talk()
    path = f"/raced/{next(_numbers)}"
    racer.attempts_left = attempts
    action_id = start_fork(scene.ami, target.channel, recorder.url(path), way.options)
    await asyncio.sleep(RACE_S)
    last = [one.messages[-1:] for one in recorder.at(path) if not one.closed]
    is_live = bool(last) and last[-1] != [FORGED * way.frame_bytes] and bool(last[-1])
    await target.call.hangup()
    ended = await scene.ami.wait_event(
        lambda h: h.get("ActionID") == action_id and h.get("UserEvent", "") in _LAST_EVENTS
    )
    mine = [h for _, h in scene.ami.events if h.get("ActionID") == action_id]
    reconnecting = sum(h.get("UserEvent") == "AudioForkReconnecting" for h in mine)
    return RacedFork(reconnecting, is_live and "somebody" not in ended.get("Detail", ""), ended)


@ATTACKS
async def uuid_flood(scene: Scene) -> list[Finding]:
    """Connect as many strangers, each with a UUID that no leg has."""
    async with ServerProcess() as process:
        with Daemon(scene.asterisk) as daemon:
            crowd = Crowd(scene)
            await crowd.gather(20, process.url, "D(in)")
            await crowd.speak()
            await asyncio.sleep(1)
            before_kib, logged_before = daemon.memory_kib(), len(daemon.log().splitlines())
            counts = await asyncio.gather(
                *(_flood(daemon.audiosocket_port, FLOOD_S) for _ in range(FLOODERS))
            )
            grown_kib = daemon.memory_kib() - before_kib
            lines = len(daemon.log().splitlines()) - logged_before
            until = time.monotonic()
            stopped = await crowd.hang_up()
        all_of_it = became(crowd, process.connections(), until)
    name = f"{sum(counts) / FLOOD_S:.0f} connections a second with wrong UUIDs for {FLOOD_S:g} s"
    asked = f"memory grows by {MOST_GROWN_KIB} KiB at most, {MOST_LINES} lines of log a second"
    ok = grown_kib <= MOST_GROWN_KIB and lines <= MOST_LINES * (FLOOD_S + 2)
    seen = f"{grown_kib} KiB, {lines} lines in all"
    good = whole(f"{name}: 20 forks", all_of_it, stopped)
    return [good, Finding(name, asked, seen, ok)]


async def _flood(port: int, seconds: float) -> int:
    """Connect again and again, at most FLOOD_RATE times a second; return how often."""
    count = 0
    began = time.monotonic()
    while (elapsed_s := time.monotonic() - began) < seconds:
        await asyncio.sleep(count / FLOOD_RATE - elapsed_s)
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(uuid_message(uuid.uuid4()))
            await reader.read()
            writer.close()
            count += 1
    return count
