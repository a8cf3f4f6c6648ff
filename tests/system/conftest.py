"""A real Asterisk, the daemon beside it, a SIP caller and a recording WebSocket server.

If no Asterisk is available, these tests fail: a skipped test proves nothing. Tests of what an older
version cannot do are skipped and say so, see `needs`; on the default Asterisk none is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from audiofork.asterisk.versions import (
    CHANSPY_IN_WHOLE,
    CHANSPY_PAIRS,
    Since,
    Version,
    releases,
)
from audiofork.doors.control_client import Client
from testbed.ami import AmiClient, Headers
from testbed.asterisk import Asterisk, find_installation
from testbed.blocks import make_blocks
from testbed.daemon import (
    Daemon,
    ari_conf,
    ari_settings,
    asterisk_settings,
    dialplan,
    manager_conf,
)
from testbed.recorder import Recorder
from testbed.rtp import ULAW, Codec
from testbed.sip import Call, SipUser

DIALPLAN = """
[testbed]
exten => echo,1,Answer()
 same => n,Echo()

; A channel that hears nothing.
exten => wait,1,Answer()
 same => n,Wait(600)

; A channel that hears a known file, LEAD seconds after its fork streams.
exten => play,1,Answer()
 same => n,Gosub(audiofork,start,1(${WSSERVER},${OPTIONS}))
 same => n,Wait(${LEAD})
 same => n,Playback(${FILE})
 same => n,Wait(600)

exten => callee,1,Dial(${CALLEE})
exten => callee-and-on,1,Dial(${CALLEE},,g)
 same => n,UserEvent(WentOn)
 same => n,Wait(600)
exten => third,1,Answer()
 same => n,Wait(600)

exten => hangup-soon,1,Answer()
 same => n,Wait(0.5)
 same => n,Hangup()

exten => event,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ${WSSERVER},Options: ${OPTIONS})
 same => n,Echo()

exten => inject,1,Answer()
 same => n,UserEvent(AudioFork,WsServer: ws://127.0.0.1/${SPRINTF(%c,10)}x)
 same => n,Echo()

exten => gosub,1,Answer()
 same => n,Gosub(audiofork,start,1("${WSSERVER}",${OPTIONS}))
 same => n,UserEvent(Returned,Status: ${AUDIOFORK_STATUS},Reason: ${AUDIOFORK_REASON})
 same => n,Wait(0.5)
 same => n,Gosub(audiofork,stop,1(${AUDIOFORK_ID}))
 same => n,UserEvent(ReturnedFromStop,Status: ${AUDIOFORK_STATUS})
 same => n,Wait(600)

exten => post,1,Answer()
 same => n,Gosub(audiofork,start,1(${WSSERVER},${OPTIONS},${POST}))
 same => n,Echo()

exten => mute,1,Answer()
 same => n,Gosub(audiofork,start,1(${WSSERVER},${OPTIONS}))
 same => n,Gosub(audiofork,mute,1(both,on))
 same => n,UserEvent(Muted)
 same => n,Echo()

exten => slow,1,Goto(slow,s,1)

; A channel whose other party is a server: LEG is the address, and how it is called.
exten => dialled,1,Answer()
 same => n,Dial(AudioSocket/${LEG},,g)
 same => n,UserEvent(WentOn)
 same => n,Wait(600)
exten => owned,1,Answer()
 same => n,AudioSocket(${LEG})
 same => n,UserEvent(WentOn)
 same => n,Wait(600)

[slow]
exten => s,1,Answer()
 same => n,Echo()
exten => h,1,Wait(2)

"""


# One block in some ten thousand never comes from Asterisk, and is missing in every fork of the
# call; by ChanSpy on a busy machine it may be more. A test that wants hundreds of them whole is
# run again, twice at most, if it fails. What loses one in each run fails it all the same.
counts_blocks = pytest.mark.flaky(reruns=2)

# Blocks that may be lost between caller and daemon, rarely: FramesIn does not have them either.
LOST_BEFORE = 2


def needs(since: Since, what: str, **where: Collection[object]) -> pytest.MarkDecorator:
    """Skip a test on an Asterisk that lacks something, and say what.

    Args:
        since: The first releases that have it.
        what: A text for people, to follow "Asterisk 18.0.0 has no".
        where: Only for these values of a parameter or fixture, by its name.
    """
    return pytest.mark.needs(since, what, where)


# For a fork by ChanSpy that carries out, or both sides apart.
needs_pairs = partial(needs, CHANSPY_PAIRS, "ChanSpy that keeps in and out apart", tap=["chanspy"])
# For a fork by ChanSpy whose every block of in is counted.
needs_whole_in = partial(
    needs, CHANSPY_IN_WHOLE, "ChanSpy that keeps in whole while out is not read", tap=["chanspy"]
)


@pytest.fixture(autouse=True)
def what_it_needs(request: pytest.FixtureRequest) -> None:
    """Skip the test if `needs` says so."""
    for mark in request.node.iter_markers("needs"):
        since, what, where = mark.args
        concerned = all(request.getfixturevalue(name) in where[name] for name in where)
        if concerned and (why := lack(find_installation().version, since, what)):
            pytest.skip(why)


def lack(version: str, since: Since, what: str) -> str:
    """Return what a version lacks, as text; empty if it has the feature."""
    if Version.parse(version).has(since):
        return ""
    return f"Asterisk {version} has no {what}: {releases(since)} and later have"


@pytest.fixture(scope="session")
def asterisk() -> Iterator[Asterisk]:
    """An Asterisk with the shipped users and dialplan."""
    config = {"manager.conf": manager_conf(), "ari.conf": ari_conf()}
    with Asterisk(dialplan=DIALPLAN + dialplan(), config=config) as one:
        yield one


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """The lines that a module needs in the daemon's configuration."""
    return {}


@pytest.fixture(scope="module")
def tap() -> str:
    """How the daemon gets legs; a module that tries all of them overrides this."""
    return "chanspy"


@pytest.fixture(scope="module", params=["chanspy", "snoop"])
def each_tap(request: pytest.FixtureRequest) -> str:
    """Both taps, one after the other: for a module that has `tap = each_tap`."""
    value: str = request.param
    return value


def settings_of(tap: str, asterisk: Asterisk) -> dict[str, str]:
    """Return the settings that let a daemon use a tap for all directions."""
    if tap == "snoop":
        return {"ari": ari_settings(asterisk)}
    return {"asterisk": asterisk_settings(asterisk) + "chanspy_pairs = narrowband\n"}


@pytest.fixture(scope="module")
def shared_daemon(asterisk: Asterisk, settings: dict[str, str], tap: str) -> Iterator[Daemon]:
    with Daemon(asterisk, {**settings_of(tap, asterisk), **settings}) as one:
        yield one


@pytest.fixture
async def ami(asterisk: Asterisk) -> AsyncIterator[AmiClient]:
    async with AmiClient(asterisk) as client:
        yield client


@pytest.fixture
async def daemon(
    shared_daemon: Daemon, asterisk: Asterisk, ami: AmiClient
) -> AsyncIterator[Daemon]:
    """The daemon; after the test it must be as before, and Asterisk without a channel."""
    descriptors = shared_daemon.descriptors(but_to_port=asterisk.http_port)
    yield shared_daemon
    await no_channels(ami)
    assert shared_daemon.exit_code is None
    await no_forks(shared_daemon)
    for _ in range(600):
        if shared_daemon.descriptors(but_to_port=asterisk.http_port) <= descriptors:
            break
        await asyncio.sleep(0.03)
    assert shared_daemon.descriptors(but_to_port=asterisk.http_port) <= descriptors
    assert "Traceback" not in shared_daemon.log()


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    """A server; it stays until the forks of the calls that the test hung up have ended.

    Otherwise they would try to reach it, to deliver their last frames.
    """
    async with Recorder() as one:
        yield one
        await one.wait_left(timeout_s=1)


@pytest.fixture
async def caller(asterisk: Asterisk) -> AsyncIterator[SipUser]:
    async with SipUser("caller", ("127.0.0.1", asterisk.sip_port)) as user:
        yield user


async def no_forks(daemon: Daemon) -> None:
    """Wait until the daemon has no fork; fail if that takes too long.

    A fork that still has frames for a server that is gone tries to reach it for 30 seconds.
    """
    present: list[str] = []
    with Client(daemon.socket) as client:
        for _ in range(900):
            present = [fork["url"] for fork in await asyncio.to_thread(client.forks)]
            if not present:
                return
            await asyncio.sleep(0.05)
    raise AssertionError(f"forks are left: {present}")


async def no_channels(ami: AmiClient) -> None:
    """Wait until Asterisk has no channel; fail if that takes too long."""
    await only_channels(ami)


async def only_channels(ami: AmiClient, *names: str) -> None:
    """Wait until Asterisk has only these channels; fail if that takes too long.

    Asterisk needs a few milliseconds to notice that a leg was closed.
    """
    present: list[str] = []
    for _ in range(100):
        present = await channels(ami)
        if sorted(present) == sorted(names):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"channels are left: {present}")


async def channels(ami: AmiClient, header: str = "Channel") -> list[str]:
    """Return the names of Asterisk's channels, or another header of each."""
    return [headers[header] for headers in await listed_channels(ami)]


async def listed_channels(ami: AmiClient) -> list[Headers]:
    """Return what Asterisk reports of each of its channels."""
    position = len(ami.events)
    action_id = ami.send("CoreShowChannels")
    await ami.wait_event(
        lambda h: h.get("Event") == "CoreShowChannelsComplete" and h["ActionID"] == action_id,
        after=position,
    )
    return [
        headers
        for _, headers in ami.events[position:]
        if headers.get("Event") == "CoreShowChannel" and headers.get("ActionID") == action_id
    ]


@dataclass
class Target:
    """A live call, and its channel."""

    call: Call
    channel: str
    uniqueid: str


_numbers = itertools.count(1)


async def place_call(
    ami: AmiClient, caller: SipUser, extension: str = "echo", codec: Codec = ULAW
) -> Target:
    """Call an extension, and find the channel that Asterisk made for the caller."""
    position = len(ami.events)
    call = await caller.call(extension, codec=codec)
    event = await ami.wait_event(
        # Of chan_pjsip, or chan_sip.
        lambda h: h.get("Event") == "Newchannel" and "SIP/caller-" in h["Channel"],
        after=position,
    )
    return Target(call, event["Channel"], event["Uniqueid"])


def start_fork(ami: AmiClient, channel: str, url: str, options: str = "", **more: str) -> str:
    """Request a fork by AMI; return the ActionID."""
    action_id = f"fork-{next(_numbers)}"
    ami.send(
        "UserEvent",
        action_id=action_id,
        UserEvent="AudioFork",
        Command="StartAudioFork",
        Channel=channel,
        WsServer=url,
        Options=options,
        **more,
    )
    return action_id


async def start_fork_heard(
    ami: AmiClient, target: Target, url: str, options: str = "", **more: str
) -> str:
    """Request a fork while the party speaks, until the server has all; return the ActionID.

    What the party says after it has every leg to go by.
    """
    noise = make_blocks(25, seed=7001)
    action_id = start_fork(ami, target.channel, url, options, **more)
    speaking = target.call.play(noise, loop=True)
    try:
        await ami.wait_user_event("AudioForkStarted", ActionID=action_id)
    finally:
        speaking.cancel()
    await target.call.play(noise)  # of two legs, one may have come only now
    return action_id


async def set_globals(ami: AmiClient, **values: str) -> None:
    """Set global variables of the dialplan."""
    for name, value in values.items():
        await ami.action("Setvar", Variable=name, Value=value)


def write_slin(path: Path, blocks: list[bytes], suffix: str = ".sln") -> str:
    """Write a file for Playback(); return its name as Playback() wants it."""
    path.with_suffix(suffix).write_bytes(b"".join(blocks))
    return str(path.with_suffix(""))
