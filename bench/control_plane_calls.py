"""The calls of the benchmark of the control plane: of an Asterisk, or of what stands in for it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from audiofork.audiosocket import Kind, encode
from bench import measure
from bench.cluster_asterisk import SECRET, Leg, StubAsterisk
from testbed.ami import AmiClient
from testbed.asterisk import Asterisk
from testbed.daemon import HasAmi, asterisk_settings, manager_conf

DIALPLAN = """
[bench]
exten => call,1,Answer()
 same => n,UserEvent(AudioFork,Command: StartAudioFork,WsServer: {url},Options: D(in))
 same => n,Wait(3600)

exten => party,1,Answer()
 same => n,PlayTones(!440/1000)
 same => n,Wait(3600)
"""
# Asterisk is to leave others room: with the testbed's usual timer it takes a third more, and its
# log has each step of the dialplan.
CONFIG = {
    "modules.conf": "noload = res_timing_pthread.so\nload = res_timing_timerfd.so\n",
    "asterisk.conf": "verbose = 0\n",
}
FRAME = encode(Kind.SLIN, bytes(320))


@dataclass
class Told:
    """What was told of forks, by the uniqueids of their calls.

    Attributes:
        asked, started: When each was asked for, and when its audio was said to flow, by one clock.
        failed: Those that have failed.
    """

    asked: dict[str, float] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)


class Calls(Protocol):
    """Calls that each ask for a fork.

    Attributes:
        asterisk: Whom the daemon connects to; `settings` are the lines of its [asterisk].
        told: What was told of their forks.
    """

    @property
    def asterisk(self) -> HasAmi: ...
    @property
    def settings(self) -> str: ...
    @property
    def told(self) -> Told: ...

    def begin_call(self) -> str:
        """Let a call begin; return its uniqueid."""

    def end(self, uniqueid: str) -> None:
        """Hang it up."""

    def cpu_s(self) -> float:
        """Return the CPU time of Asterisk, or of this process, which stands in for it."""


class RealCalls:
    """Implements `Calls` by Local channels; see the module `control_plane` for what they do."""

    def __init__(self, asterisk: Asterisk, ami: AmiClient) -> None:
        self.asterisk = asterisk
        self.settings = asterisk_settings(asterisk)
        self._ami = ami
        self._numbers = itertools.count()

    @property
    def told(self) -> Told:
        return told_by(self._ami.events)

    def begin_call(self) -> str:
        # Asterisk refuses an id that another one begins with.
        uniqueid = f"call-{next(self._numbers):06}"
        self._ami.send(
            "Originate",
            Channel="Local/call@bench/n",
            Context="bench",
            Exten="party",
            Priority="1",
            Async="true",
            ChannelId=f"party-{uniqueid}",
            OtherChannelId=uniqueid,
        )
        return uniqueid

    def end(self, uniqueid: str) -> None:
        self._ami.send("Hangup", Channel=uniqueid)

    def cpu_s(self) -> float:
        return measure.own_cpu_s(self.asterisk.pid)


def told_by(events: Iterable[tuple[float, dict[str, str]]]) -> Told:
    """Return what events of AMI tell of forks.

    Args:
        events: Each with the time it came at.
    """
    told = Told()
    for at, headers in events:
        uniqueid, name = headers.get("Uniqueid", ""), headers.get("UserEvent", "")
        if name == "AudioFork":
            told.asked[uniqueid] = at
        elif name == "AudioForkStarted":
            told.started[uniqueid] = at
        elif name == "AudioForkFailed":
            told.failed.add(uniqueid)
    return told


class StandIn(StubAsterisk):
    """Implements `Calls` in this process; each leg brings one frame, and then nothing.

    Args:
        calls: How many may begin.
        url: The server of the forks.
    """

    settings: str

    def __init__(self, calls: int, url: str) -> None:
        super().__init__(0, calls, calls, url)

    async def start(self) -> None:
        await super().start()
        self.settings = f"port = {self.port}\nsecret = {SECRET}\n"

    @property
    def ami_port(self) -> int:
        return self.port

    @property
    def asterisk(self) -> HasAmi:
        return self

    @property
    def told(self) -> Told:
        failed = (text.split()[1] for text in self.failed if text.startswith("AudioForkFailed"))
        return Told(self.asked, self.streaming, {one.rstrip(":") for one in failed})

    def begin_call(self) -> str:
        return self.begin(1)[0]

    def on_leg(self, leg: Leg) -> None:
        super().on_leg(leg)
        leg.send(FRAME)

    def cpu_s(self) -> float:
        return measure.own_cpu_s(0)


@contextlib.asynccontextmanager
async def real_calls(url: str) -> AsyncIterator[RealCalls]:
    """Have a private Asterisk for calls whose forks have a server."""
    config = {"manager.conf": manager_conf(), **CONFIG}
    with Asterisk(dialplan=DIALPLAN.format(url=url), config=config) as asterisk:
        async with AmiClient(asterisk) as ami:
            await ami.action("Events", EventMask="user")
            yield RealCalls(asterisk, ami)


@contextlib.asynccontextmanager
async def stand_in(calls: int, url: str) -> AsyncIterator[StandIn]:
    """Have what stands in for an Asterisk."""
    asterisk = StandIn(calls, url)
    await asterisk.start()
    yield asterisk
    asterisk.close()
