"""Attacks by what callers dial: headers, options, control sequences for a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from audiofork.asterisk.snapshots import CHANNEL
from testbed.ami import Headers
from testbed.attacks import ATTACKS
from testbed.crowd import Became, Crowd, became, whole
from testbed.daemon import Daemon
from testbed.faulty_server import ServerProcess
from testbed.measuring import Finding, Scene
from testbed.recorder import Recorder
from testbed.sip import SipUser

MAX_GROWTH_KIB = 4096
MAX_NUMBER_CHARACTERS = 79  # of an extension, in Asterisk

# The paths of a hostile number. H: requests, a bridge and a hangup; L: a channel whose name
# contains it; G, U: a URL that contains it unchanged.
REQUESTS = """
[testbed]
exten => _H!,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER},Options: D(in))
 same => n,UserEvent(AudioFork,Command: StopAudioFork)
 same => n,UserEvent(AudioFork,Command: AudioForkMute,Direction: both,State: on)
 same => n,UserEvent(Other)
 same => n,Dial(Local/bridged@testbed/n,,L(200))
 same => n,Hangup()

exten => bridged,1,Answer()
 same => n,Wait(5)

exten => _L!,1,Dial(Local/${EXTEN}@named/n,,L(800))
 same => n,Hangup()

exten => _G!,1,Answer()
 same => n,Gosub(audiofork,start,1(${WSSERVER}?called=${EXTEN},D(in)))
 same => n,Wait(0.2)
 same => n,Hangup()

exten => _U!,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER}?called=${EXTEN},Options: D(in))
 same => n,Wait(0.5)
 same => n,Hangup()

[named]
exten => _L!,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER},Options: D(both))
 same => n,Gosub(audiofork,start,1(${WSSERVER},D(both)))
 same => n,Echo()

"""
ATTACKS.add(dialplan=REQUESTS)


# --- What is dialled ------------------------------------------------------------------------------


def forged_lines(victim: str) -> list[str]:
    """Return ends of numbers that look like headers, and like the end of a message.

    Args:
        victim: The uniqueid of another call.
    """
    names = [*CHANNEL, "UserEvent", "Event", "ActionID", "uniqueid"]
    rest = f"\r\nPriority: 1\r\nUniqueid: {victim}\r\nLinkedid: 1"
    return [
        *(f"\r\n{name}: {victim}" for name in names),
        rest,
        f"{rest}\r\nCause: 16",
        f"{rest}\r\n\r\nX",
        f"{rest}\r\n\r\n\r\n",
        f"\r\n\r\nEvent: Hangup\r\nUniqueid: {victim}\r\n\r\n",
        f"\r\n\r\nEvent: UserEvent\r\nUserEvent: AudioFork\r\nUniqueid: {victim}",
    ]


def request_parts(elsewhere: str, made: Path) -> list[str]:
    """Return ends of numbers that look like parts of a request.

    Args:
        elsewhere: The URL of a server to which the audio is to be diverted.
        made: A file to be created.
    """
    return [
        f",D(in),touch {made}",
        f",,touch {made}",
        ",T(ca=/nope)",
        f",WsServer: {elsewhere}",
        f', "Ws\\Server" : {elsewhere}',
        f",PostProcess: touch {made}",
        ",Command: StopAudioFork",
        f"\r\nWsServer: {elsewhere}",
        f"\r\nPostProcess: touch {made}",
        f'",D(in),"touch {made}',
        f'",WsServer: {elsewhere},"',
        ")",
        "(",
        "%00+é",
    ]


CONTROL_CHARACTERS = (
    *("\x1b[31mred", "\n2026-01-01 ERROR", "\r\nValue: x", "\r\nUniqueid: 1.1", "é\u2028\x7f1"),
)
"""Ends of numbers that write lines of their own, or command a terminal."""


# --- The attacks ----------------------------------------------------------------------------------


class _Bystanders(NamedTuple):
    """Calls of other parties, with forks of the attacked daemon."""

    daemon: Daemon
    uniqueids: list[str]


@contextlib.asynccontextmanager
async def _among(
    scene: Scene, name: str, security: str = ""
) -> AsyncIterator[tuple[_Bystanders, list[Finding]]]:
    """Fork 20 calls that speak; at the end report what they have lost."""
    settings = {"security": security} if security else {}
    findings: list[Finding] = []
    async with ServerProcess() as process:
        with Daemon(scene.asterisk, settings) as daemon:
            crowd = Crowd(scene)
            await crowd.gather(20, process.url, "D(in)")
            await crowd.speak()
            uniqueids = [
                await scene.ami.variable(caller.channel, "UNIQUEID") for caller in crowd.callers
            ]
            before_kib = daemon.memory_kib()
            yield _Bystanders(daemon, uniqueids), findings
            grown_kib = daemon.memory_kib() - before_kib
            ended = _ended(crowd, scene.ami.events)
            until = time.monotonic()
            stopped = await crowd.hang_up()
            connections = process.connections()
    findings += _judged(name, became(crowd, connections, until), stopped, ended)
    asked = f"memory grows by {MAX_GROWTH_KIB} KiB at most"
    findings.append(Finding(name, asked, f"{grown_kib} KiB", grown_kib <= MAX_GROWTH_KIB))


def _ended(crowd: Crowd, events: Sequence[tuple[float, Headers]]) -> int:
    """Return how many of the forks have ended although their calls have not."""
    mine = {fork.action_id for fork in crowd.forks}
    return sum(
        event.get("UserEvent") == "AudioForkStopped" and event.get("ActionID") in mine
        for _, event in events
    )


def _judged(
    name: str, all_of_it: dict[str, Became], stopped: dict[str, Headers], ended: int
) -> list[Finding]:
    return [
        whole(name, all_of_it, stopped),
        Finding(name, "no fork of another call is ended", f"{ended} ended", ended == 0),
    ]


async def _dial(scene: Scene, numbers: Sequence[str]) -> int:
    """Place a call to each number, one after the other; return how many were answered."""
    answered = 0
    server = ("127.0.0.1", scene.asterisk.sip_port)
    for number in numbers:
        async with SipUser("caller", server) as hostile:
            with contextlib.suppress(Exception):  # Asterisk may refuse it
                call = await hostile.call(quote(number[:MAX_NUMBER_CHARACTERS], safe=""))
                call.talk()
                answered += 1
                await call.wait_ended(5)
    return answered


@ATTACKS
async def forged_headers(scene: Scene) -> list[Finding]:
    """Dial numbers that look like headers of other calls' events, one after the other."""
    name = "numbers with lines like headers, 20 calls beside"
    async with Recorder() as hostile, _among(scene, name) as (bystanders, findings):
        await scene.ami.action("Setvar", Variable="WSSERVER", Value=hostile.url("/"))
        numbers = [
            f"H1{tail}" for victim in bystanders.uniqueids[:2] for tail in forged_lines(victim)
        ]
        answered = await _dial(scene, numbers)
        log = bystanders.daemon.log()
        lines = log.count("attack, forged-event")
        seen = f"{answered} of {len(numbers)} calls answered; {lines} lines"
        asked = "dropped, counted and logged once a second at most"
        findings.append(Finding(name, asked, seen, lines > 0))
    return findings


@ATTACKS
async def caller_data(scene: Scene) -> list[Finding]:
    """Dial numbers that look like parts of a request, and put them into a URL unchanged."""
    name = "numbers with options, servers and commands, 20 calls beside"
    made = Path(tempfile.mkdtemp(prefix="a")) / "f"
    security = "allow_post_process = yes\n"
    async with (
        Recorder() as meant,
        Recorder() as elsewhere,
        _among(scene, name, security) as (_, findings),
    ):
        await scene.ami.action("Setvar", Variable="WSSERVER", Value=meant.url("/"))
        tails = request_parts(elsewhere.url("/"), made)
        await _dial(scene, [f"{way}1{tail}" for way in "GU" for tail in tails])
        await asyncio.sleep(0.5)  # for what is run after a fork
        seen = f"{len(elsewhere.recordings)} elsewhere, {int(made.exists())} files made"
        asked = "no audio elsewhere, no command run"
        findings.append(Finding(name, asked, seen, seen == "0 elsewhere, 0 files made"))
    made.parent.rmdir()
    return findings


@ATTACKS
async def control_characters(scene: Scene) -> list[Finding]:
    """Dial numbers with control characters, which become names of Local channels."""
    name = "channels named by control characters, 20 calls beside"
    async with Recorder() as hostile, _among(scene, name) as (bystanders, findings):
        await scene.ami.action("Setvar", Variable="WSSERVER", Value=hostile.url("/"))
        await _dial(scene, [f"L1{tail}" for tail in CONTROL_CHARACTERS])
        log = bystanders.daemon.log()
        raw = sum(not line.isprintable() for line in log.split("\n"))
        seen = f"{raw} such lines, {log.count('Fatal error')} faults"
        asked = "none in the log, no fault of a transport"
        findings.append(Finding(name, asked, seen, not raw and "Fatal error" not in log))
    return findings
